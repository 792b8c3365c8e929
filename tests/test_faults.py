"""Killed at random moments, out of room, read-only, two at once: the next run ends with the rows of an undisturbed one.

A process is killed by SIGKILL, which it cannot catch. Its work is done in a forked child where that is enough, and by the command line where the
whole pipeline is meant; `make test-faults` runs it; NRF_KILLS=20 repeats each kind of kill more often.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import yaml

from checkout import checkout
from counted import count
from nrf_repro.experiment import run as experiment
from nrf_repro.training import loop as training
from nrf_repro.data import decoding, loading
from nrf_repro.experiment.plan import run_spec
from nrf_repro.experiment.profile import NetworkId, load_profile
from nrf_repro.experiment.run import measure_network, run_all, train_network
from nrf_repro.experiment.store import directory_lock
from nrf_repro.models import build_model, save_model
from nrf_repro.results.rows import git_commit, read_rows, source_hash, write_rows, write_atomically

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get('NRF_KILLS', 0))
NETWORK = NetworkId('digits', 'vgg11', .0625, 'bn', 'adversarial', 0)
ATTACKS = ['pgd_l2', 'pgd_linf', 'cw_l2']


@pytest.fixture(scope='module')
def spec():
    "Enough epochs and blocks to be killed between them."
    source_hash(), git_commit()     # known to all children, whatever is edited meanwhile
    profile = load_profile('tiny').with_changes({'data.digits.test': 200, 'data.digits.recipes.adversarial.epochs': 5})
    return run_spec(profile, NETWORK, ATTACKS)


def rows(*places): return read_rows(*places).drop(columns='seconds')


def child(job):
    "Run job() in a forked process; its id."
    if pid := os.fork(): return pid
    try: job()
    except BaseException: os._exit(1)
    os._exit(0)


def status(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def watched(job, log):
    "The job, noting in a file each epoch and each block of images that it begins."
    def note(what):
        with open(log, 'a') as f: f.write(f'{what}\n')
    epoch, blocks = training.run_epoch, experiment.in_blocks
    def run_epoch(model, opt, train, recipe, n, *more):
        note(f'epoch {n}')
        return epoch(model, opt, train, recipe, n, *more)
    def in_blocks(values, x, y, name, kept, save):
        def noted(x, y):
            note(f'{name} {len(kept.get(name, ([],))[0])}')
            return values(x, y)
        return blocks(noted, x, y, name, kept, save)
    def work():
        training.run_epoch, experiment.in_blocks, experiment.BLOCK = run_epoch, in_blocks, 40
        job()
    return work


def killed_until_done(work, seconds, rng, kills):
    "Kill the work at random moments, so often, then let it end."
    for _ in range(kills):
        pid = child(work)
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if status(pid) == 0: break      # it was faster
    assert status(child(work)) == 0


@pytest.mark.parametrize('what', ['train', 'attack'])
def test_killed_at_random_it_goes_on_and_repeats_no_more_than_what_was_in_hand(what, spec, tmp_path):
    def job(folder): return (lambda: train_network(spec, folder, progress=False)) if what == 'train' else (lambda: measure_network(spec, folder))
    if what == 'attack': train_network(spec, tmp_path / 'trained', progress=False)
    def fresh(name):
        if what == 'attack': shutil.copytree(tmp_path / 'trained', tmp_path / name)
        return tmp_path / name
    start = time.perf_counter()
    assert status(child(watched(job(fresh('whole')), tmp_path / 'whole.log'))) == 0
    seconds, whole = time.perf_counter() - start, (tmp_path / 'whole.log').read_text().splitlines()
    assert len(set(whole)) == len(whole) and len(whole) >= 5
    rng, runs, each, repeated, worst = random.Random(what), 4 + KILLS, 5, 0, 0
    for i in range(runs):
        log = tmp_path / f'{i}.log'
        killed_until_done(watched(job(fresh(f'run-{i}')), log), seconds, rng, each)
        assert rows(tmp_path / f'run-{i}').equals(rows(tmp_path / 'whole'))
        begun = log.read_text().splitlines()
        assert set(begun) == set(whole)
        again = {step: begun.count(step) - 1 for step in whole}
        assert sum(again.values()) <= each                     # a kill costs one epoch, or one block of images
        repeated += sum(again.values())
        left = {p.name for p in (tmp_path / f'run-{i}/runs' / NETWORK.id).iterdir()}
        assert 'state.safetensors' not in left and 'attack.safetensors' not in left
    count('faults', f'{what}: killed at random moments', kills=runs * each, rows_that_differ=0, epochs_or_blocks_done_again=repeated)


def test_what_a_kill_leaves_half_written_is_never_read(tmp_path):
    "A writer that is killed again and again: whoever reads finds nothing, or one whole version."
    model = build_model('vgg11', 'bn', in_channels=1, width=1/16, seed=0)
    def write(i):
        write_atomically(tmp_path / 'text', f'{i}\n' * 200_000)
        save_model(model, tmp_path / 'weights.safetensors')
    rng, kills = random.Random(0), 30 + 10 * KILLS
    from nrf_repro.models import load_model
    for i in range(kills):
        def forever():
            n = 0
            while True: write(10 * i + n % 10); n += 1
        pid = child(forever)
        time.sleep(rng.uniform(0, .1))
        os.kill(pid, signal.SIGKILL)
        status(pid)
        if (tmp_path / 'text').exists(): assert len(set((tmp_path / 'text').read_text().splitlines())) == 1 and (tmp_path / 'text').read_text().count('\n') == 200_000
        if (tmp_path / 'weights.safetensors').exists(): load_model(tmp_path / 'weights.safetensors')
    count('faults', 'a writer killed at random moments', kills=kills, half_written_files_read=0)


# ---------------------------------------------------------------- two at once

def test_two_processes_train_and_attack_one_network_once(spec, tmp_path):
    def work():
        train_network(spec, tmp_path / 'two', progress=False)
        measure_network(spec, tmp_path / 'two')
    pids = [child(watched(work, tmp_path / 'log')) for _ in range(3)]
    assert [status(pid) for pid in pids] == [0, 0, 0]
    begun = (tmp_path / 'log').read_text().splitlines()
    assert len(begun) == len(set(begun))
    train_network(spec, tmp_path / 'one', progress=False), measure_network(spec, tmp_path / 'one')
    assert rows(tmp_path / 'two').equals(rows(tmp_path / 'one'))
    count('faults', 'processes at once in one folder', processes=3, epochs_or_blocks_done_again=0, rows_that_differ=0)


def test_a_lock_ends_with_its_process(tmp_path):
    def hold():
        with directory_lock(tmp_path): time.sleep(60)
    pid = child(hold)
    end = time.time() + 30
    def free():
        try:
            with directory_lock(tmp_path, wait=False): return True
        except RuntimeError as e:
            assert 'Another run is at work' in str(e)
            return False
    while free() and time.time() < end: time.sleep(.01)
    os.kill(pid, signal.SIGKILL)
    status(pid)
    assert free()


# ---------------------------------------------------------------- disks

@contextmanager
def disk(folder, size='4m'):
    "A file system of its own, of this size."
    folder.mkdir()
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder], capture_output=True, text=True)
    if made.returncode: pytest.skip(f'no right to mount a small file system: {made.stderr.strip()}')
    def again(options): assert subprocess.run(['mount', '-o', f'remount,{options}', folder]).returncode == 0
    try: yield again
    finally: subprocess.run(['umount', '-l', folder])


def train_and_attack(spec, folder):
    train_network(spec, folder, progress=False)
    measure_network(spec, folder)


@pytest.fixture(scope='module')
def undisturbed(spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    train_and_attack(spec, folder)
    return folder


@pytest.mark.parametrize('share', [0, .1, .3, .5, .7, .9])
def test_a_full_disk_is_an_error_in_one_line_and_with_room_it_goes_on(share, spec, undisturbed, tmp_path):
    "Room for a share of what is there in the end."
    room = f'{4 + int(share * sum(p.stat().st_size for p in undisturbed.rglob("*") if p.is_file()) / 4096) * 4}k'
    with disk(tmp_path / 'small', room) as resize:
        for _ in range(2):                                     # twice: what is left behind of the first does no harm
            try: train_and_attack(spec, tmp_path / 'small')
            except OSError as e: assert 'cannot be written' in str(e) and 'make room' in str(e) and str(tmp_path / 'small') in str(e) and '\n' not in str(e), e
            else: pytest.fail(f'{room} was enough')
        assert not [p for p in (tmp_path / 'small').rglob('*') if p.name.endswith('.tmp')]
        resize('size=8m')
        train_and_attack(spec, tmp_path / 'small')
        assert rows(tmp_path / 'small').equals(rows(undisturbed))
    count('faults', f'a disk with room for {share:.0%} of a run', full_disks=2, rows_that_differ=0)


def test_a_read_only_folder_is_an_error_in_one_line(spec, undisturbed, tmp_path):
    with disk(tmp_path / 'fixed', '8m') as again:
        again('ro')
        for write in (lambda: train_and_attack(spec, tmp_path / 'fixed'), lambda: write_rows(tmp_path / 'fixed/rows.jsonl', read_rows(undisturbed)),
                      lambda: save_model(build_model('vgg11', 'bn', width=1/32), tmp_path / 'fixed/w.safetensors')):
            with pytest.raises(OSError) as e: write()
            assert str(tmp_path / 'fixed') in str(e.value) and ('cannot be written' in str(e.value) or 'Read-only' in str(e.value))
        again('rw')
        train_and_attack(spec, tmp_path / 'fixed')
        assert rows(tmp_path / 'fixed').equals(rows(undisturbed))


def test_a_file_system_without_room_for_the_cache_is_said_and_does_no_harm(tmp_path, monkeypatch, capsys):
    import test_fuzz
    with disk(tmp_path / 'cache', '8k'):
        monkeypatch.setenv('NRF_CACHE', str(tmp_path / 'cache'))
        decoding.warn_once.cache_clear()
        file, read = test_fuzz.parquet(tmp_path)
        assert len(read()) == 6 and 'Decoded images are not kept' in capsys.readouterr().err and not [*(tmp_path / 'cache').iterdir()]


def test_lost_data_is_an_error_in_one_line_and_found_again_it_goes_on(tmp_path, monkeypatch):
    import test_fuzz
    monkeypatch.setenv('NRF_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('NRF_DATA', str(tmp_path))
    monkeypatch.setitem(loading.DOWNLOADS, 'cifar10', lambda split, root: (_ for _ in ()).throw(OSError('the network is unreachable')))
    file, _ = test_fuzz.parquet(tmp_path)
    shutil.copy(file, tmp_path / 'train-00000-of-00001.parquet')
    tiny = load_profile('tiny')
    data = tiny.data['digits'].as_dict() | dict(train=6, test=6, watch=dict(images=3, attack='pgd_l2', epochs=None))
    spec = run_spec(tiny.with_changes({'data.cifar10': data}), NetworkId('cifar10', 'vgg11', .0625, 'bn', 'standard', 0), ['pgd_l2'])
    train_network(spec, tmp_path / 'build', progress=False)
    file.rename(tmp_path / 'elsewhere')
    with pytest.raises(FileNotFoundError) as e: measure_network(spec, tmp_path / 'build')
    assert str(tmp_path) in str(e.value) and 'could not be downloaded' in str(e.value) and '\n' not in str(e.value)
    (tmp_path / 'elsewhere').rename(file)
    assert measure_network(spec, tmp_path / 'build') == 'measured'


def test_a_failing_network_does_not_stop_the_others(tmp_path, capsys):
    tiny = load_profile('tiny')
    specs = [run_spec(tiny, NetworkId('digits', 'vgg11', width, 'bn', 'standard', 0)) for width in (1/64, .0625, 1/48, .125)]
    done = run_all(specs, lambda spec: train_network(spec, tmp_path, progress=False))
    assert [isinstance(d, experiment.Failed) for d in done.values()] == [True, False, True, False]
    said = capsys.readouterr().out
    assert said.count('Traceback') == 2 and '4/4' in said
    with pytest.raises(RuntimeError, match='2 of 4 networks failed, the others are done: .*multiple of 1/32.*multiple of 1/32'): experiment.raise_on_failures(done)
    assert experiment.successful_runs(specs, done) == [specs[1], specs[3]]


@pytest.mark.parametrize('name', ['config.json', 'attack.json', 'state.safetensors', 'weights.safetensors'])
def test_a_damaged_file_of_a_run_is_named(name, spec, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / 'run')
    run = folder / 'runs' / NETWORK.id
    if name == 'state.safetensors': (run / 'config.json').unlink()
    if name == 'weights.safetensors': (run / 'attack.json').unlink()
    (run / name).write_bytes(b'{"half')
    with pytest.raises(ValueError) as e: train_and_attack(spec, folder)
    assert name in str(e.value) and 'delete it' in str(e.value) and '\n' not in str(e.value)
    (run / name).unlink()
    if name == 'weights.safetensors': (run / 'config.json').unlink()
    train_and_attack(spec, folder)
    assert rows(folder).equals(rows(undisturbed))


# ---------------------------------------------------------------- notebooks and the whole pipeline

def start(*words, log, root=ROOT):
    with open(log, 'a') as out:
        return subprocess.Popen([sys.executable, '-m', 'nrf_repro', *map(str, words)], stdout=out, stderr=subprocess.STDOUT, cwd=root,
                                env=os.environ | dict(PYTHONPATH=str(root)), start_new_session=True)


def session(pid):
    "All processes of a session, whatever group they are in."
    lines = subprocess.run(['ps', '-e', '-o', 'pid=,sess=,args='], capture_output=True, text=True).stdout.splitlines()
    return [(int(line.split()[0]), line) for line in lines if int(line.split()[1]) == pid]


def kill_all(run):
    "As when the power fails: all of them."
    for pid, _ in session(run.pid):
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
    run.wait()


def test_a_killed_kernel_is_an_error_in_one_line_and_its_notebook_is_kept(tmp_path):
    words = ['notebook', ROOT / 'reports/notebooks/network.ipynb', tmp_path / 'out.ipynb', '--parameters', json.dumps(dict(profile='tiny', folder=str(tmp_path))), '--done', tmp_path / 'done.json']
    run, end = start(*words, log=tmp_path / 'log'), time.time() + 300
    while not [*tmp_path.glob('runs/*/.lock')] and time.time() < end: time.sleep(.05)
    kernel, = [pid for pid, line in session(run.pid) if 'ipykernel' in line] or [pid for pid, line in children(run.pid) if 'ipykernel' in line]
    os.kill(kernel, signal.SIGKILL)
    assert run.wait(120) == 2
    said = (tmp_path / 'log').read_text()
    assert 'its kernel was killed' in said and 'Traceback' not in said and not (tmp_path / 'done.json').exists()
    assert nbformat.read(tmp_path / 'out.ipynb', 4).cells and not [*tmp_path.glob('.*.ipynb')]
    assert start(*words, log=tmp_path / 'log').wait(300) == 0 and json.loads((tmp_path / 'done.json').read_text())['notebook'] == 'network.ipynb'


def children(pid):
    lines = subprocess.run(['ps', '-e', '-o', 'pid=,ppid=,args='], capture_output=True, text=True).stdout.splitlines()
    own = [(int(line.split()[0]), line) for line in lines if int(line.split()[1]) == pid]
    return own + [c for p, _ in own for c in children(p)]


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory):
    "Two jobs of one network each, and the report of an undisturbed run, in a copy of the code: nobody edits that meanwhile."
    root = checkout(tmp_path_factory.mktemp('faults'))
    text = yaml.safe_load((ROOT / 'reports/profiles/tiny.yaml').read_text())
    text['grids'] = [text['grids'][0] | dict(regimes=['standard'], attacks=['pgd_l2'], job=['norm'])]
    text.pop('studies', None)
    file = root / 'faults.yaml'
    file.write_text(yaml.safe_dump(text))
    build, begun = root / 'reports/build/faults', time.time()
    assert report(file).wait(1200) == 0, file.with_suffix('.log').read_text()
    yield file, build, build.rename(root / 'whole'), time.time() - begun


def report(file, *more, log='faults.log'): return start('report', '--profile', file, *more, log=file.with_name(log), root=file.parent)


def until_done(file):
    "Start the report until no orphan is in its way and it ends; how often it was asked to wait."
    end, waits = time.time() + 1200, 0
    while time.time() < end:
        log = file.with_name('last.log')
        log.write_text('')
        if (code := report(file, log='last.log').wait(1200)) == 0: return waits
        assert code == 2 and 'Another run is at work' in log.read_text(), log.read_text()[-3000:]
        waits += 1
        time.sleep(2)
    raise AssertionError('another run is at work all the time')


# Tests of a group share what `pipeline` builds; two groups can run at once.
@pytest.mark.parametrize('how', [pytest.param('all', marks=pytest.mark.xdist_group('all are killed')),
                                 pytest.param('the first', marks=pytest.mark.xdist_group('the first is killed'))])
def test_a_report_killed_at_random_ends_as_if_it_had_not_been(how, pipeline):
    "All processes at once, or the first of them alone, whose children go on."
    file, build, whole, seconds = pipeline
    rng, kills = random.Random(how), (3 if how == 'all' else 1) + KILLS
    shutil.rmtree(build, ignore_errors=True)
    for _ in range(kills):
        run = report(file)
        try: run.wait(rng.uniform(.1, .8) * seconds)
        except subprocess.TimeoutExpired: pass
        if how == 'all': kill_all(run)
        elif run.poll() is None: run.kill()
        run.wait()
    waits = until_done(file)
    assert rows(build / 'rows.jsonl').equals(rows(whole / 'rows.jsonl')) and (build / 'report.html').stat().st_size > 10_000
    assert {p.name for p in (build / 'notebooks').glob('*.ipynb')} == {p.name for p in (whole / 'notebooks').glob('*.ipynb')}
    for notebook in (build / 'notebooks').glob('[!.]*.ipynb'): nbformat.read(notebook, 4)
    before = {p: p.stat().st_mtime_ns for p in (build / 'notebooks').glob('*.ipynb')}
    assert report(file).wait(1200) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (build / 'notebooks').glob('*.ipynb')}     # and then nothing is left to do
    count('faults', f'report: {how} killed at random moments', kills=kills, times_asked_to_wait=waits, rows_that_differ=0)


@pytest.mark.xdist_group('the first is killed')
def test_order_and_number_of_jobs_change_no_byte_but_times(pipeline):
    file, build, whole, _ = pipeline
    def text(folder): return [{k: v for k, v in json.loads(line).items() if k != 'seconds'} for line in (folder / 'rows.jsonl').read_text().splitlines()]
    shutil.rmtree(build, ignore_errors=True)
    for pattern in ('none', 'bn'):      # the other way round, one at a time
        assert report(file, '--jobs', pattern, '--cores', 1).wait(1200) == 0
    assert json.dumps(text(build)) == json.dumps(text(whole))
    count('reproducible', 'jobs one after the other, in another order', rows_compared=len(text(whole)), bytes_that_differ=0)
