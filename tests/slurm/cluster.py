"""The grid on a real Slurm of one node: a job is killed, the node goes down and comes back, and the rows are those of a local run.

`make test-slurm` runs it. It needs root, slurm-wlm and munge; the GPUs of the node are so in name only.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from checkout import checkout
from counted import count
from nrf_repro.results.rows import read_rows

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).with_name('one_node.sh')


def sh(*words): return subprocess.run([str(w) for w in words], capture_output=True, text=True)
def queue(): return [line.split() for line in sh('squeue', '-h', '-t', 'all', '-o', '%i %T %P %l').stdout.splitlines()]
def gpus(job): return re.findall(r'TresPer\w+=\S*gpu[:=](\d+)', sh('scontrol', 'show', 'job', job, '-o').stdout)
def node(state): assert sh('scontrol', 'update', f'nodename={os.uname().nodename}', f'state={state}', 'reason=test').returncode == 0


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    if not shutil.which('slurmctld') or not shutil.which('munged') or os.geteuid(): pytest.skip('needs root, slurm-wlm and munge')
    folder = tmp_path_factory.mktemp('slurm')
    started = sh(NODE, 'start', folder)
    if started.returncode: pytest.skip(f'Slurm does not start here: {started.stderr}')
    yield folder
    sh(NODE, 'stop', folder)


@pytest.fixture(scope='module')
def impatient(tmp_path_factory):
    "The shipped profile, asking more often how the jobs are."
    shipped = yaml.safe_load((ROOT / 'reports/slurm/config.yaml').read_text())
    folder = tmp_path_factory.mktemp('profile')
    (folder / 'config.yaml').write_text(yaml.safe_dump(shipped | {'slurm-init-seconds-before-status-checks': 5, 'seconds-between-status-checks': 5, 'latency-wait': 10}))
    return folder


@pytest.fixture(scope='module')
def grid(tmp_path_factory):
    "Four jobs of one network each."
    profile = yaml.safe_load((ROOT / 'reports/profiles/tiny.yaml').read_text())
    profile['device'] = 'auto'     # so that a GPU is asked for
    profile['grids'][0] |= dict(job=['norm', 'regime'], seconds=5)
    for recipe in profile['data']['digits']['recipes'].values(): recipe['epochs'] = 4
    root = checkout(tmp_path_factory.mktemp('grid'))
    file = root / 'grid.yaml'
    file.write_text(yaml.safe_dump(profile))
    return file, root / 'reports/build/grid'


def rows(folder): return read_rows(folder / 'rows.jsonl').drop(columns='seconds')


def start(file, *more):
    env = os.environ | dict(PYTHONPATH=str(file.parent))      # the jobs' too
    with open(file.with_suffix('.log'), 'w') as log:
        return subprocess.Popen([sys.executable, '-m', 'nrf_repro', 'report', '--profile', file, *map(str, more)], cwd=file.parent, env=env, stdout=log,
                                stderr=subprocess.STDOUT, start_new_session=True)


def until(done, seconds, what):
    end = time.time() + seconds
    while time.time() < end:
        if found := done(): return found
        time.sleep(.5)
    raise AssertionError(f'{what} did not happen in {seconds} s: {queue()}')


def test_rows_are_those_of_a_local_run_through_a_killed_job_and_a_lost_node(cluster, impatient, grid):
    file, build = grid
    assert start(file).wait(900) == 0, file.with_suffix('.log').read_text()
    local = build.rename(build.with_name(f'{build.name}-local'))
    run = start(file, '--cluster', impatient)
    try:
        def running(): return [job for job, state, *_ in queue() if state == 'RUNNING']
        first = until(running, 200, 'a job')[0]
        until(lambda: [*build.glob('runs/*/.lock')], 100, 'training')
        asked = {tuple(job[2:]) for job in queue()}
        assert asked == {('gpu', '6:00')}, asked                         # four times 5 s, and five minutes
        assert gpus(first) == ['1'], sh('scontrol', 'show', 'job', first, '-o').stdout
        assert sh('scancel', '--signal=KILL', first).returncode == 0  # one
        until(lambda: first not in running(), 60, 'the end of the killed job')
        second = until(running, 100, 'another job')[0]
        time.sleep(4)
        node('down')                                                  # two: the node takes its jobs with it
        until(lambda: not running(), 60, 'the loss of the node')
        time.sleep(3)
        node('resume')
        assert run.wait(900) == 0
    except BaseException:
        for log in (file.with_suffix('.log'), cluster / 'slurmctld.log', cluster / 'slurmd.log', *build.glob('.snakemake/slurm_logs/*/*/*.log')): print(log, log.read_text()[-3000:])
        raise
    finally:
        if run.poll() is None: os.killpg(run.pid, signal.SIGKILL)
    assert rows(build).equals(rows(local)) and (build / 'report.html').is_file()
    said = file.with_suffix('.log').read_text()
    submitted = len(re.findall('has been submitted with SLURM jobid', said))
    count('cluster', 'one node, four networks', jobs_submitted=submitted, jobs_killed=1, node_down_and_up=1, rows_compared=len(rows(build)), rows_that_differ=0)


def test_a_job_that_fails_is_named_and_its_notebook_kept(cluster, impatient, grid):
    file, build = grid
    profile = yaml.safe_load(file.read_text())
    profile['grids'].append(profile['grids'][0] | dict(norms=['gn'], regimes=['standard'], archs={'vgg11': 1/64}))  # not a multiple of 1/32
    file.write_text(yaml.safe_dump(profile))
    run = start(file, '--cluster', impatient)
    assert run.wait(600) != 0 and (build / 'report.html').is_file()
    assert 'multiple of 1/32' in (build / 'notebooks/network-gn-standard.ipynb').read_text()
