"""A time budget: pairs first, nothing that would not finish, and an archive that is complete whenever the run is killed."""
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nrf_repro.experiment import budget
from nrf_repro.experiment.archive import Packed, gather
from nrf_repro.experiment.budget import Schedule, default_parallel, in_pairs, is_done, seconds_of, within
from nrf_repro.cli import main
from nrf_repro.experiment.plan import plan, run_spec
from nrf_repro.experiment.profile import PARTS, NetworkId, load_profile
from nrf_repro.results.rows import read_rows

ROOT = Path(__file__).parent.parent
TINY = load_profile('tiny')
CIFAR = load_profile('cifar')
PLAN = plan(CIFAR, PARTS)


def spec(arch='vgg11', norm='none', seed=0, regime='standard'): return run_spec(CIFAR, NetworkId('cifar10', arch, 1., norm, regime, seed), ['pgd_l2'])


def pair(**more): return [spec(norm='none', **more), spec(norm='bn', **more)]


# --- arguments ---

@pytest.mark.parametrize('text, seconds', [('9m', 540), ('90s', 90), ('1h30m', 5400), ('2h', 7200), ('1h1m1s', 3661), (' 10m ', 600)])
def test_a_duration_in_seconds(text, seconds): assert seconds_of(text) == seconds


@pytest.mark.parametrize('text', ['', '9', 'nine', '-9m', '0s', '0h0m', '9.5m', '1m1h', 'm', '9m 3', '1e3s', '٣m', '9' * 5000 + 's', 'inf', '9M'])
def test_what_is_no_duration_is_named(text, capsys):
    assert main(['report', '--profile', 'tiny', f'--budget={text}']) == 2
    assert 'is no duration: write hours, minutes and seconds' in capsys.readouterr().err


@pytest.mark.parametrize('words, said', [
    (['--budget', '9m', '--parallel', '0'], '--parallel 0: give at least 1'),
    (['--budget', '9m', '--archive', 'a.tar'], 'name a file that ends with .zip'),
    (['--budget', '9m', '--archive', 'no/such/folder/a.zip'], 'there is no folder no/such/folder'),
    (['--budget', '9m', '--cores', '2'], '--budget does not go with --cores'),
    (['--budget', '9m', '--jobs', 'x'], '--budget does not go with --jobs'),
    (['--budget', '9m', '--dry-run'], '--budget does not go with --dry-run'),
    (['--parallel', '5'], '--parallel goes with --budget'),
    (['--archive', 'a.zip'], '--archive goes with --budget'),
    (['--render', '--jobs', 'x'], '--render runs nothing, so it does not go with --jobs')])
def test_words_that_do_not_go_together(words, said, capsys, monkeypatch):
    monkeypatch.setattr(budget, 'within', lambda *a: pytest.fail('something was run'))
    assert main(['report', '--profile', 'tiny', *words]) == 2
    assert said in capsys.readouterr().err


def test_places_of_each_device(monkeypatch):
    monkeypatch.setattr(budget, 'resolve_device', lambda profile: 'cuda')
    assert default_parallel(CIFAR) == 5
    monkeypatch.setattr(budget, 'resolve_device', lambda profile: 'cpu')
    assert default_parallel(TINY) == TINY.cores


# --- order ---

def test_pairs_first_seed_by_seed_and_every_network_once():
    specs = in_pairs(PLAN)
    assert set(specs) == set(PLAN) and len(specs) == len(PLAN)
    paired = [s for s in specs if s.network.norm in ('none', 'bn') and not s.network.arch.endswith(('_nf', '_fixup'))]
    others = specs[len(paired):]
    assert specs[:len(paired)] == paired and all(replace(a.network, norm='bn') == b.network for a, b in zip(paired[::2], paired[1::2]))
    for part in (paired, others): assert [s.network.seed for s in part] == sorted(s.network.seed for s in part)


# --- the schedule, with simulated processes and a simulated clock ---

class Fake:
    def __init__(self, world, spec):
        seconds = world.takes(spec)
        self.seconds, self.code = seconds if isinstance(seconds, tuple) else (seconds, 0)
        self.world, self.end, self.stopped = world, world.now + self.seconds, False

    def status(self): return self.code if self.world.now >= self.end else None
    def last_line(self): return 'out of memory'
    def stop(self): self.stopped = True


