"""Profiles are checked before they run; a finished cell is kept, a changed one is not taken for it."""
import copy

import pytest
import yaml

from nrf_repro.experiment import runs as experiment
from nrf_repro.experiment.runs import PARTS, Cell, attack_cell, attack_settings, jobs, load_profile, plan_table, planned, profiles, train_cell, train_settings
from nrf_repro.results.rows import resolve_repo_path, read_rows

TINY = load_profile('tiny')
CELL = Cell('digits', 'vgg11', .0625, 'bn', 'standard', 0)


def edited(path, value, profile=TINY):
    "A copy of the profile with one value changed."
    p = copy.deepcopy(profile)
    at = p
    for key in path[:-1]: at = at[key]
    at[path[-1]] = value
    return p


@pytest.mark.parametrize('name', profiles())
def test_every_profile_is_valid_and_its_jobs_cover_its_plan_once(name):
    profile = load_profile(name)
    for parts in (('core',), PARTS):
        cells = [Cell(**c) for job in jobs(profile, parts).values() for c in job]
        assert sorted(cells) == sorted(planned(profile, parts)) and len(set(cells)) == len(cells)
    assert len({c.id for c in planned(profile, PARTS)}) == len(planned(profile, PARTS))
    assert plan_table(profile, PARTS).networks.sum() >= len(planned(profile, PARTS))


@pytest.mark.parametrize('path, value, sentence', [
    (['data', 'digits', 'trian'], 5, "unknown key 'trian'"), (['grids', 0, 'norms'], ['bm'], "unknown norm 'bm'"),
    (['grids', 0, 'archs'], {'vgg12': 1}, "unknown arch 'vgg12'"), (['grids', 0, 'dataset'], 'mnist', "unknown dataset 'mnist'; known are digits"),
    (['grids', 0, 'attacks'], ['fgsm'], "unknown attack 'fgsm'"), (['grids', 0, 'regimes'], ['free'], "unknown regime 'free'"),
    (['data', 'digits', 'recipes', 'standard', 'base'], 'digitz', "recipes.standard.base: unknown base 'digitz'; known are paper, "),
    (['data', 'digits', 'watch', 'attack'], 'apgd', "unknown attack 'apgd'"), (['data', 'digits', 'watch'], 3, 'expected keys and values')])
def test_a_mistake_in_a_profile_is_named(tmp_path, path, value, sentence):
    profile = {k: v for k, v in edited(path, value).items() if k != 'name'}
    file = tmp_path / 'mine.yaml'
    file.write_text(yaml.safe_dump(profile))
    with pytest.raises(ValueError, match=sentence) as e: load_profile(str(file))
    assert str(e.value).startswith('mine.yaml line ')


def test_missing_key_unknown_profile_and_broken_yaml(tmp_path):
    (tmp_path / 'a.yaml').write_text('about: nothing else')
    (tmp_path / 'b.yaml').write_text('about: [')
    with pytest.raises(ValueError, match="a.yaml line 1: '[a-z]+' is missing"): load_profile(str(tmp_path / 'a.yaml'))
    with pytest.raises(ValueError, match='b.yaml is not YAML'): load_profile(str(tmp_path / 'b.yaml'))
    with pytest.raises(ValueError, match='Unknown profile .*choose one of cifar, cifar-cpu, cifar-small, demo'): load_profile('huge')


def test_a_copy_may_not_go_by_the_name_of_a_profile_that_is_there(tmp_path):
    ours, copy_ = resolve_repo_path('reports/profiles/demo.yaml'), tmp_path / 'demo.yaml'
    copy_.write_text(ours.read_text())
    with pytest.raises(ValueError, match="'demo' is a profile of reports/profiles.*give the file another name"): experiment.check_name(str(copy_))
    (tmp_path / 'link').mkdir()
    (tmp_path / 'link/demo.yaml').symlink_to(ours.resolve())
    for fine in ('demo', ours, str(ours), tmp_path / 'link/demo.yaml', copy_.rename(tmp_path / 'mine.yaml'), tmp_path / 'gone/demo.yaml'):
        experiment.check_name(fine)
    experiment.check_name(tmp_path / 'mine.yaml', folder=str(tmp_path / 'nowhere'))


def test_names_that_are_repeated_so_that_reading_a_profile_costs_no_torch():
    from nrf_repro import models
    from nrf_repro.models import norms
    from nrf_repro.training import loop as training
    assert (experiment.BASES, experiment.ARCHS, experiment.NORMS) == (tuple(training.RECIPES), models.ARCHS, norms.NORMS)


def test_recipe_mistakes_are_named():
    with pytest.raises(ValueError, match="Unknown key 'epoch'"): experiment.recipe_of(edited(['data', 'digits', 'recipes', 'standard', 'epoch'], 3), CELL)
    with pytest.raises(ValueError, match="Unknown recipe 'papper'"): experiment.recipe_of(edited(['data', 'digits', 'recipes', 'standard', 'base'], 'papper'), CELL)


