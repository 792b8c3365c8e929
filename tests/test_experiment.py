"""Profiles are checked before they run; a finished run is kept, and one with other settings is not taken for it."""
import pytest
import yaml

from nrf_repro.experiment import profile as settings
from nrf_repro.experiment.plan import resolve_device, jobs, one_spec, plan, plan_table, run_spec
from nrf_repro.experiment.profile import PARTS, NetworkId, load_profile, profiles
from nrf_repro.experiment.run import measure_network, train_network
from nrf_repro.results.rows import config_hash, resolve_repo_path, read_rows

TINY = load_profile('tiny')
NETWORK = NetworkId('digits', 'vgg11', .0625, 'bn', 'standard', 0)


def spec_of(profile=TINY): return run_spec(profile, NETWORK, ['pgd_l2'])


def written(values, file):
    "A file with these settings."
    file.write_text(yaml.safe_dump(values))
    return str(file)


def edited(path, value):
    "The plain values of the profile with one of them changed."
    values = yaml.safe_load(resolve_repo_path('reports/profiles/tiny.yaml').read_text())
    at = values
    for key in path[:-1]: at = at[key]
    at[path[-1]] = value
    return values


@pytest.mark.parametrize('name', profiles())
def test_every_profile_is_valid_and_its_jobs_cover_its_plan_once(name):
    profile = load_profile(name)
    for parts in (('core',), PARTS):
        specs = [spec for job in jobs(profile, parts).values() for spec in job]
        assert {spec.network: spec.attacks for spec in specs} == {spec.network: spec.attacks for spec in plan(profile, parts)}
        assert len(specs) == len(plan(profile, parts))
    assert len({spec.id for spec in plan(profile, PARTS)}) == len(plan(profile, PARTS))
    assert plan_table(profile, PARTS).networks.sum() >= len(plan(profile, PARTS))


@pytest.mark.parametrize('path, value, words', [
    (['data', 'digits', 'trian'], 5, "unknown key 'trian'"), (['grids', 0, 'norms'], ['bm'], "unknown norm 'bm'"),
    (['grids', 0, 'archs'], {'vgg12': 1}, "unknown arch 'vgg12'"), (['grids', 0, 'dataset'], 'mnist', "unknown dataset 'mnist'; known are digits"),
    (['grids', 0, 'attacks'], ['fgsm'], "unknown attack 'fgsm'"), (['grids', 0, 'regimes'], ['free'], "unknown regime 'free'"),
    (['data', 'digits', 'recipes', 'standard', 'base'], 'digitz', "recipes.standard.base: unknown base 'digitz'; known are paper, "),
    (['data', 'digits', 'watch', 'attack'], 'apgd', "unknown attack 'apgd'"), (['data', 'digits', 'watch'], 3, 'must be keys and values')])
def test_a_mistake_in_a_profile_is_named(tmp_path, path, value, words):
    profile = {k: v for k, v in edited(path, value).items() if k != 'name'}
    file = tmp_path / 'mine.yaml'
    file.write_text(yaml.safe_dump(profile))
    with pytest.raises(ValueError, match=words) as e: load_profile(str(file))
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
    with pytest.raises(ValueError, match="'demo' is a profile of reports/profiles.*Give the file another name"): settings.check_name(str(copy_))
    (tmp_path / 'link').mkdir()
    (tmp_path / 'link/demo.yaml').symlink_to(ours.resolve())
    for fine in ('demo', ours, str(ours), tmp_path / 'link/demo.yaml', copy_.rename(tmp_path / 'mine.yaml'), tmp_path / 'gone/demo.yaml'):
        settings.check_name(fine)


def test_names_that_are_repeated_so_that_reading_a_profile_costs_no_torch():
    from nrf_repro import models
    from nrf_repro.models import norms
    from nrf_repro.training import loop as training
    from nrf_repro.training import recipe as recipes
    assert (settings.BASES, settings.ARCHS, settings.NORMS) == (tuple(recipes.RECIPES), models.ARCHS, norms.NORMS)


