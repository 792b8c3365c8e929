"""Networks that a study trains: one key decides what is kept, and an interrupted training resumes."""
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nrf_repro.studies import base as studies
from nrf_repro.experiment.runs import load_profile
from nrf_repro.studies.regularization import LigsLoss
from nrf_repro.studies.base import Run
from nrf_repro.training.loop import Monitor
from nrf_repro.training.recipe import cross_entropy
from nrf_repro.training.state import AnotherRun

ROOT = Path(__file__).parent.parent


def run_in(folder): return Run(load_profile('tiny'), 'features', 0, Path(folder), progress=False)


def ready(run, seed=0):
    "(untrained network, images, recipe) of the first cell."
    cell = replace(run.cells()[0], seed=seed)
    return run.untrained(cell), run.images('train'), replace(run.recipe(cell), seed=0)


def equal(a, b): return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def files(folder): return {p: p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def squares(model, x, y): return cross_entropy(model, x, y) ** 2


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    "A study's folder with one network in it."
    run = run_in(tmp_path_factory.mktemp('studies'))
    return run, run.trained('net', *ready(run), loss=LigsLoss(1., .05))[0]


@pytest.mark.parametrize('change, named', [
    (dict(loss=cross_entropy), 'loss'), (dict(loss=squares), 'loss'), (dict(loss=LigsLoss(2., .05)), r'loss\.lam \(1\.0 there, 2\.0 now\)'),
    (dict(loss=LigsLoss(1., .06)), r'loss\.sigma'), (dict(loss=LigsLoss(1., .05, 3)), r'loss\.seed'), (dict(seed=9), 'initial weights'),
    (dict(lr=.01), r'recipe\.lr'), (dict(limit=64), 'images'), (dict(source='0123'), r'source \(".*" there, "0123" now\)'),
    (dict(monitor=True), 'monitor'), (dict(threads=7), 'threads')])
def test_another_network_under_a_label_is_an_error_that_names_the_difference(stored, monkeypatch, change, named):
    (run, net), how = stored, dict(loss=LigsLoss(1., .05))
    model, images, recipe = ready(run, change.get('seed', 0))
    if 'lr' in change: recipe = replace(recipe, lr=change['lr'])
    if 'limit' in change: images = images[:64]
    if 'loss' in change: how['loss'] = change['loss']
    if 'monitor' in change: how['monitor'] = Monitor(images[:8], sigma=None)
    if 'threads' in change: run = replace(run, profile=run.profile | dict(threads=7))
    if 'source' in change: monkeypatch.setattr('nrf_repro.results.rows.source_hash', lambda: change['source'])
    there = files(run.place)
    with pytest.raises(AnotherRun, match=f'net.safetensors holds another run: they differ in {named}.*delete .*features-s0'):
        run.trained('net', model, images, recipe, **how)
    assert files(run.place) == there
    monkeypatch.undo()
    assert equal(stored[0].trained('net', *ready(stored[0]), loss=LigsLoss(1., .05))[0], net)


def test_a_stored_network_is_read_and_not_trained_again(stored, monkeypatch):
    run, net = stored
    monkeypatch.setattr(studies, 'fit', None)
    assert equal(run.trained('net', *ready(run), loss=LigsLoss(1, .05))[0], net)


def test_a_network_of_an_earlier_version_is_named(tmp_path):
    run = run_in(tmp_path)
    run.trained('net', *ready(run))
    about = json.loads((run.place / 'net.json').read_text())
    (run.place / 'net.json').write_text(json.dumps(dict(hash='0123456789ab', history=about['history'])))
    with pytest.raises(AnotherRun, match='which another version wrote'): run.trained('net', *ready(run))


@pytest.mark.parametrize('lost', ['net.json', 'net.safetensors'])
def test_a_network_of_which_a_file_is_deleted_is_trained_again(stored, tmp_path, lost):
    run = run_in(tmp_path)
    first, past = run.trained('net', *ready(run))
    (run.place / lost).unlink()
    again, same = run.trained('net', *ready(run))
    assert equal(first, again) and past.loss.equals(same.loss)
    assert {p.name for p in run.place.iterdir() if p.is_file()} == {'net.json', 'net.safetensors'}


KILLED = '''
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_studies import ready, run_in
from nrf_repro.studies import base as studies
from nrf_repro.training import loop as training
seen = []
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
if {at!r} == 'epoch':
    keep = training.save_state
    def save_state(*a):
        keep(*a)
        kill()
    training.save_state = save_state
else: studies.{at} = kill
run = run_in({folder!r})
run.trained('net', *ready(run))
'''


@pytest.mark.parametrize('at', ['epoch', 'save_model', 'write_json'])
def test_a_killed_training_resumes_with_the_same_result(tmp_path, at):
    whole = run_in(tmp_path / 'whole')
    torch.set_num_threads(1)
    expected, past = whole.trained('net', *ready(whole))
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / 'killed'), at=at)
    done = subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = run_in(tmp_path / 'killed')
    state = run.place / 'net' / 'state.safetensors'
    assert state.is_file() and not (run.place / 'net.json').is_file()
    net, history = run.trained('net', *ready(run))
    assert equal(net, expected) and history.loss.equals(past.loss) and not state.is_file()
