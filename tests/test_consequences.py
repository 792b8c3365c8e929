"Corruptions, batch statistics and batch sizes: closed forms, what must not change, and X-rays that the test draws itself."
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nrf_repro.studies import consequences as c
from nrf_repro.studies import base as studies
from nrf_repro.attacks import Attack
from nrf_repro.data import Images
from nrf_repro.experiment.plan import absent, study_jobs, study_specs
from nrf_repro.experiment.profile import PARTS, load_profile
from nrf_repro.experiment.run import train_network
from nrf_repro.models import build_model
from nrf_repro.results.claims import decide, decide_parts, load_claims
from nrf_repro.results.rows import frame, read_rows
from nrf_repro.training.loop import RECIPES, correct


def images(channels=1, n=6):
    x = torch.randint(40, 200, (n, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x, torch.arange(n) % 2, ('a', 'b'), (.5,) * channels, (.2,) * channels, 'made', 'test')


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('levels', c.LEVELS)
@pytest.mark.parametrize('source', c.CORRUPTIONS)
def test_a_corruption_moves_every_image_by_itself(source, levels, channels):
    im = images(channels)
    for severity in c.SEVERITIES:
        out = c.corrupted(im, source, severity, levels)
        assert out.x.dtype == torch.uint8 and out.x.shape == im.x.shape and out.y.equal(im.y)
        assert (out.x != im.x).flatten(1).any(1).all()
        if source in ("brightness", "darkness"): assert ((out.x >= im.x) if source == "brightness" else (out.x <= im.x)).all()   # nothing wraps round
        assert out[2:4].x.equal(c.corrupted(im[2:4], source, severity, levels).x)    # whatever else is in the batch


def test_the_noise_has_the_size_it_says_and_its_own_seed():
    grey = replace(images(), x=torch.full((6, 1, 32, 32), 128, dtype=torch.uint8))
    for severity, sd in zip(c.SEVERITIES, c.LEVELS['natural']['gaussian_noise']):
        moved = c.corrupted(grey, 'gaussian_noise', severity, 'natural').pixels()
        assert moved.std().item() == pytest.approx(sd, rel=.05) and moved.mean().item() == pytest.approx(128 / 255, abs=.01)
    one, other = (c.corrupted(images(), 'gaussian_noise', 3, 'natural', seed).x for seed in (0, 1))
    assert not one.equal(other)


@pytest.mark.parametrize('source, severity, levels, word', [('fog', 1, 'strong', 'fog'), ('jpeg', 0, 'strong', '0'), ('jpeg', 6, 'strong', '6'), ('jpeg', 1, 'weak', 'weak')])
def test_unknown_words_are_named(source, severity, levels, word):
    with pytest.raises(ValueError, match=f'Unknown .*{word}.*choose one of'): c.corrupted(images(), source, severity, levels)


def net(norm): return build_model('vgg11', norm, in_channels=1, num_classes=2, width=1/32, seed=0).eval()


def test_batch_statistics_are_those_of_the_batch_and_leave_no_trace():
    bn, x = nn.BatchNorm2d(3).eval(), 5 + 3 * torch.randn(8, 3, 4, 4)
    with c.batch_statistics(bn): out = bn(x)
    assert out.mean((0, 2, 3)).abs().max() < 1e-5 and (out.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert bn(x).mean() > 4 and bn.running_mean.eq(0).all() and int(bn.num_batches_tracked) == 0
    with pytest.raises(KeyboardInterrupt):
        with c.batch_statistics(bn): raise KeyboardInterrupt
    assert bn.running_mean is not None and bn(x).mean() > 4


def test_only_bn_has_statistics_to_change():
    x, y = images(n=40).pixels(), images(n=40).y
    for norm in ('none', 'in', 'ln', 'gn'): assert c.share_right(net(norm), x, y, 'stored', 20) == c.share_right(net(norm), x, y, 'batch', 20)
    bn = net('bn')
    with torch.no_grad():
        with c.batch_statistics(bn): whole, half = bn(x), bn(x[:20])
    assert not torch.allclose(whole[:20], half, atol=1e-3)   # the answer depends on who else is there


def test_an_attack_of_no_size_moves_nothing_and_one_of_some_size_does():
    im, bn = images(n=20), net('bn')
    x, y = im.pixels(), correct(net('bn'), im.pixels(), torch.zeros(20, dtype=torch.long)).logical_not().long()   # what the net says
    attack = Attack('linf', .2, 'ce', steps=3, step_size=.1)
    assert c.attacked_right(bn, x, y, replace(attack, eps=0.), 'stored', 10) == 1.
    assert c.attacked_right(bn, x, y, attack, 'stored', 10) < 1.
    with c.batch_statistics(bn): aware = torch.cat([attack(bn, a, b) for a, b in zip(x.split(10), y.split(10))])
    assert c.attacked_right(bn, x, y, attack, 'aware', 10) == c.share_right(bn, aware, y, 'batch', 10)
    assert not torch.allclose(aware, attack(bn, x, y))       # it climbed through other statistics
    assert all(m.running_mean is not None for m in bn.modules() if isinstance(m, nn.BatchNorm2d))


def test_another_batch_size_scales_lr_down_and_never_up():
    r = RECIPES['digits']
    assert c.at_batch_size(r, 16, 1000) == replace(r, batch_size=16, lr=r.lr / 4)
    assert c.at_batch_size(r, 64, 1000) == r and c.at_batch_size(r, 256, 1000).lr == r.lr
    assert [c.at_batch_size(r, b, 1000, most=1000).epochs for b in (1, 2, 4, 8, 64)] == [1, 2, 4, 8, 8]
    assert c.at_batch_size(r, 2, 10_000, most=10).epochs == 1


def test_recomputed_statistics_are_the_means_of_the_training_images():
    bn, im = net('bn'), images(n=20)
    before = deepcopy(bn.state_dict())
    again = c.recomputed(bn, im)
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
    changes = {f'studies.medical.{name}': value for name, value in study.items()}
    return load_profile('tiny').with_changes(changes | {'data.pneumoniamnist.train': 60, 'data.pneumoniamnist.test': 48})


@pytest.fixture(scope='module')
def medical(xrays, tmp_path_factory):
    folder, p = tmp_path_factory.mktemp('medical'), settings()
    done = studies.run_studies(p, 'medical', [0, 1], folder)
    assert done == {0: 'measured', 1: 'measured'}
    return folder, p, read_rows(folder / 'studies')


def test_medical_rows_hold_what_the_claim_asks_for(medical):
    _, p, rows = medical
    claim = {k: v for k, v in load_claims().items() if k == 'C10'}
    parts = decide_parts(claim, rows)
    assert set(parts.part) == {'clean', 'robust'} and not (parts.verdict == 'not run').any()
    learned = rows.assign(value=rows.value.where(rows.metric != 'balanced_accuracy', .75 + .1 * (rows.norm == 'bn') + .001 * rows.seed.astype(float) * (rows.norm == 'bn')))
    learned['value'] = learned.value.where(rows.metric != 'robust_balanced_accuracy', .6 - .2 * (rows.norm == 'bn') + .001 * rows.seed.astype(float) * (rows.norm == 'bn'))
    assert decide(claim, learned).verdict.item() == 'reproduced'


def test_medical_networks_learn_at_every_batch_size_and_say_how_long(medical):
    _, p, rows = medical
    clean = rows[rows.metric == 'balanced_accuracy']
    assert set(zip(clean.norm, clean.batch_size)) == {(n, b) for n in ('none', 'bn') for b in (4, 32)} and clean.value.max() > .9
    steps = rows[rows.metric == 'training_steps'].groupby('batch_size').value.agg(set).to_dict()
    assert steps == {4: {15.}, 32: {1.}}     # one epoch of 60 images; the incomplete batch is left out
    assert rows[rows.metric == 'train_images'].set_index(['source', 'seed']).value.to_dict() == {(s, k): 30. for s in ('normal', 'pneumonia') for k in (0, 1)}
    assert set(rows[rows.metric == 'balanced_accuracy_recomputed'].norm) == {'bn'}


def test_medical_goes_on_where_it_was_interrupted(medical, monkeypatch):
    folder, p, rows = medical
    (folder / 'studies/medical-s0/study.json').unlink()
    def none(*a, **k): raise AssertionError('trained again')
    monkeypatch.setattr(studies, 'fit', none)
    assert studies.run_study(p, 'medical', 0, folder) == 'measured' and studies.run_study(p, 'medical', 0, folder) == 'kept'
    again = read_rows(folder / 'studies')
    assert len(again) == len(rows)           # read_rows refuses two values for one measurement


def test_medical_is_left_out_aloud(monkeypatch, tmp_path):
    p = load_profile('tiny')
    monkeypatch.setenv('NRF_DATA', str(tmp_path))
    assert absent(p, PARTS)['medical'].startswith('pneumoniamnist is not in') and 'medical' not in study_jobs(p, PARTS)


def test_settings_that_cannot_work_are_named(xrays, tmp_path):
    run = studies.Run(settings(batch_sizes=dict(none=[4])), 'medical', 0, tmp_path)
    with pytest.raises(ValueError, match="no batch size for 'bn'"): c.medical_networks(run)
    p = load_profile('tiny').with_changes({'studies.corruptions.batch': 7})
    with pytest.raises(ValueError, match='no multiple of batch: 7'): next(c.shifted(studies.Run(p, 'corruptions', 0, tmp_path)))


@pytest.fixture(scope='module')
def corruptions(tmp_path_factory):
    folder, p = tmp_path_factory.mktemp('corruptions'), load_profile('tiny')
    for spec in study_specs(p, 'corruptions'): train_network(spec, folder, progress=False)
    studies.run_study(p, 'corruptions', 0, folder, progress=False)
    return read_rows(folder / 'studies')


def test_corruption_rows(corruptions):
    count = corruptions.groupby(['metric', 'norm', 'reading']).size().to_dict()
    each = len(c.CORRUPTIONS) * len(c.SEVERITIES)
    assert count == {('corruption_accuracy', 'none', 'stored'): each, ('corruption_accuracy', 'bn', 'stored'): each, ('corruption_accuracy', 'bn', 'batch'): each,
                     ('clean_accuracy', 'none', 'stored'): 1, ('clean_accuracy', 'bn', 'stored'): 1, ('clean_accuracy', 'bn', 'batch'): 1,
                     ('robust_accuracy', 'none', 'last'): 1, ('robust_accuracy', 'bn', 'last'): 3}
    assert corruptions[corruptions.reading == 'batch'].batch_size.eq(20).all()


def seeds_of(rows, shift): # three seeds made of one, with a known effect of BN
    def seed(k): return rows.assign(seed=k, value=(.5 + .01 * k + shift * (rows.norm == 'bn') * (rows.reading != 'batch') * (1 + .01 * k)))
    return frame(pd.concat([seed(k) for k in range(3)]).to_dict('records'))


def test_readings_follow_the_rows(corruptions):
    rows = corruptions[corruptions.metric != 'robust_accuracy']
    for shift, word in ((-.2, 'worse'), (.2, 'better')):
        figure, table = c.show_corruptions(seeds_of(rows, shift))
        assert len(figure['fig'].axes) == 8 and all(ax.lines for ax in figure['fig'].axes)
        assert f'severities: {"−" if shift < 0 else "+"}20.' in figure['reading'][0] and f'({word}); on clean images' in figure['reading'][0]
        assert table['table'].set_index('Network').loc['BN', 'Mean − None'].startswith('−20.' if shift < 0 else '+20.')
    same = seeds_of(rows, 0)
    same['value'] += [.02 * (i % 2) * (-1) ** k for i, k in enumerate(same.seed)]
    assert 'not told apart' in next(iter(c.show_corruption_reading(same.assign(value=.5 + .05 * ((same.seed * (same.norm == 'bn')) % 2).astype(float)))))


def test_shows_cope_with_one_seed_missing_norms_and_several_archs(corruptions, medical):
    rows = medical[2]
    several = frame([*corruptions.to_dict('records'), *corruptions.assign(arch='resnet18').to_dict('records')])
    for show, of, parts in ((c.show_corruptions, corruptions, 2), (c.show_corruptions, several, 4), (c.show_corruptions, corruptions[corruptions.norm == 'bn'], 2),
                            (c.show_corruptions, corruptions[corruptions.norm == 'none'], 2), (c.show_medical, rows, 3), (c.show_medical, rows[rows.seed == 0], 3),
                            (c.show_medical, rows[(rows.norm == 'bn') | rows.arch.isna()], 3), (c.show_medical, rows[(rows.batch_size == 4) | rows.arch.isna()], 3)):
        shown = list(show(of))
        assert len(shown) == parts
        for p in shown:
            if p['table'] is not None: assert p['table'].map(lambda v: isinstance(v, str)).all(axis=None) and 'nan' not in p['table'].to_string()
            assert 'nan' not in ' '.join([p['caption'], *p['reading']])
