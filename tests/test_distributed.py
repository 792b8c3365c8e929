"""Two gloo processes on the CPU train the network of one process; a killed process ends the run with one line, and the run resumes."""
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from counted import count
from nrf_repro.attacks import Attack
from nrf_repro.data import load
from nrf_repro.experiment.distributed import ProcessGroup, check_processes, failure_summary
from nrf_repro.experiment.plan import run_spec
from nrf_repro.experiment.profile import NetworkId, load_profile
from nrf_repro.experiment.run import train_network
from nrf_repro.models import build_model, load_model
from nrf_repro.results.rows import read_rows
from nrf_repro.training.loop import fit
from nrf_repro.training.recipe import RECIPES, batches, cross_entropy

RECIPE = replace(RECIPES['digits'], epochs=2, batch_size=32, augment='crop-flip', seed=0)


@pytest.fixture(scope='module')
def train(): return load('digits', 'train', limit=136)  # 4 batches and 8 images left over


def network(norm, arch='vgg11'): return build_model(arch, norm, in_channels=1, width=1/16, seed=0).double()
def loss(model, x, y): return cross_entropy(model, x.double(), y)


def _worker(rank, size, file, job, queue):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=size)
    queue.put((rank, job(ProcessGroup())))
    dist.barrier()
    dist.destroy_process_group()


def together(job, folder, size=2):
    fork = get_context('fork')
    queue = fork.SimpleQueue()
    meet = folder / f'meet-{time.monotonic_ns()}'
    workers = [fork.Process(target=_worker, args=(rank, size, meet, job, queue)) for rank in range(size)]
    for w in workers: w.start()
    found = dict(queue.get() for _ in workers)
    for w in workers: w.join(60)
    return [found[rank] for rank in range(size)]


