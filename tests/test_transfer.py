"Transfer: targets have other initial weights, no pair counts twice, and incomplete rows."
import pandas as pd
import pytest
import torch

from nrf_repro.experiment.runs import load_profile, next_seed, study_cells, study_jobs, train_cell, trained_by
from nrf_repro.models import load_model
from nrf_repro.results.rows import frame
from nrf_repro.studies.base import Run, run_study
from nrf_repro.studies.transfer import _target_name, measure_transfer, show_transfer, source_networks, target_networks


@pytest.fixture(scope='module')
def profile():
    p = load_profile('tiny')
    p['studies']['transfer']['seeds'] = [0, 1]
    return p


@pytest.fixture(scope='module')
def folder(profile, tmp_path_factory):
    folder = tmp_path_factory.mktemp('transfer')
    for cell in study_cells(profile, 'transfer'): train_cell(profile, cell, folder, progress=False)
    return folder


def test_the_targets_have_other_initial_weights(profile, folder):
    run = Run(profile, 'transfer', 1, folder, progress=False)
    targets = target_networks(run)
    assert {c.seed for c in targets} == {0} and {c.seed for c in run.cells()} == {1}
    assert [_target_name(c) for c in targets] == [_target_name(c) for c in run.cells()]
    first = load_model(folder / 'runs' / f'{next(iter(targets)).id}' / 'weights.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), next(iter(targets.values())).state_dict().values()))


def test_a_job_waits_for_the_networks_of_the_next_seed(profile):
    assert {c.seed for c in study_cells(profile, 'transfer', 1)} == {0, 1}
    assert [next_seed([0, 1, 2], s) for s in (0, 1, 2)] == [1, 2, 0] and next_seed([4], 4) == 4
    small = load_profile('cifar-small')
    waits = trained_by(small, ('core', 'extension'), 'transfer', [2])
    assert any('-0' in name for name in waits) and study_jobs(small, ('core', 'extension'))['transfer-2']['seeds'] == [2]


def test_a_new_weight_of_the_next_seed_is_a_new_study(profile, folder):
    run = Run(profile, 'transfer', 0, folder, progress=False)
    before = run.hash
    other = next(c for c in study_cells(profile, 'transfer', 0) if c.seed == 1)
    config = folder / 'runs' / other.id / 'config.json'
    text = config.read_text()
    config.write_text(text.replace('"hash": "', '"hash": "x'))
    assert run.hash != before
    config.write_text(text)
    assert run.hash == before


def test_every_pair_once_and_an_attack_with_eps_near_zero_has_no_success(profile, folder):
    rows = frame(measure_transfer(Run(profile, 'transfer', 0, folder, progress=False)))
    success = rows[rows.metric == 'transfer_success']
    assert len(success) == len(success.drop_duplicates(['source', 'norm', 'target'])) == 4 * len(source_networks(Run(profile, 'transfer', 0, folder)))
    assert set(success.target) == {'vgg11-none', 'vgg11-bn'} and success.n.nunique() == 1
    nothing = load_profile('tiny')
    nothing['studies']['transfer'] |= dict(seeds=[0, 1], eps=1e-9)
    still = frame(measure_transfer(Run(nothing, 'transfer', 0, folder, progress=False)))
    assert (still[still.metric.isin(['transfer_success', 'momentum_success', 'own_transfer_success'])].value == 0).all()


def test_one_seed_leaves_out_the_network_itself_and_the_caption_states_it(profile, folder):
    one = load_profile('tiny')
    rows = frame(measure_transfer(Run(one, 'transfer', 0, folder, progress=False)))
    success = rows[rows.metric == 'transfer_success']
    assert all(f'-{n}' not in t for n, t in zip(success.norm, success.target))
    assert 'with the same initial weights' in list(show_transfer(rows))[0]['caption']


def test_it_is_kept_and_shown(profile, folder):
    assert [run_study(profile, 'transfer', s, folder, progress=False) for s in (0, 1, 0)] == ['measured', 'measured', 'kept']
    from nrf_repro.results.rows import read_rows
    rows = read_rows(*(folder / 'studies').glob('transfer-*/rows.jsonl'))
    parts = list(show_transfer(rows))
    assert 'of the next seed' in parts[0]['caption'] and len(parts) == 3
    assert not list(show_transfer(rows[rows.metric == 'alignment'])) and not list(show_transfer(rows.assign(eps=pd.NA)))