def test_settings_change_for_those_that_depend_on_them():
    cells = next(iter(jobs(TINY).values()))
    def both(p): return train_settings(p, cells), attack_settings(p, cells)
    train, attack = both(TINY)
    changes = {('data', 'digits', 'attacks', 'cw_l2', 'eps'): (False, True), ('data', 'digits', 'test'): (False, True),
               ('data', 'digits', 'recipes', 'standard', 'epochs'): (True, False), ('data', 'digits', 'train'): (True, False),
               ('data', 'digits', 'sigma'): (True, True), ('about',): (False, False), ('minutes',): (False, False)}
    for path, expected in changes.items():
        t, a = both(edited(list(path), 77))
        assert (t != train, a != attack) == expected, path


def test_a_cell_is_trained_once_attacked_once_and_again_when_changed(tmp_path):
    assert train_cell(TINY, CELL, tmp_path, progress=False) == 'trained'
    weights = (tmp_path / 'runs' / CELL.id / 'weights.safetensors').read_bytes()
    assert train_cell(TINY, CELL, tmp_path, progress=False) == 'kept'
    assert attack_cell(TINY, CELL, ['pgd_l2'], tmp_path) == 'attacked' and attack_cell(TINY, CELL, ['pgd_l2'], tmp_path) == 'kept'
    rows = read_rows(tmp_path)
    final = rows[rows.experiment == 'final'].set_index('metric').value
    assert 0 <= final.robust_accuracy <= final.clean_accuracy <= 1 and -1 <= final.ligs <= 1
    assert set(rows[rows.experiment == 'history'].epoch) == {1, 2}
    for column in ('config_hash', 'source_hash', 'torch', 'device', 'threads', 'seconds', 'profile'):
        assert rows[column].notna().all(), column
    stronger = edited(['data', 'digits', 'attacks', 'pgd_l2', 'eps'], 3.)
    assert train_cell(stronger, CELL, tmp_path, progress=False) == 'trained'  # it is also watched with this attack
    assert (tmp_path / 'runs' / CELL.id / 'weights.safetensors').read_bytes() == weights
    assert attack_cell(stronger, CELL, ['pgd_l2'], tmp_path) == 'attacked'


def test_killed_cell_is_trained_to_the_same_rows(tmp_path, monkeypatch):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    train_cell(TINY, CELL, whole, progress=False)
    from nrf_repro.training import loop as training
    real = training.save_state

    def save_then_die(*a):
        real(*a)
        raise KeyboardInterrupt
    monkeypatch.setattr(training, 'save_state', save_then_die)
    with pytest.raises(KeyboardInterrupt): train_cell(TINY, CELL, broken, progress=False)
    monkeypatch.undo()
    assert not (broken / 'runs' / CELL.id / 'config.json').exists()
    assert train_cell(TINY, CELL, broken, progress=False) == 'trained'
    a, b = (read_rows(f).drop(columns='seconds') for f in (whole, broken))
    assert a.equals(b)


def test_attacking_what_is_not_trained_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not trained: run network.ipynb first'): attack_cell(TINY, CELL, ['pgd_l2'], tmp_path)


def test_a_gpu_that_is_not_there_is_an_error_not_a_cpu():
    import torch
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    with pytest.raises(RuntimeError, match='asks for a GPU and there is none'): experiment.device_of(TINY | dict(device='cuda'))
    assert experiment.device_of(TINY | dict(device='auto')) == 'cpu'


def test_a_control_has_a_grid_of_its_own_and_a_recipe_may_differ_by_arch(tmp_path):
    file = tmp_path / 'mine.yaml'
    def loaded(p):
        file.write_text(yaml.safe_dump({k: v for k, v in p.items() if k != 'name'}))
        return load_profile(str(file))
    mixed = edited(['grids', 0, 'archs'], {'vgg11': .0625, 'vgg11_nf': .0625})
    with pytest.raises(ValueError, match=r'vgg11_nf is made to do without norm: give it a grid of its own, with norms: \[none\]'): loaded(mixed)
    with pytest.raises(ValueError, match="unknown key 'epoch'"):
        loaded(edited(['data', 'digits', 'recipes', 'standard', 'archs'], {'vgg11': {'epoch': 3}}))
    own = edited(['grids'], [*TINY['grids'], TINY['grids'][0] | dict(archs={'vgg11_nf': .0625}, norms=['none'], regimes=['standard'])])
    own['data']['digits']['recipes']['standard']['archs'] = {'vgg11_nf': {'epochs': 7}}
    kept = loaded(own)
    cells = [c for c in planned(kept) if c.regime == 'standard']
    assert {c.arch: experiment.recipe_of(kept, c).epochs for c in cells} == dict(vgg11=2, vgg11_nf=7)


@pytest.mark.parametrize('seed', [.5, float('nan'), float('inf'), True, None, 'one', '1.5', [1]])
def test_a_seed_that_is_no_whole_number_is_named(seed):
    with pytest.raises(ValueError, match='^seed=.* must be a whole number'): experiment.one_cell(load_profile('tiny'), seed=seed)


@pytest.mark.parametrize('seed', [3, 3., '3'])
def test_a_whole_seed_of_any_type_is_taken(seed): assert experiment.one_cell(load_profile('tiny'), seed=seed).seed == 3
