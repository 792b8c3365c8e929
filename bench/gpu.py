"""Measure attacks, LIGS and training on a GPU, as ratios in one run, and print one table.

    python bench/gpu.py                      # VGG11 and ResNet18, with BN and without, full width: under 4 minutes on a GPU
    python bench/gpu.py --device cpu --data digits --archs vgg11 --width .0625 --images 64 --batch-sizes 32 64

Each row has its goal beside it. Attacks and LIGS are compared at the batch size that is best for each side. The precision
is float32 on both sides, with PyTorch's defaults; training uses bfloat16 autocast.
"""
import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

import torch

from attacks import STEP, judged, ours, torchattacks_pgd
from common import EPS, first, held_out, markdown, options, parser, publish, ratios, recipe, spread, trained, turns, wall_clock
from ligs import bare
from nrf_repro.attacks import Attack
from nrf_repro.features import ligs
from nrf_repro.models import build_model
from nrf_repro.training.loop import fit
from training import limit

GOALS = {'attack, all steps': (1.5, 'at least'), 'attack, early stopping': (3., 'at least'), 'LIGS': (1.3, 'at most'),
         'training': (.9, 'at least'), 'training, CUDA graph': (1., 'at least')}


def best(method, o):
    "Seconds of method(batch size) at its best size: one number for each repeat."
    for size in o.batch_sizes: method(size)                                                        # warm up
    runs = turns({size: lambda r, size=size: method(size) for size in o.batch_sizes}, o)
    seconds = [[s for s, _ in run] for run in runs.values()]
    return min(seconds, key=median)


def attack_rows(name, model, x, y, o):
    "PGD l2 in 10 steps against torchattacks: their seconds over ours."
    eps = EPS[o.data]['l2']
    attack = Attack('l2', eps, 'ce', o.steps, STEP['l2'] * eps)
    theirs = best(lambda size: judged(torchattacks_pgd)(model, x, y, attack, size), o)
    for what, criterion in (('attack, all steps', 'last_step'), ('attack, early stopping', 'any_step')):
        mine = best(lambda size: ours(criterion, False)(model, x, y, attack, size), o)
        yield what, name, mine, 'torchattacks', theirs, ratios(theirs, mine)


def ligs_rows(name, model, x, y, o):
    "LIGS with one draw against its two gradients: our seconds over theirs."
    mine = best(lambda size: ligs(model, x, y, sigma=.01, batch_size=size), o)
    floor = best(lambda size: bare(model, x, y, 2, size), o)
    yield 'LIGS', name, mine, 'two gradients', floor, ratios(mine, floor)


def network(arch, norm, train, o, seed=0):
    return build_model(arch, norm, num_classes=len(train.classes), in_channels=train.x.shape[1], width=o.width,
                       mean=train.mean, std=train.std, seed=seed).to(o.device)


def training_recipe(o): return replace(recipe(o), batch_size=o.train_batch, augment='crop-flip', amp=o.device.startswith('cuda'))


def training_rows(arch, norm, train, o):
    "`fit` against as many steps on one batch that lies ready: the limit's seconds over ours."
    r = training_recipe(o)
    ways = {'training': lambda _: fit(network(arch, norm, train, o), train, r, progress=False),
            'limit': lambda _: limit(network(arch, norm, train, o), train, r)}
    if o.device.startswith('cuda'):
        ways['training, CUDA graph'] = lambda _: fit(network(arch, norm, train, o), train, r, progress=False, cuda_graph=True)
    for f in ways.values(): f(0)                                                                   # warm up
    seconds = {name: [s for s, _ in run] for name, run in turns(ways, o).items()}
    for name in ways:
        if name != 'limit': yield name, f'{arch} {norm}', seconds[name], 'one resident batch', seconds['limit'], ratios(seconds['limit'], seconds[name])