def test_the_hashes_change_with_the_settings_that_decide_them():
    def hashes(profile):
        spec = spec_of(profile)
        return config_hash(spec.train_config()), config_hash(spec.measure_config('0'))
    train, measure = hashes(TINY)
    changes = {'data.digits.attacks.cw_l2.eps': (False, False), 'data.digits.attacks.pgd_l2.eps': (True, True), 'data.digits.test': (False, True),
               'data.digits.recipes.standard.epochs': (True, False), 'data.digits.train': (True, False), 'data.digits.sigma': (True, True),
               'minutes': (False, False)}
    for path, expected in changes.items():
        t, m = hashes(TINY.with_changes({path: 77}))
        assert (t != train, m != measure) == expected, path


def test_a_network_is_trained_once_measured_once_and_again_when_settings_change(tmp_path):
    assert train_network(spec_of(), tmp_path, progress=False) == 'trained'
    weights = (tmp_path / 'runs' / NETWORK.id / 'weights.safetensors').read_bytes()
    assert train_network(spec_of(), tmp_path, progress=False) == 'kept'
    assert measure_network(spec_of(), tmp_path) == 'measured' and measure_network(spec_of(), tmp_path) == 'kept'
    rows = read_rows(tmp_path)
    final = rows[rows.experiment == 'final'].set_index('metric').value
    assert 0 <= final.robust_accuracy <= final.clean_accuracy <= 1 and -1 <= final.ligs <= 1
    assert set(rows[rows.experiment == 'history'].epoch) == {1, 2}
    for column in ('config_hash', 'source_hash', 'torch', 'device', 'threads', 'seconds', 'profile'):
        assert rows[column].notna().all(), column
    stronger = spec_of(TINY.with_changes({'data.digits.attacks.pgd_l2.eps': 3.}))
    assert train_network(stronger, tmp_path, progress=False) == 'trained'  # it is also watched with this attack
    assert (tmp_path / 'runs' / NETWORK.id / 'weights.safetensors').read_bytes() == weights
    assert measure_network(stronger, tmp_path) == 'measured'


def test_an_interrupted_training_ends_with_the_same_rows(tmp_path, monkeypatch):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    train_network(spec_of(), whole, progress=False)
    from nrf_repro.training import loop as training
    real = training.save_state

    def save_then_die(*a):
        real(*a)
        raise KeyboardInterrupt
    monkeypatch.setattr(training, 'save_state', save_then_die)
    with pytest.raises(KeyboardInterrupt): train_network(spec_of(), broken, progress=False)
    monkeypatch.undo()
    assert not (broken / 'runs' / NETWORK.id / 'config.json').exists()
    assert train_network(spec_of(), broken, progress=False) == 'trained'
    a, b = (read_rows(f).drop(columns='seconds') for f in (whole, broken))
    assert a.equals(b)


def test_attacking_what_is_not_trained_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not trained: run network.ipynb first'): measure_network(spec_of(), tmp_path)


def test_a_gpu_that_is_not_there_is_an_error_not_a_cpu():
    import torch
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    with pytest.raises(RuntimeError, match='asks for a GPU and there is none'): resolve_device(TINY.with_changes({'device': 'cuda'}))
    assert resolve_device(TINY.with_changes({'device': 'auto'})) == 'cpu'


