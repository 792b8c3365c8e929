"Batch sizes and X-rays: the recipe, BN's recomputed statistics, and a study on X-rays that the test draws itself."
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from nrf_repro.studies import base as studies
from nrf_repro.studies import small_batches as c
from nrf_repro.experiment.profile import PARTS, load_profile
from nrf_repro.cli import collect
from nrf_repro.experiment.plan import absent, study_jobs, unmeasured
from nrf_repro.results.claims import decide, decide_parts
from nrf_repro.results.rules import load_claims
from nrf_repro.results.rows import read_rows
from nrf_repro.training.recipe import RECIPES
from test_corruptions import check_parts, images, net


def test_another_batch_size_scales_lr_down_and_never_up():
    r = RECIPES['digits']
    assert c.at_batch_size(r, 16, 1000) == replace(r, batch_size=16, lr=r.lr / 4)
    assert c.at_batch_size(r, 64, 1000) == r and c.at_batch_size(r, 256, 1000).lr == r.lr
    assert [c.at_batch_size(r, b, 1000, most=1000).epochs for b in (1, 2, 4, 8, 64)] == [1, 2, 4, 8, 8]
    assert c.at_batch_size(r, 2, 10_000, most=10).epochs == 1


def test_recomputed_statistics_are_the_means_of_the_training_images():
    bn, im = net('bn'), images(n=20)
    before = deepcopy(bn.state_dict())
    again = c.with_recomputed_statistics(bn, im)
    conv, norm = again.body[0][0], again.body[0][1]
    with torch.no_grad(): seen = conv(again.standardize(im.pixels()))
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5) and torch.allclose(norm.running_var, seen.var((0, 2, 3)), rtol=1e-4)
    assert not again.training and all(v.equal(before[k]) for k, v in bn.state_dict().items())


def test_balanced_accuracy():
    from sklearn.metrics import balanced_accuracy_score
    y, said = (torch.randint(3, (50,), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert c.balanced_mean(said == y, y) == pytest.approx(balanced_accuracy_score(y, said))
    assert c.balanced_mean(torch.tensor([True] * 9 + [False]), torch.tensor([1] * 9 + [0])) == .5


@pytest.fixture(scope='module')
def xrays(tmp_path_factory):
    "A folder with a PneumoniaMNIST of our own: pneumonia is a brighter middle."
    root, rng = tmp_path_factory.mktemp('xrays'), np.random.default_rng(0)
    def split(n):
        y = (np.arange(n) % 3 > 0).astype(np.uint8)[:, None]
        x = rng.integers(60, 140, (n, 28, 28))
        x[:, 8:20, 8:20] += 90 * y[:, :, None]
        return x.astype(np.uint8), y
    arrays = {f'{s}_{what}': v for s, n in dict(train=120, val=10, test=48).items() for what, v in zip(('images', 'labels'), split(n))}
    np.savez(root / 'pneumoniamnist.npz', **arrays)
    patch = pytest.MonkeyPatch()
    patch.setenv('NRF_DATA', str(root)), patch.setenv('NRF_CACHE', str(root / 'cache'))
    yield root
    patch.undo()


def settings(**medical):
    study = dict(norms=['none', 'bn'], batch_sizes=dict(none=[4, 32], bn=[4, 32]), seeds=[0, 1], steps=30, attacked=24) | medical
    return load_profile('tiny').with_changes({'data.pneumoniamnist.train': 60, 'data.pneumoniamnist.test': 48}
                                             | {f'studies.medical.{name}': value for name, value in study.items()})


@pytest.fixture(scope='module')
def medical(xrays, tmp_path_factory):
    folder, p = tmp_path_factory.mktemp('medical'), settings()
    done = studies.run_studies(p, 'medical', [0, 1], folder)
    assert done == {0: 'measured', 1: 'measured'}
    return folder, p, read_rows(folder / 'studies')


def test_the_rows_decide_claim_c10(medical):
    _, p, rows = medical
    claim = {k: v for k, v in load_claims().items() if k == 'C10'}
    parts = decide_parts(claim, rows)
    assert set(parts.part) == {'clean', 'robust'} and not (parts.verdict == 'not run').any()
    learned = rows.assign(value=rows.value.where(rows.metric != 'balanced_accuracy', .75 + .1 * (rows.norm == 'bn') + .001 * rows.seed.astype(float) * (rows.norm == 'bn')))
    learned['value'] = learned.value.where(rows.metric != 'robust_balanced_accuracy', .6 - .2 * (rows.norm == 'bn') + .001 * rows.seed.astype(float) * (rows.norm == 'bn'))
    assert decide(claim, learned).verdict.item() == 'reproduced'


def test_networks_learn_at_every_batch_size_and_their_steps_are_in_the_rows(medical):
    _, p, rows = medical
    clean = rows[rows.metric == 'balanced_accuracy']
    assert set(zip(clean.norm, clean.batch_size)) == {(n, b) for n in ('none', 'bn') for b in (4, 32)} and clean.value.max() > .9
    steps = rows[rows.metric == 'training_steps'].groupby('batch_size').value.agg(set).to_dict()
    assert steps == {4: {15.}, 32: {1.}}     # one epoch of 60 images; the incomplete batch is left out
    assert rows[rows.metric == 'train_images'].set_index(['source', 'seed']).value.to_dict() == {(s, k): 30. for s in ('normal', 'pneumonia') for k in (0, 1)}
    assert set(rows[rows.metric == 'balanced_accuracy_recomputed'].norm) == {'bn'}


def test_an_interrupted_study_resumes(medical, monkeypatch):
    folder, p, rows = medical
    (folder / 'studies/medical-s0/study.json').unlink()
    def none(*a, **k): raise AssertionError('trained again')
    monkeypatch.setattr(studies, 'fit', none)
    assert studies.run_study(p, 'medical', 0, folder) == 'measured' and studies.run_study(p, 'medical', 0, folder) == 'kept'
    again = read_rows(folder / 'studies')
    assert len(again) == len(rows)           # read_rows refuses two values for one measurement


def test_the_study_is_left_out_with_a_message_if_the_data_are_missing(monkeypatch, tmp_path):
    p = load_profile('tiny')
    monkeypatch.setenv('NRF_DATA', str(tmp_path))
    assert absent(p, PARTS)['medical'].startswith('pneumoniamnist is not in') and 'medical' not in study_jobs(p, PARTS)


def test_finished_rows_stay_in_the_report_if_the_data_are_missing(medical, monkeypatch, tmp_path):
    folder, p, rows = medical
    monkeypatch.setenv('NRF_DATA', str(tmp_path))
    assert 'medical' in absent(p, PARTS) and len(collect(p, PARTS, folder)) == len(rows)
    assert not any('medical' in text for text in unmeasured(p, PARTS, folder))
    assert any(text.startswith('study medical: pneumoniamnist is not in') for text in unmeasured(p, PARTS, tmp_path))


def test_a_norm_without_batch_sizes_is_an_error(xrays, tmp_path):
    run = studies.Run(settings(batch_sizes=dict(none=[4])), 'medical', 0, tmp_path)
    with pytest.raises(ValueError, match="no batch size for 'bn'"): c._planned(run)


def test_the_report_copes_with_one_seed_and_missing_norms(medical):
    rows = medical[2]
    for some in (rows, rows[rows.seed == 0], rows[(rows.norm == 'bn') | rows.arch.isna()], rows[(rows.batch_size == 4) | rows.arch.isna()]):
        shown = list(c.show_medical(some))
        assert len(shown) == 3
        check_parts(shown)