class World:
    "A device on which each network takes the seconds that `takes` says."
    def __init__(self, monkeypatch, specs, takes, seconds, parallel, packing=0.):
        self.takes, self.now, self.started, self.archives, self.packing, self.most = takes, 0., {}, [], packing, 0
        monkeypatch.setattr(budget, 'time', SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))
        self.schedule = Schedule(specs, parallel, seconds, self.start, self.pack)

    def start(self, spec):
        self.started[spec] = Fake(self, spec)
        self.most = max(self.most, len(self.schedule.running) + 1)
        return self.started[spec]

    def spend(self):
        self.schedule.spend()
        return self.schedule

    def sleep(self, seconds): self.now += .5

    def pack(self):
        self.now += self.packing
        self.archives.append(list(self.schedule.done))
        return self.archives[-1]


@pytest.fixture
def world(monkeypatch, capsys): return lambda *args, **more: World(monkeypatch, *args, **more)


def test_with_enough_time_all_are_done_and_packed_one_by_one(world):
    specs = [s for seed in range(5) for s in pair(seed=seed)]
    w = world(specs, lambda s: 100 + s.network.seed, 1000, 2)
    spent = w.spend()
    assert (spent.done, spent.failed, spent.stopped, spent.waiting) == (specs, {}, [], []) and w.most == 2 and list(w.started) == specs
    assert w.archives[-1] == spent.done and all(a == spent.done[:len(a)] for a in w.archives) and len(w.archives) >= 5


@pytest.mark.parametrize('seconds, done', [(99, 0), (101, 5), (199, 5), (202, 10)])
def test_what_would_not_finish_is_not_started(world, seconds, done):
    w = world([s for seed in range(5) for s in pair(seed=seed)], lambda s: 100, seconds, 5)
    spent = w.spend()
    assert len(spent.done) == done and len(w.started) == max(5, done)      # the first five are the measurement
    assert not spent.stopped or done == 0


def test_a_slow_kind_is_passed_over_and_a_fast_one_is_started(world):
    specs = [*pair(arch='resnet18'), *pair(), *pair(arch='resnet18', seed=1), *pair(seed=1)]
    w = world(specs, lambda s: 60 if s.network.arch == 'vgg11' else 200, 400, 2)
    spent = w.spend()
    assert set(spent.done) == {*specs[:4], *specs[6:]} and spent.waiting == specs[4:6] and not spent.stopped


def test_time_for_packing_is_kept_free(world):
    w = world([s for seed in range(10) for s in pair(seed=seed)], lambda s: 10, 100, 2, packing=4)
    spent = w.spend()
    assert w.now <= 100 and w.archives[-1] == spent.done and 4 <= len(spent.done) < 20


def test_a_failure_is_named_and_an_overrun_is_stopped(world):
    first, second = pair(), pair(seed=1)
    w = world(first + second, lambda s: (5, 1) if s == first[1] else 1000 if s.network.seed else 10, 100, 2)
    spent = w.spend()
    assert spent.done == first[:1] and spent.failed == {first[1]: 'out of memory'} and spent.stopped == second
    assert all(w.started[s].stopped for s in second)


def test_when_interrupted_the_processes_end(world):
    w = world(pair(), lambda s: 100, 1000, 2)
    def interrupt(seconds): raise KeyboardInterrupt
    budget.time.sleep = interrupt
    with pytest.raises(KeyboardInterrupt): w.spend()
    assert len(w.started) == 2 and all(process.stopped for process in w.started.values())


# --- for real ---

def alive(folder):
    "Processes of this package that work in this folder."
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try: words = path.read_bytes().split(b'\0')
        except OSError: continue
        if b'nrf_repro.experiment.budget' in words and any(word.endswith(folder.name.encode()) for word in words): found.append(int(path.parent.name))
    return found


@pytest.fixture
def own(tmp_path):
    "The profile tiny under a name of its own, and its build folder below reports/build."
    file = tmp_path / f'budget-{os.getpid()}.yaml'
    file.write_text((ROOT / 'reports/profiles/tiny.yaml').read_text())
    build = ROOT / 'reports/build' / file.stem
    yield file, build
    shutil.rmtree(build, ignore_errors=True)


