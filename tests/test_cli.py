"""What is printed, what is published, and what a template accepts."""
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nrf_repro import cli
from nrf_repro.cli import _safe_printing, main
from nrf_repro.experiment.notebooks import check_parameters, portable, _without_paths

ROOT = Path(__file__).parent.parent


def notebook(tmp_path, *texts):
    file = tmp_path / 'n.ipynb'
    file.write_text(json.dumps(dict(cells=[dict(cell_type='code', source=list(texts), outputs=[dict(output_type='stream', name='stdout', text=list(texts))])])))
    return file


@pytest.mark.parametrize('home', ['/', '', '//', 'relative', '/no/such/home'])
def test_an_odd_home_changes_nothing_in_a_notebook(tmp_path, monkeypatch, home):
    monkeypatch.setenv('HOME', home)
    texts = ['x = a / b\n', 'https://a.org/x', './relative/x', 'a.b', '"/usr/lib"']
    cells = json.loads(portable(notebook(tmp_path, *texts)))['cells']
    assert cells[0]['source'] == cells[0]['outputs'][0]['text'] == texts


def test_no_home_at_all(tmp_path, monkeypatch):
    import pwd
    def nobody(uid): raise KeyError(uid)
    monkeypatch.setattr(pwd, 'getpwuid', nobody)
    monkeypatch.delenv('HOME')
    assert 'a / b' in portable(notebook(tmp_path, 'a / b'))


@pytest.mark.parametrize('said, left', [
    ('/home/me/run/x', 'run/x'), ('"/home/me"', '"."'), ('cd /home/me;', 'cd .;'), ('\n/home/me/x\n', '\nx\n'), ('(/home/me/x)', '(x)'), ('PATH=/home/me/bin:/home/me', 'PATH=bin:.'),
    ('/home/me/', './'), ('/home/mean/x', '/home/mean/x'), ('/srv/home/me/x', '/srv/home/me/x'), ('/home/me-2/x', '/home/me-2/x'), ('/home/me.old/x', '/home/me.old/x')])
def test_only_whole_parts_of_a_path_are_taken(said, left): assert _without_paths(said, ['/home/me']) == left


def test_the_home_and_the_checkout_are_taken_out(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    text = portable(notebook(tmp_path, f'{tmp_path}/runs/a\n', f'{cli.Path(cli.__file__).parent.parent}/reports'))
    assert str(tmp_path) not in text and json.loads(text)['cells'][0]['source'] == ['runs/a\n', 'reports']


def test_characters_that_a_terminal_lacks_become_question_marks(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr(cli, 'run', lambda a: print('PGD \u2113\u221e \udcff'))
    assert main(['plan']) is None and out.buffer.getvalue() == b'PGD ?? ?\n'


def test_a_closed_pipe_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    out = os.fdopen(writer, 'w')
    monkeypatch.setattr(sys, 'stdout', out)
    with _safe_printing():
        for _ in range(3): print('x' * 100_000, flush=True)
    out.close()


def test_a_closed_pipe_ends_the_command_without_a_traceback():
    run = subprocess.run(f'{sys.executable} -m nrf_repro plan --all --no-costs | true; echo ${{PIPESTATUS[0]}}', shell=True, executable='/bin/bash',
                         env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == '0\n' and not run.stderr


def test_a_process_without_a_terminal_still_works():
    run = subprocess.run([sys.executable, '-m', 'nrf_repro', 'plan', '--profile', 'tiny', '--no-costs'], close_fds=True,
                         env=os.environ | dict(PYTHONPATH=str(ROOT)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    assert run.returncode == 0 and not run.stderr


def test_an_error_is_printed_in_ascii_as_well(monkeypatch):
    err = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stderr', err)
    assert main(['plan', '--profile', 'h\u00fcge']) == 2
    assert b"Unknown profile 'h?ge'" in err.buffer.getvalue()


class Kernel:
    def __init__(self, **values): self.user_ns = values


@pytest.mark.parametrize('values, error', [
    (dict(norm='bn', seed=0), None), (dict(norm=None, seed=1), None), (dict(norm='bn', seed=.5), 'seed=0.5: pass int'),
    (dict(norm='bn', seed=True), 'seed=True'), (dict(norm=3, seed=0), r'norm=3: pass str \| None')])
def test_types_of_a_templates_parameters_are_checked(monkeypatch, values, error):
    import IPython
    monkeypatch.setattr(IPython, 'get_ipython', lambda: Kernel(**values))
    if error is None: return check_parameters(norm=str | None, seed=int)
    with pytest.raises(TypeError, match=error): check_parameters(norm=str | None, seed=int)


def test_a_parameter_that_a_template_does_not_have_is_an_error(monkeypatch):
    import IPython
    monkeypatch.setattr(IPython, 'get_ipython', lambda: Kernel(norm='bn', seed=0, In=['', '# Parameters\nsed = 1\n']))
    with pytest.raises(ValueError, match="no parameter 'sed': this notebook takes norm, seed"): check_parameters(norm=str | None, seed=int)


@pytest.mark.parametrize('path', sorted((ROOT / 'reports/notebooks').glob('*.ipynb')), ids=lambda p: p.stem)
def test_every_template_checks_all_its_parameters_first(path):
    import ast
    cells = [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    assert cells[0]['metadata']['tags'] == ['parameters']
    names = [n.targets[0].id for n in ast.parse(''.join(cells[0]['source'])).body]
    call = ast.parse(''.join(cells[1]['source'])).body[-1].value
    assert call.func.id == 'check_parameters' and [k.arg for k in call.keywords] == names
