"""A time budget: pairs first, nothing that would not finish, and an archive that is whole whenever the run is killed."""
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from nrf_repro.experiment import budget
from nrf_repro.experiment.archive import gather
from nrf_repro.experiment.budget import Pace, Schedule, Spent, in_pairs, is_done, parse_budget, seconds_of, within, work_of
from nrf_repro.cli import main
from nrf_repro.experiment.runs import PARTS, Cell, load_profile, planned
from nrf_repro.results.rows import read_rows

ROOT = Path(__file__).parent.parent
TINY = load_profile('tiny')
CIFAR = load_profile('cifar')
PLAN = planned(CIFAR, PARTS)


def cell(arch='vgg11', norm='none', seed=0, regime='standard'): return Cell('cifar10', arch, 1., norm, regime, seed)


def pair(**more): return cell(norm='none', **more), cell(norm='bn', **more)


# --- words ---

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
    monkeypatch.setattr(budget, 'device_of', lambda profile: 'cuda')
    assert budget.places(CIFAR) == 5
    monkeypatch.setattr(budget, 'device_of', lambda profile: 'cpu')
    assert budget.places(TINY) == TINY['cores']


# --- order ---

def test_pairs_first_seed_by_seed_and_every_network_once():
    units = in_pairs(list(PLAN))
    assert sorted(c for unit in units for c in unit) == sorted(PLAN)
    pairs, others = [u for u in units if len(u) == 2], [u for u in units if len(u) == 1]
    assert units == pairs + others and all(replace(a, norm='bn') == b and a.norm == 'none' for a, b in pairs)
    for part in (pairs, others): assert [u[0].seed for u in part] == sorted(u[0].seed for u in part)
    assert {c for u in others for c in u} == {c for c in PLAN if c.norm in ('in', 'ln', 'gn') or c.arch.endswith(('_nf', '_fixup'))}


def test_the_core_alone_unless_all_is_asked_for():
    assert {c for unit in in_pairs(list(planned(CIFAR))) for c in unit} == set(planned(CIFAR)) < set(PLAN)


# --- the schedule, with simulated processes and a simulated clock ---

class Fake:
    def __init__(self, world, cell):
        seconds, self.code = world.takes(cell) if isinstance(world.takes(cell), tuple) else (world.takes(cell), 0)
        self.world, self.end, self.stopped = world, world.now + seconds, False

    def status(self): return self.code if self.world.now >= self.end else None
    def is_ready(self): return True
    def said(self): return 'out of memory'
    def stop(self): self.stopped = True


@cache
def work(arch): return work_of(CIFAR, cell(arch), PLAN[cell(arch)])


class World:
    "A device on which each network takes the seconds that `takes` says."
    def __init__(self, units, takes, seconds, parallel, packing=0., fresh=lambda cell: True):
        self.takes, self.now, self.started, self.archives, self.packing, self.most = takes, 0., {}, [], packing, 0
        pace = Pace({c: work(c.arch) for unit in units for c in unit})
        self.schedule = Schedule(units, pace, parallel, seconds, self.start, fresh, self.pack, lambda: self.now, self.sleep, lambda *a, **k: None)

    def start(self, cell):
        self.started[cell] = self.now
        self.most = max(self.most, len(self.schedule.running) + 1)
        return Fake(self, cell)

    def sleep(self, seconds): self.now += .5

    def pack(self):
        self.now += self.packing
        self.archives.append(tuple(self.schedule.done))
        return self.archives[-1]


def test_long_enough_all_are_done_and_packed_one_by_one():
    units = [pair(seed=s) for s in range(5)]
    world = World(units, lambda c: 100 + c.seed, 1000, 2)
    spent = world.schedule.spend()
    assert spent == Spent(tuple(c for u in units for c in u), {}, (), ()) and world.most == 2
    assert list(world.started) == [c for u in units for c in u]
    assert world.archives[-1] == spent.done and all(a == spent.done[:len(a)] for a in world.archives) and len(world.archives) >= 5


@pytest.mark.parametrize('seconds, done', [(99, 0), (101, 5), (199, 5), (202, 10)])
def test_what_would_not_finish_is_not_started(seconds, done):
    world = World([pair(seed=s) for s in range(5)], lambda c: 100, seconds, 5)
    spent = world.schedule.spend()
    assert len(spent.done) == done and len(world.started) == max(5, done)      # the first five are the measurement
    assert not spent.stopped or done == 0


def test_a_pair_is_started_as_a_whole_or_not_at_all():
    for parallel in range(1, 8):
        for seconds in (150, 230, 310, 450, 620):
            units = [pair(seed=s) for s in range(6)]
            world = World(units, lambda c: 100, seconds, parallel)
            spent = world.schedule.spend()
            broken = [u for u in units if len({c for c in u if c in spent.done}) == 1]
            assert len(broken) <= (seconds < 210 and parallel % 2)     # only while nothing is measured, with one place left
            assert not spent.stopped and world.now <= seconds


def test_a_dear_kind_is_passed_over_and_a_cheap_one_taken():
    units = [pair(), pair(arch='resnet18'), pair(seed=1)]
    world = World(units, lambda c: 60 if c.arch == 'vgg11' else 400, 150, 2)
    assert world.schedule.spend() == Spent((*units[0], *units[2]), {}, (), units[1])


def test_a_kind_that_was_measured_goes_by_its_own_pace():
    units = [pair(), pair(arch='resnet18'), pair(arch='resnet18', seed=1)]
    world = World(units, lambda c: 60 if c.arch == 'vgg11' else 70, 60 + 70 + 75, 4)   # by multiply-adds alone it would not fit
    assert len(world.schedule.spend().done) == 6