def curve(norm, train, team=None, arch='vgg11', **how):
    model = network(norm, arch)
    history = fit(model, train, replace(RECIPE, **how.pop('recipe', {})), loss=loss, progress=False, **({'team': team} if team else {}), **how)
    return history.loss.to_numpy(), {k: v.numpy().copy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize('size', [2, 4])
@pytest.mark.parametrize('augment', ['none', 'crop', 'crop-flip'])
def test_shares_are_the_parts_of_the_batches_of_one_process(train, size, augment):
    for attack in (None, Attack('l2', .5, 'ce', 1, .5, targeted=True)):
        recipe = replace(RECIPE, augment=augment, attack=attack)
        shares = zip(*(batches(train, recipe, 1, 'cpu', rank, size) for rank in range(size)))
        for (x, y, t), parts in zip(batches(train, recipe, 1, 'cpu'), shares, strict=True):
            for rank, (px, py, pt) in enumerate(parts):
                assert torch.equal(px, x[rank::size]) and torch.equal(py, y[rank::size]) and (t is None or torch.equal(pt, t[rank::size]))


@pytest.mark.parametrize('norm', ['none', 'in', 'ln', 'gn'])
def test_without_batch_statistics_two_processes_train_what_one_trains(norm, train, tmp_path):
    one, (main, other) = curve(norm, train), together(lambda team: curve(norm, train, team), tmp_path)
    np.testing.assert_allclose(main[0], one[0], rtol=1e-9)
    for name, w in one[1].items():
        np.testing.assert_allclose(main[1][name], w, rtol=1e-6, atol=1e-7)
        assert np.array_equal(main[1][name], other[1][name])
    count('distributed', f'two processes against one, {norm}', epochs=2, largest_relative_gap_of_the_loss=float(np.max(np.abs(main[0] / one[0] - 1))))


def test_adversarial_training_and_clipping_are_shared_too(train, tmp_path):
    how = dict(recipe=dict(attack=Attack('l2', .5, 'ce', 2, .25, targeted=True), clip=.1, epochs=1))
    one, (main, _) = curve('gn', train, **how), together(lambda team: curve('gn', train, team, **how), tmp_path)
    np.testing.assert_allclose(main[0], one[0], rtol=1e-3)     # black ground ties in max-pooling, and rounding decides which pixel gets the gradient


def test_a_residual_network_and_four_processes(train, tmp_path):
    one, *rest = curve('ln', train, arch='resnet18'), *together(lambda team: curve('ln', train, team, arch='resnet18'), tmp_path, 4)
    for four in rest: np.testing.assert_allclose(four[0], one[0], rtol=1e-9)


def test_batch_norm_sees_its_share_alone(train, tmp_path):
    one, (main, other) = curve('bn', train), together(lambda team: curve('bn', train, team), tmp_path)
    assert np.max(np.abs(main[0] / one[0] - 1)) > 1e-3
    assert all(np.array_equal(main[1][k], other[1][k]) for k in main[1])     # after averaging what each has seen, one network

    def ghost(model, x, y):    # one process, two ghost batches: the loss and its gradient, not the running statistics
        return (loss(model, x[::2], y[::2]) + loss(model, x[1::2], y[1::2])) / 2
    model = network('bn')
    history = fit(model, train, RECIPE, loss=ghost, progress=False)
    np.testing.assert_allclose(main[0], history.loss, rtol=1e-9)
    for name, p in model.named_parameters(): np.testing.assert_allclose(main[1][name], p.detach(), rtol=1e-6, atol=1e-7)
    count('distributed', 'bn: two processes against ghost batches', epochs=2, largest_relative_gap_of_the_loss=float(np.max(np.abs(main[0] / history.loss - 1))),
          gap_to_one_process=float(np.max(np.abs(main[0] / one[0] - 1))))


def test_only_the_main_process_writes_and_all_resume(train, tmp_path):
    whole = together(lambda team: curve('gn', train, team, recipe=dict(epochs=3)), tmp_path)[0]
    def broken(team):
        def stop(epoch, model, record):
            if epoch == 2: raise KeyboardInterrupt
        try: curve('gn', train, team, folder=tmp_path / 'run', on_epoch=stop, recipe=dict(epochs=3))
        except KeyboardInterrupt: return sorted(p.name for p in (tmp_path / 'run').iterdir())
    assert together(broken, tmp_path)[0] == ['state.safetensors']
    seen = []
    again = together(lambda team: (curve('gn', train, team, folder=tmp_path / 'run', recipe=dict(epochs=3), on_epoch=lambda e, *_: seen.append(e)), list(seen)), tmp_path)
    for result, epochs in again:
        assert epochs == [2, 3] and np.array_equal(result[0], whole[0]) and all(np.array_equal(result[1][k], whole[1][k]) for k in whole[1])


# ---------------------------------------------------------------- torchrun

def spec_of(norm, epochs=2, **data):
    changes = {f'data.digits.{name}': value for name, value in (dict(processes=2) | data).items()}
    profile = load_profile('tiny').with_changes(changes | {'data.digits.recipes.standard.epochs': epochs})
    return run_spec(profile, NetworkId('digits', 'vgg11', 1/16, norm, 'standard', 0))


def test_a_batch_or_norm_that_cannot_be_shared_is_an_error():
    with pytest.raises(ValueError, match='3 processes cannot share a batch of 32'): check_processes(spec_of('bn', processes=3))
    with pytest.raises(ValueError, match='sync_bn needs GPUs'): check_processes(spec_of('bn', sync_bn=True))
    check_processes(spec_of('bn'))


def test_a_run_that_cannot_be_shared_starts_no_process(tmp_path):
    with pytest.raises(ValueError, match='3 processes cannot share a batch of 32'): train_network(spec_of('bn', processes=3), tmp_path, progress=False)
    with pytest.raises(ValueError, match='sync_bn needs GPUs'): train_network(spec_of('bn', sync_bn=True), tmp_path, progress=False)
    assert not list(tmp_path.rglob('processes.log'))


def test_the_number_of_processes_is_a_setting_of_batch_norm_alone():
    def config(norm, **more): return spec_of(norm, **more).train_config()
    for norm in ('none', 'in', 'ln', 'gn'): assert config(norm) == config(norm, processes=1) == config(norm, processes=4, sync_bn=True)
    assert len({json.dumps(config('bn', **more), sort_keys=True) for more in (dict(processes=1), dict(), dict(processes=4), dict(sync_bn=True))}) == 4


def test_a_killed_process_ends_the_run_with_one_line_and_it_resumes(tmp_path):
    spec = spec_of('gn', epochs=12)
    run = tmp_path / 'broken/runs' / spec.id
    pid = os.fork()
    if not pid:      # a process that trains by two processes, as a job does
        try: train_network(spec, tmp_path / 'broken', progress=False)
        except RuntimeError as e: (tmp_path / 'said').write_text(str(e))
        os._exit(0)
    end = time.time() + 200
    while not (run / 'state.safetensors').exists() and time.time() < end: time.sleep(.05)
    own = [int(w) for w in subprocess.run(['pgrep', '-f', f'nrf_repro.experiment .*{run}'], capture_output=True, text=True).stdout.split()]
    ranks = {int(m[1]): w for w in own if (m := re.search(rb'\0RANK=(\d+)', b'\0' + Path(f'/proc/{w}/environ').read_bytes()))}
    os.kill(ranks[1], signal.SIGKILL)
    os.waitpid(pid, 0)
    said = (tmp_path / 'said').read_text()
    assert re.fullmatch(rf'{spec.id}: process 1 of 2 was killed \(signal 9\)\. Run again to resume after the last epoch; the log is .*processes\.log\.', said), said
    kept = load_state_epochs(run / 'state.safetensors')
    assert 1 <= kept < 12 and not (run / 'config.json').exists()
    assert train_network(spec, tmp_path / 'broken', progress=False) == 'trained' and train_network(spec, tmp_path / 'broken', progress=False) == 'kept'
    one = spec_of('gn', epochs=12, processes=1)
    assert train_network(one, tmp_path / 'whole', progress=False) == 'trained'
    a, b = (read_rows(tmp_path / name) for name in ('broken', 'whole'))
    clean = [r[r.metric == 'clean_accuracy'].set_index('epoch').value for r in (a, b)]
    assert list(clean[0].index) == list(range(1, 13)) and (clean[0] - clean[1]).abs().max() <= .2 and set(a.config_hash) == set(b.config_hash)
    load_model(run / 'weights.safetensors')
    count('distributed', 'torchrun: a process killed', processes=2, epochs=12, epochs_kept=kept, epochs_done_again=0)


def load_state_epochs(path):
    from safetensors import safe_open
    with safe_open(path, 'pt') as f: return len(json.loads(f.metadata()['history']))


def test_failure_summary(tmp_path):
    log = tmp_path / 'log'
    log.write_text('nrf_repro.experiment: process 0 lost the connection to the others (closed).\nE failed (exitcode: -9) local_rank: 1 (pid: 5)')
    assert failure_summary(log, 2) == 'process 1 of 2 was killed (signal 9).'
    log.write_text('nrf_repro.experiment: Training diverged.\n... failed (exitcode: 1) local_rank: 0')
    assert failure_summary(log, 2) == 'Training diverged.'
    log.write_text('')
    assert 'no output' in failure_summary(log, 2)
