"""The tiny profile through Snakemake and papermill for real: from nothing to a report, twice, changed, and broken."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from forked import command as nrf
from nrf_repro import __version__
from nrf_repro.cli import main, plan_text
from nrf_repro.experiment.notebooks import check_template
from nrf_repro.experiment.profile import load_profile
from nrf_repro.results.rows import read_rows

ROOT = Path(__file__).parent.parent
TEMPLATES = sorted(ROOT.glob('reports/notebooks/*.ipynb'))


def executed(build): return {p.name: p.stat().st_mtime_ns for p in (build / 'notebooks').glob('*.ipynb')}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A profile of our own, in a folder of its own below reports/build, run once."
    profile = yaml.safe_load((ROOT / 'reports/profiles/tiny.yaml').read_text())
    file = tmp_path_factory.mktemp('profiles') / f'tiny-{os.getpid()}.yaml'
    file.write_text(yaml.safe_dump(profile))
    build = ROOT / 'reports/build' / file.stem
    run = nrf('report', '--profile', file)
    assert run.returncode == 0, run.stdout + run.stderr
    yield file, build, run
    shutil.rmtree(build, ignore_errors=True)


def test_one_command_leaves_a_report_and_the_notebooks_that_made_it(tiny):
    file, build, run = tiny
    assert (build / 'report.html').stat().st_size > 10_000 and 'report.html' in run.stdout
    assert {'network-all.ipynb', 'tables.ipynb', 'living.ipynb', 'report.ipynb'} == set(executed(build))
    rows = read_rows(build / 'rows.jsonl')
    assert set(rows.experiment) == {'final', 'history'} and set(rows.norm) == {'none', 'bn'} and set(rows.regime) == {'standard', 'adversarial'}
    assert '4/4' in run.stderr and 'to go' in run.stderr  # how far it is, and how long it will take


def test_what_ran_is_what_was_asked_for(tiny):
    file, build, _ = tiny
    train = nbformat.read(build / 'notebooks/network-all.ipynb', 4)
    injected = [c for c in train.cells if 'injected-parameters' in c.metadata.get('tags', ())]
    assert len(injected) == 1 and str(file) in injected[0].source
    config = json.loads((build / 'runs/digits-vgg11-w0.0625-bn-standard-s0/config.json').read_text())
    assert config['norm'] == 'bn' and config['recipe']['epochs'] == 2


def test_unchanged_nothing_runs(tiny):
    file, build, _ = tiny
    before = executed(build)
    assert nrf('report', '--profile', file).returncode == 0 and executed(build) == before


def test_changed_only_what_depends_on_it_runs_and_a_failing_job_is_kept_and_named(tiny):
    "Another attack, and a job that fails: the networks are not trained again, and the report is written."
    file, build, _ = tiny
    before, trained = executed(build), {p: p.stat().st_mtime_ns for p in build.glob('runs/*/weights.safetensors')}
    original = file.read_text()
    profile = yaml.safe_load(original)
    profile['data']['digits']['attacks']['cw_linf']['steps'] = 4
    profile['grids'].append(profile['grids'][0] | dict(norms=['gn'], archs={'vgg11': 1/64}, job=['norm']))  # not a multiple of 1/32
    file.write_text(yaml.safe_dump(profile))
    try:
        run = nrf('report', '--profile', file)
        assert run.returncode != 0 and (build / 'report.html').exists()
        changed = {name for name, when in executed(build).items() if when != before.get(name)}
        assert changed == {'network-all.ipynb', 'network-gn.ipynb', 'tables.ipynb', 'living.ipynb', 'report.ipynb'}
        assert len(trained) == 4 and trained == {p: p.stat().st_mtime_ns for p in trained}
        rows = read_rows(build / 'rows.jsonl')
        assert set(rows[rows.attack == 'cw_linf'].steps) == {4} and set(rows[rows.attack == 'cw_l2'].steps) == {3}
        assert 'network.ipynb failed in cell' in run.stderr and 'multiple of 1/32' in run.stderr and 'Traceback' not in run.stderr
        notebook = nbformat.read(build / 'notebooks/network-gn.ipynb', 4)
        assert any(o.output_type == 'error' for c in notebook.cells if c.cell_type == 'code' for o in c.outputs)
        assert 'bn' in set(read_rows(build / 'rows.jsonl').norm)
    finally: file.write_text(original)


@pytest.mark.parametrize('name', ['demo', 'cifar-small', 'cifar', 'paper'])
def test_the_large_profiles_are_planned_without_being_run(name):
    run = subprocess.run([sys.executable, '-m', 'snakemake', 'report.html', 'measure', '--snakefile', ROOT / 'reports/Snakefile', '--directory',
                          ROOT / 'reports/build' / f'dry-{name}', '--config', f'profile={name}', 'parts=core,extension', '--cores', '2', '--dry-run',
                          '--nolock', '--scheduler', 'greedy'], capture_output=True, text=True, env=os.environ | dict(PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}'))
    shutil.rmtree(ROOT / 'reports/build' / f'dry-{name}', ignore_errors=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert 'rule network' in run.stdout + run.stderr and 'rule report' in run.stdout + run.stderr


@pytest.mark.parametrize('template', TEMPLATES, ids=lambda p: p.stem)
def test_templates_carry_their_tag_and_are_clean(template):
    check_template(template, {})
    notebook = nbformat.read(template, 4)
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == 'code')


def test_a_template_that_lost_its_tag_does_not_run(tmp_path):
    notebook = nbformat.read(ROOT / 'reports/notebooks/network.ipynb', 4)
    for c in notebook.cells: c.metadata.pop('tags', None)
    nbformat.write(notebook, tmp_path / 'network.ipynb')
    run = nrf('notebook', tmp_path / 'network.ipynb', tmp_path / 'out.ipynb', '--parameters', '{"norm": "none"}', '--done', tmp_path / 'done')
    assert run.returncode == 2 and '0 cells tagged `parameters`' in run.stderr and 'Traceback' not in run.stderr
    assert not (tmp_path / 'out.ipynb').exists() and not (tmp_path / 'done').exists()


@pytest.mark.parametrize('words, expected', [
    (['report', '--profile', 'huge'], "Unknown profile 'huge'"), (['report', '--data', 'no/such/folder'], 'no/such/folder is not there'),
    (['notebook', 'reports/notebooks/network.ipynb', 'o.ipynb', '--parameters', '{"nrom": "bn"}'], "no parameter 'nrom'"),
    (['notebook', 'reports/notebooks/network.ipynb', 'o.ipynb', '--parameters', 'norm=bn'], 'is not JSON'),
    (['notebook', 'reports/notebooks/nothing.ipynb', 'o.ipynb'], 'No notebook'),
    (['report', '--cores', '0', '--dry-run'], '--cores 0: give at least 1'), (['report', '--cores', '-3', '--dry-run'], '--cores -3: give at least 1'),
    (['report', '--jobs', 'transfer*', '--dry-run'], "'transfer*' matches only jobs of the extension (transfer"),
    (['report', '--jobs', 'study*', '--dry-run'], "is called 'study*': they are vgg11-none"), (['report', '--jobs', 'study*', '--dry-run'], ', and with --all ')])
def test_wrong_arguments_are_errors_of_one_line(capsys, monkeypatch, words, expected):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('NRF_DATA', '')
    assert main(words) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count('\n') == 1 and 'Traceback' not in said


@pytest.mark.parametrize('command', ['report --dry-run', 'plan --no-costs', 'publish', 'rows'])
def test_a_copy_is_not_taken_for_the_profile_of_its_name(command, tmp_path, capsys):
    shutil.copy(ROOT / 'reports/profiles/demo.yaml', tmp_path)
    assert main([*command.split(), '--profile', str(tmp_path / 'demo.yaml')]) == 2
    assert 'Give the file another name' in capsys.readouterr().err


def test_an_unknown_base_is_found_before_anything_is_planned(tmp_path, capsys):
    file = tmp_path / 'mine.yaml'
    file.write_text((ROOT / 'reports/profiles/tiny.yaml').read_text().replace('base: digits', 'base: digitz', 1))
    for command in ('plan --no-costs', 'report --dry-run'):
        assert main([*command.split(), '--profile', str(file)]) == 2
        said = capsys.readouterr().err
        assert 'mine.yaml line ' in said and "unknown base 'digitz'; known are paper, " in said and said.count('\n') == 1


@pytest.mark.parametrize('words, status, expected', [(['--version'], 0, f'nrf-repro {__version__}'), (['publish', '--all'], 2, 'unrecognized arguments: --all')])
def test_words_that_end_at_once(words, status, expected, capsys):
    with pytest.raises(SystemExit) as e: main(words)
    assert e.value.code == status and expected in ''.join(capsys.readouterr())


def test_a_plan_states_minutes_with_one_decimal_and_what_is_unknown_with_a_mark():
    tiny, demo = (plan_text(load_profile(name), ('core',)) for name in ('tiny', 'demo'))
    assert 'None' not in tiny and tiny.splitlines()[-1].endswith(' ?')
    assert '200 digits and four networks' in tiny and '\n4 networks;' in tiny
    minutes = [line.split()[-1] for line in demo.splitlines() if line.startswith('core ')]
    assert minutes and all(re.fullmatch(r'\d+\.\d', m) for m in minutes)


def test_two_runs_of_one_profile_do_not_meet(tiny):
    import fcntl
    file, build, _ = tiny
    with open(build / '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = nrf('report', '--profile', file)
    assert run.returncode == 2 and 'Another run is at work' in run.stderr
