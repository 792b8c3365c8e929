"""What is printed, what is published, and what a template accepts."""
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forked import command, piped
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


# --- what was meant, and what is refused ---

def refused(capsys, *words):
    "The message of a command that ends with status 2."
    try: status = main([str(word) for word in words])
    except SystemExit as e: status = e.code
    said = capsys.readouterr()
    assert status == 2 and 'Traceback' not in said.err
    return said.err


@pytest.mark.parametrize('words, message', [
    ('measure net digits --eps 8/255', 'unrecognized arguments: --eps 8/255. Did you mean --linf or --l2?'), ('measure net digits --cuda', 'Did you mean --device?'),
    ('measure net digits --lmit 3', 'Did you mean --limit or --linf?'), ('mesure net digits', 'Did you mean measure?'), ('report demo --core 3 --job x --nothing', '--nothing'),
    ('plan dmeo', "Unknown profile 'dmeo' (did you mean demo?): choose one of"), ('plan huge', "Unknown profile 'huge': choose one of"),
    ('compare dmeo cifar-small', "no profile that was run (did you mean demo?)"), ('verify dmeo', "'dmeo' is not there (did you mean demo?)"),
    ('compare demo tiny --silent', 'unrecognized arguments: --silent'), ('plan tiny --stict', 'unrecognized arguments: --stict.\n'),
    ('compare demo tiny --jsn', 'Did you mean --json?'), ('restore demo --json', 'unrecognized arguments: --json.'),
    ('plan tiny --profile demo', 'two profiles, tiny and demo: leave one of them out.'), ('measure vgg11 digits --rows - --out -', '--out - and --rows - would be mixed'),
    ('measure vgg11 digits --threads 0', '--threads 0: give at least 1')])
def test_a_misspelt_word_is_answered_with_what_was_meant(capsys, words, message): assert message in refused(capsys, *words.split())


def test_only_options_of_the_command_are_suggested():
    for name, command in cli.build_parser('all').commands.items():
        assert set(cli.build_parser(name).known()) <= {'--help', '--version'} | {s for action in command._actions for s in action.option_strings}


@pytest.mark.parametrize('device, message', [
    ('cuda', "device 'cuda': torch finds none on this machine. Leave the device out, or choose cpu."), ('gpu', "device 'cuda': torch finds none"),
    ('cuda:1', "device 'cuda:1': torch finds none"), ('abacus', "device 'abacus' is unknown: choose cpu, cuda, cuda:1 or mps."), ('cpu:7', "this machine has 1 of them")])
def test_a_device_that_is_not_there(capsys, monkeypatch, device, message):
    import torch
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert message in refused(capsys, 'measure', 'no_model', 'digits', '--device', device)


def test_a_profile_is_named_in_two_ways(capsys):
    assert main(['plan', 'tiny', '--no-costs']) == 0
    one = capsys.readouterr().out
    assert main(['plan', '--profile', 'tiny', '--no-costs']) == 0
    assert capsys.readouterr().out == one and 'Profile tiny' in one
    assert main(['plan', 'tiny', '--json']) == 0
    assert sum(line['networks'] for line in json.loads(capsys.readouterr().out)) == 4


MODELS = 'from torch import nn\ndef make_net(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))\n'


@pytest.fixture
def own(tmp_path):
    "A folder with a module of models and a folder of images."
    from PIL import Image
    (tmp_path / 'my_models.py').write_text(MODELS)
    for i, name in enumerate('ab'):
        (tmp_path / 'my_images' / name).mkdir(parents=True)
        for k in range(3): Image.new('RGB', (32, 32), (90 * i + k, 40, 90)).save(tmp_path / f'my_images/{name}/{k}.png')
    return tmp_path


def examples():
    "The commands in `nrf-repro --help`, without what they are for."
    return [line.split('   ')[0].split()[1:] for line in cli.EXAMPLES.splitlines() if line.startswith('  nrf-repro')]


@pytest.mark.parametrize('words', examples(), ids=' '.join)
def test_the_examples_of_the_help_run(own, words):
    said = command(*words, *(['--size', '32'] if 'my_images' in words else []), cwd=own)
    assert said.returncode == 0 and said.stdout + said.stderr, said.stderr[-1500:]


MEASURE = 'measure my_models:make_net my_images --size 32 --limit 4 --steps 1 --checks 0'.split()


def test_a_file_of_somebody_else_is_not_overwritten(own):
    (own / 'thesis.html').write_text('<html>years of work')
    (own / 'notes.jsonl').write_text('{"a": 1}')
    for option, name in (('--out', 'thesis.html'), ('--rows', 'notes.jsonl')):
        before, said = (own / name).read_bytes(), command(*MEASURE, option, name, cwd=own)
        assert said.returncode == 2 and f'nrf-repro: {option} {name} is a file that nrf_repro did not write: choose another name, or pass --force' in said.stderr
        assert (own / name).read_bytes() == before and 'Traceback' not in said.stderr
    for _ in range(2): assert command(*MEASURE, '--out', 'own.html', '--rows', 'own.jsonl', '--quiet', cwd=own).returncode == 0   # its own may be
    said = command(*MEASURE, '--out', 'thesis.html', '--force', '--quiet', cwd=own)
    assert said.returncode == 0 and not said.stdout and not said.stderr and 'generator' in (own / 'thesis.html').read_text()[:400]