@pytest.mark.skipif(not Path('/proc/self/cmdline').exists(), reason='looks for processes in /proc')
def test_killed_at_a_random_moment_the_archive_is_complete_and_a_second_call_goes_on(own, tmp_path, capsys):
    file, build = own
    archive, profile = tmp_path / 'out.zip', load_profile(str(file))
    words = ['report', '--profile', str(file), '--budget', '10m', '--parallel', '2', '--archive', str(archive)]
    run = subprocess.Popen([sys.executable, '-m', 'nrf_repro', *words], stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    try:
        line = next(line for line in run.stdout if '  done in ' in line)
        wait = time.monotonic() + 180
        while not alive(build): assert time.monotonic() < wait, 'no other network is started'
        while not archive.exists() and time.monotonic() < wait: time.sleep(.05)
        time.sleep(random.uniform(0, 2))
    finally: run.kill()
    said = line + run.communicate()[0]
    wait = time.monotonic() + 60
    while alive(build) and time.monotonic() < wait: time.sleep(.1)
    assert not alive(build), 'a process outlived its parent'

    done = [s for s in plan(profile) if is_done(s, build)]
    with zipfile.ZipFile(archive) as z:
        assert z.testzip() is None
        packed = {name.split('/')[1] for name in z.namelist() if name.startswith('runs/')}
    assert set(gather(archive, profile, tmp_path / 'first').copied) == packed <= {s.id for s in done}
    assert len(packed) >= max(1, said.count('  done in ') - 2)     # two run at once, so two at most are finished and not yet packed

    spent = within(profile, ('core',), build, time.monotonic() + 600, 2, archive)
    assert set(spent.done) == set(plan(profile)) - set(done) and len(spent.archive.runs) == len(spent.archive.networks) == 4
    assert not list(tmp_path.glob('.out.zip.*'))
    copied = gather(archive, profile, tmp_path / 'second')
    assert len(copied.copied) == len(copied.networks) == 4
    assert len(read_rows(tmp_path / 'second/runs')) == len(read_rows(build / 'runs'))

    lost = plan(profile)[0]
    (build / 'runs' / lost.id / 'final.jsonl').unlink()
    assert not is_done(lost, build) and all(is_done(s, build) for s in plan(profile)[1:])     # it is measured again and not packed as it is


def test_a_tiny_budget_starts_what_has_a_place_and_leaves_no_process(tmp_path, capsys):
    start = time.monotonic()
    spent = within(TINY, ('core',), tmp_path, time.monotonic() + 1, 1, tmp_path / 'archive.zip')
    assert time.monotonic() - start < 120 and not alive(tmp_path)
    assert (spent.done, spent.failed, spent.archive) == ([], {}, None) and not (tmp_path / 'archive.zip').exists()
    assert len(spent.stopped) <= 1 and len(spent.stopped) + len(spent.waiting) == 4      # one place, and it was not enough


def test_a_network_that_fails_is_named_with_the_reason(tmp_path, capsys, monkeypatch):
    grid = TINY.grids[0].as_dict() | dict(archs={'vgg11': 1 / 64}, norms=['bn'], regimes=['standard'])      # not a multiple of 1/32
    narrow = TINY.with_changes({'name': 'narrow', 'grids': [grid], 'studies': {}})
    spent = within(narrow, ('core',), tmp_path, time.monotonic() + 300, 1, tmp_path / 'archive.zip')
    assert len(spent.failed) == 1 and 'multiple of 1/32' in next(iter(spent.failed.values())) and spent.archive is None


def test_the_command_says_what_is_packed_and_how_to_render(tmp_path, capsys, monkeypatch, own):
    file, build = own
    monkeypatch.setattr(budget, 'within', lambda *a: SimpleNamespace(
        done=[spec()], failed={}, stopped=[], waiting=pair(seed=1), archive=Packed(tmp_path / 'a.zip', ('x',), (), 10**6)))
    assert main(['report', '--profile', str(file), '--budget', '30s', '--all']) == 0
    out = capsys.readouterr().out
    assert f'To render the report: nrf-repro report --profile {file} --render --all' in out and 'a.zip: 1 runs, 0 networks, 1.0 MB' in out