def at_once(o):
    "Networks trained by processes that share the device, and by the same processes in turn: seconds of the training of both."
    def start(seed):
        return subprocess.Popen([sys.executable, __file__, *o.words, '--one', str(seed)], stdout=subprocess.PIPE, text=True)
    def times(process):
        printed, _ = process.communicate()
        if process.returncode: sys.exit(f'a training process failed with exit status {process.returncode}')
        return json.loads(printed.splitlines()[-1])
    spans = [times(p) for p in [start(seed) for seed in range(o.processes)]]
    alone = [times(start(seed)) for seed in range(o.processes)]
    return max(end for _, end in spans) - min(begin for begin, _ in spans), sum(end - begin for begin, end in alone)


def one(o):
    "What each of these processes does: train one network. Prints when the training began and ended."
    train = first(o.data, 'train', o.train_images).to(o.device)
    model = network(o.archs[0], o.norms[-1], train, o, seed=o.one)
    fit(model, train[:2 * o.train_batch], replace(training_recipe(o), epochs=1), progress=False)   # warm up
    begin = time.time()
    fit(model, train, training_recipe(o), progress=False)
    print(json.dumps((begin, time.time())))


def settings():
    p = parser(__doc__, device='cuda')
    p.add_argument('--archs', nargs='+', default=['vgg11', 'resnet18'])
    p.add_argument('--norms', nargs='+', default=['none', 'bn'])
    p.add_argument('--steps', type=int, default=10)
    p.add_argument('--width', type=float, default=1.)
    p.add_argument('--images', type=int, default=1000)
    p.add_argument('--batch-sizes', nargs='+', type=int, default=[256, 512, 1000])
    p.add_argument('--train-images', type=int, default=10_000)
    p.add_argument('--train-batch', type=int, default=256)
    p.add_argument('--epochs', type=int, default=2)
    p.add_argument('--processes', type=int, default=5, help='networks that are trained at once')
    p.add_argument('--one', type=int, help=argparse.SUPPRESS)
    o = options(p)
    if o.device.startswith('cuda') and not torch.cuda.is_available():
        p.error('this machine has no GPU that PyTorch can use; --device cpu measures at small sizes')
    o.words = sys.argv[1:]
    return wall_clock(o)        # a GPU's time is wall time


def table(rows):
    "Markdown: seconds, the ratio, and whether it reaches its goal."
    lines = []
    for what, name, mine, other, theirs, ratio in rows:
        goal, side = GOALS[what]
        reached = median(ratio) >= goal if side == 'at least' else median(ratio) <= goal
        lines.append((what, name, spread(mine, '.3f'), other, spread(theirs, '.3f'), spread(ratio), f'{side} {goal:g}', 'yes' if reached else 'no'))
    return markdown(('what', 'network', 'ours, s', 'against', 'theirs, s', 'ratio', 'goal', 'reached'), lines)


def main():
    o = settings()
    if o.one is not None: return one(o)
    x, y = held_out(o)
    train, rows = first(o.data, 'train', o.train_images).to(o.device), []
    for arch in o.archs:
        for norm in o.norms:
            name, model = f'{arch} {norm}', trained(arch, norm, o)
            rows += [*attack_rows(name, model, x, y, o), *ligs_rows(name, model, x, y, o), *training_rows(arch, norm, train, o)]
            print(f'{name}: measured', flush=True)
    together, in_turn = at_once(o)
    about = (f'{len(x)} test images of {o.data}, width {o.width:g}, PGD l2 in {o.steps} steps, batches of {", ".join(map(str, o.batch_sizes))}. '
             f'Training: {len(train)} images, {o.epochs} epochs in batches of {o.train_batch}. Ratios are theirs over ours; for LIGS ours over theirs.')
    several = (f'{o.processes} processes that each train one {o.archs[0]} take {together:.1f} s at once and {in_turn:.1f} s in turn '
               f'(start of the processes left out): {in_turn / together:.2f} times the throughput.')
    publish('One GPU', '\n\n'.join([about, table(rows), several]), o, 'torchattacks')


if __name__ == '__main__': main()