def test_results_as_json_and_into_standard_output(own):
    found = json.loads(command(*MEASURE, '--json', cwd=own).stdout)
    assert {'name', 'facts', 'results', 'checks'} == set(found) and 0 <= found['results'][0]['value'] <= 1
    said = command(*MEASURE, '--rows', '-', cwd=own)
    assert said.returncode == 0 and len([json.loads(line) for line in said.stdout.splitlines()]) == len(found['results']) and '# my_models' in said.stderr
    assert '%|' not in said.stderr      # no bar without a terminal


def test_a_reader_that_has_seen_enough_is_no_error(own):
    with open(own / 'err', 'w+', encoding='utf-8') as err: assert piped([*MEASURE, '--rows', '-'], 'true', own, err) == (0, '')
    assert 'Traceback' not in (own / 'err').read_text() and 'nrf-repro: /dev' not in (own / 'err').read_text()


@pytest.mark.parametrize('words', ['compare tiny tiny', 'compare tiny tiny --json', 'report tiny --dry-run --folder new', 'plan tiny --no-costs', 'completion'])
@pytest.mark.parametrize('reader', ['true', 'head -1'])
def test_no_command_fails_because_its_reader_closes_the_pipe(tmp_path, words, reader):
    from made_up import made_up_rows
    from nrf_repro.results.rows import write_rows
    words = words.replace('compare tiny tiny', 'compare rows.jsonl rows.jsonl')
    write_rows(tmp_path / 'rows.jsonl', made_up_rows())
    status, seen = piped(words.split(), reader, tmp_path)
    assert status == 0 and 'Traceback' not in seen


def test_what_a_process_prints_is_printed_and_its_end_is_not_hidden(capfd):
    code = 'import sys; print("out"); print("err", file=sys.stderr); sys.exit(3)'
    assert cli._run_printed([sys.executable, '-c', code]) == 3
    assert capfd.readouterr() == ('out\n', 'err\n')


def test_an_interrupt_lets_the_started_process_end_its_work(tmp_path):
    "The process ends by itself on SIGTERM, which is what lets Snakemake end its jobs; only the parent is interrupted."
    (tmp_path / 'child.py').write_text('import pathlib, signal, sys, time\ndef end(*_): pathlib.Path("ended").touch(); sys.exit()\n'
                                       'signal.signal(signal.SIGTERM, end)\nprint("ready", flush=True)\ntime.sleep(60)\n')
    (tmp_path / 'parent.py').write_text('import signal, sys\nfrom nrf_repro import cli\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n'   # a job in the background ignores it
                                        'cli._run_printed([sys.executable, "child.py"])\n')
    parent = subprocess.Popen([sys.executable, 'parent.py'], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert parent.stdout.readline() == 'ready\n'
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=120)         # on a busy machine
    assert parent.returncode and (tmp_path / 'ended').is_file()


@pytest.mark.parametrize('command, said', [('report', 'Interrupted; what is finished is kept, run again to continue.\n'), ('plan', 'Interrupted.\n')])
def test_an_interrupt_says_whether_something_is_kept(monkeypatch, capsys, command, said):
    def interrupt(a): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'run', interrupt)
    assert cli.main([command, 'tiny']) == 130 and capsys.readouterr().err == said


def test_an_interrupted_measurement_says_what_was_written(own, monkeypatch, capsys):
    from nrf_repro.measure import command as measuring
    def interrupt(*a, **k): raise KeyboardInterrupt
    monkeypatch.chdir(own)
    monkeypatch.setattr(measuring, 'measure', interrupt)
    assert main([*MEASURE, '--rows', 'rows.jsonl']) == 130
    assert capsys.readouterr().err.endswith('Interrupted; nothing was written.\n') and not (own / 'rows.jsonl').exists()
    monkeypatch.undo()
    monkeypatch.chdir(own)
    from nrf_repro.measure.measurement import Measurement
    monkeypatch.setattr(Measurement, 'to_html', interrupt)
    assert main([*MEASURE, '--rows', 'rows.jsonl', '--out', 'page.html']) == 130
    assert capsys.readouterr().err.endswith('Interrupted; rows.jsonl was written before.\n') and (own / 'rows.jsonl').is_file()


def test_completion_knows_commands_and_options():
    script = main_output('completion')
    run = subprocess.run(['bash', '-c', f'{script}\nCOMP_WORDS=(nrf-repro measure --st); COMP_CWORD=2; _nrf_repro; echo "${{COMPREPLY[@]}}"'],
                         capture_output=True, text=True, check=True)
    assert run.stdout.split() == ['--standardize', '--steps', '--strict']


def main_output(*words):
    said = command(*words)
    assert said.returncode == 0 and not said.stderr, said.stderr
    return said.stdout


def test_a_log_of_the_user_is_not_taken_for_rows(tmp_path):
    file = tmp_path / 'log.jsonl'
    file.write_text('{"experiment": "baseline", "lr": 0.1}\n')
    with pytest.raises(FileExistsError, match='pass --force'): cli.check_own('--rows', file)


def test_jobs_look_for_data_where_the_plan_does(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, '_run_printed', lambda words, env, **more: seen.append(env['NRF_DATA']) or 0)
    monkeypatch.chdir(tmp_path)
    for given, place in ((None, 'data'), ('mine', 'mine')):
        monkeypatch.setenv('NRF_DATA', given) if given else monkeypatch.delenv('NRF_DATA', raising=False)
        cli.snakemake('tiny', ('core',), tmp_path / 'build', '*', 'report')
        assert seen.pop() == str(tmp_path / place)