def test_a_resumed_network_is_no_measurement():
    units = [pair(seed=s) for s in range(3)]
    world = World(units, lambda c: 1 if c == units[0][0] else 100, 150, 2, fresh=lambda c: c not in units[0])
    world.schedule.spend()
    assert world.schedule.pace.seen == [] or all(c not in units[0] for c, *_ in world.schedule.pace.seen)


def test_time_for_packing_is_kept_free():
    units = [pair(seed=s) for s in range(10)]
    world = World(units, lambda c: 10, 100, 2, packing=4)
    spent = world.schedule.spend()
    assert world.now <= 100 and world.archives[-1] == spent.done and 4 <= len(spent.done) < 20


def test_a_failure_is_named_and_an_overrun_is_stopped():
    units = [pair(), pair(seed=1)]
    world = World(units, lambda c: (5, 1) if c == units[0][1] else 1000 if c.seed else 10, 100, 2)
    spent = world.schedule.spend()
    assert spent.done == units[0][:1] and spent.failed == {units[0][1]: 'out of memory'} and set(spent.stopped) <= set(units[1])
    assert all(r.process.stopped for r in world.schedule.running)


def test_interrupted_the_processes_end():
    world = World([pair()], lambda c: 100, 1000, 2)
    def interrupt(seconds): raise KeyboardInterrupt
    world.schedule.sleep = interrupt
    with pytest.raises(KeyboardInterrupt): world.schedule.spend()
    assert len(world.schedule.running) == 2 and all(r.process.stopped for r in world.schedule.running)


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
def test_killed_at_a_random_moment_the_archive_is_whole_and_a_second_call_goes_on(own, tmp_path, capsys):
    file, build = own
    archive, profile = tmp_path / 'out.zip', load_profile(str(file))
    words = ['report', '--profile', str(file), '--budget', '10m', '--parallel', '2', '--archive', str(archive)]
    run = subprocess.Popen([sys.executable, '-m', 'nrf_repro', *words], stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    try:
        line = next(line for line in run.stdout if line.startswith('1/4'))
        time.sleep(random.uniform(0, 2))
        assert alive(build)
    finally: run.kill()
    said = line + run.communicate()[0]
    wait = time.monotonic() + 20
    while alive(build) and time.monotonic() < wait: time.sleep(.1)
    assert not alive(build), 'a process outlived its parent'

    done = [c for c, attacks in planned(profile).items() if is_done(profile, c, attacks, build / 'runs' / c.id)]
    packed = set()
    if archive.exists():
        with zipfile.ZipFile(archive) as z:
            assert z.testzip() is None
            packed = {name.split('/')[1] for name in z.namelist() if name.startswith('runs/')}
        assert set(gather(archive, profile, tmp_path / 'first').copied) == packed <= {c.id for c in done}
    assert len(packed) >= said.count('trained and measured') - 1     # one at most was being packed

    spent, again = within(profile, ('core',), build, parse_budget(profile, build, '10m', 2, archive))
    assert set(spent.done) == set(planned(profile)) - set(done) and len(again.runs) == len(again.networks) == 4
    assert not list(tmp_path.glob('.out.zip.*'))
    copied = gather(archive, profile, tmp_path / 'second')
    assert len(copied.copied) == len(copied.networks) == 4
    assert len(read_rows(tmp_path / 'second/runs')) == len(read_rows(build / 'runs'))


def test_a_tiny_budget_starts_what_has_a_place_and_leaves_no_process(tmp_path, capsys):
    start = time.monotonic()
    spent, packed = within(TINY, ('core',), tmp_path, parse_budget(TINY, tmp_path, '1s', 1))
    assert time.monotonic() - start < 30 and not alive(tmp_path)
    assert (spent.done, spent.failed, packed) == ((), {}, None) and not (tmp_path / 'archive.zip').exists()
    assert len(spent.stopped) <= 1 and len(spent.stopped) + len(spent.waiting) == 4      # one place, and it was not enough


def test_a_network_that_fails_is_named_with_the_reason(tmp_path, capsys, monkeypatch):
    profile = yaml.safe_load((ROOT / 'reports/profiles/tiny.yaml').read_text())
    profile['grids'][0] |= dict(archs={'vgg11': 1 / 64}, norms=['bn'], regimes=['standard'])      # not a multiple of 1/32
    profile.pop('studies')
    monkeypatch.setattr(budget, 'work_of', lambda *a: 1)
    spent, packed = within(profile | dict(name='narrow'), ('core',), tmp_path, parse_budget(profile, tmp_path, '5m', 1))
    assert len(spent.failed) == 1 and 'multiple of 1/32' in next(iter(spent.failed.values())) and packed is None


def test_the_command_says_what_is_packed_and_how_to_render(tmp_path, capsys, monkeypatch, own):
    file, build = own
    monkeypatch.setattr(budget, 'within', lambda *a: (Spent((cell(),), {}, (), pair(seed=1)), budget.Packed(tmp_path / 'a.zip', ('x',), (), 10**6)))
    rendered = []
    monkeypatch.setattr(budget, '_render', lambda words, seconds: rendered.append(words) or False)
    assert main(['report', '--profile', str(file), '--budget', '30s', '--all']) == 0
    out = capsys.readouterr().out
    assert f'To render it: nrf-repro report --profile {file} --render --all' in out and 'a.zip: 1 runs, 0 networks, 1.0 MB' in out and not rendered
    assert main(['report', '--profile', str(file), '--budget', '5m']) == 0
    assert rendered == [['report', '--profile', str(file), '--render']]