def test_a_control_has_a_grid_of_its_own_and_a_recipe_may_differ_by_arch(tmp_path):
    def loaded(values): return load_profile(written(values, tmp_path / 'mine.yaml'))
    mixed = edited(['grids', 0, 'archs'], {'vgg11': .0625, 'vgg11_nf': .0625})
    with pytest.raises(ValueError, match=r'vgg11_nf has no normalisation layer. Give it a grid of its own, with norms: \[none\]'): loaded(mixed)
    with pytest.raises(ValueError, match="unknown key 'epoch'"):
        loaded(edited(['data', 'digits', 'recipes', 'standard', 'archs'], {'vgg11': {'epoch': 3}}))
    own = edited(['data', 'digits', 'recipes', 'standard', 'archs'], {'vgg11_nf': {'epochs': 7}})
    own['grids'].append(own['grids'][0] | dict(archs={'vgg11_nf': .0625}, norms=['none'], regimes=['standard']))
    specs = [spec for spec in plan(loaded(own)) if spec.network.regime == 'standard']
    assert {spec.network.arch: spec.recipe.epochs for spec in specs} == dict(vgg11=2, vgg11_nf=7)


@pytest.mark.parametrize('seed', [.5, float('nan'), True, None, 'one', -1, [1]])
def test_a_seed_that_is_no_whole_number_is_named(seed):
    with pytest.raises(ValueError, match='^seed=.* must be a whole number'): one_spec(TINY, seed=seed)


def test_new_training_removes_what_was_measured_before_and_kept_weights_are_not_lost(tmp_path, monkeypatch):
    run = tmp_path / 'runs' / NETWORK.id
    train_network(spec_of(), tmp_path, progress=False), measure_network(spec_of(), tmp_path)
    slower = spec_of(TINY.with_changes({'data.digits.recipes.standard.lr': .01}))
    with pytest.raises(ValueError, match='trained with other settings'): measure_network(slower, tmp_path)
    from nrf_repro.experiment import run as module
    real = module.save_model
    def full(*a): raise OSError('no space')
    monkeypatch.setattr(module, 'save_model', full)
    with pytest.raises(OSError, match='no space'): train_network(slower, tmp_path, progress=False)
    monkeypatch.setattr(module, 'save_model', real)
    assert not (run / 'weights-1.safetensors').exists()      # that of the settings before is gone
    assert train_network(slower, tmp_path, progress=False) == 'trained'
    assert (run / 'weights-1.safetensors').is_file() and not (run / 'final.jsonl').exists() and not (run / 'attack.json').exists()


def test_blocks_that_other_code_measured_are_measured_again(tmp_path, monkeypatch):
    from nrf_repro.experiment import run as module
    train_network(spec_of(), tmp_path, progress=False)
    def stop(*a, **k): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(module, 'ligs', stop)
        with pytest.raises(KeyboardInterrupt): measure_network(spec_of(), tmp_path)
    assert (tmp_path / 'runs' / NETWORK.id / 'attack.safetensors').is_file()
    seen, real = [], module.correct
    def counting(*a): return seen.append(1) or real(*a)
    monkeypatch.setattr(module, 'correct', counting)
    monkeypatch.setattr(module, 'source_hash', lambda: '0' * 12)
    assert measure_network(spec_of(), tmp_path) == 'measured' and seen


@pytest.mark.parametrize('path, value, says', [
    (('grids', 0, 'seeds'), [0, 0], '0 is given twice'), (('grids', 0, 'attacks'), ['pgd_l2', 'pgd_l2'], "'pgd_l2' is given twice"),
    (('data', 'digits', 'attacks', 'pgd_l2', 'eps'), -1, 'must be greater than or equal to 0'), (('studies', 'transfer', 'attack'), None, 'unknown attack')])
def test_settings_that_would_fail_after_training_are_errors_before_it(tmp_path, path, value, says):
    with pytest.raises(ValueError, match=says): load_profile(written(edited(path, value), tmp_path / 'mine.yaml'))


def test_a_change_of_what_is_not_there_is_named():
    for path in ('data.digitz.train', 'grids.7.seeds', 'threads.x'):
        with pytest.raises(ValueError, match='to change'): TINY.with_changes({path: 5})


def test_an_unknown_attack_is_named():
    with pytest.raises(ValueError, match="Unknown attack 'pgd': choose one of"): run_spec(TINY, NETWORK, ['pgd']).measure_config('x')
