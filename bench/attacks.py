"""Time `robust_correct` against torchattacks, foolbox (if installed) and a plain loop, on the same images in one run.

    python bench/attacks.py --quick                                     # a minute on one core
    python bench/attacks.py --data cifar10 --norms bn none --steps 10 50

Two ratios, kept apart: *same work*, every step for every image, both judged after the last step; and *early exit*,
where an image that has fallen ends its own attack. Robust accuracy stands beside each: a faster attack that finds less
is none.
Each repeat times every method once, in an order that rotates; ratios are taken within a repeat.
"""
import argparse
import importlib.util
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from nrf_repro.attacks import Attack, margin, robust_correct
from nrf_repro.data import load
from nrf_repro.models import build_model
from nrf_repro.training import RECIPES, fit

EPS = {'digits': dict(l2=1., linf=8 / 255),      # ours
       'cifar10': dict(l2=.25, linf=1 / 255)}    # the paper's
QUICK = dict(archs=['vgg11'], balls=['l2'], losses=['ce'], steps=[10], images=200, repeats=3, epochs=2)
STEP = dict(l2=.4, linf=.255)   # of eps: .1 and .001 on CIFAR-10, as in the authors' code


def plain_loop(model, x, y, a):
    "PGD as one would write it down."
    adv = x
    for _ in range(a.steps):
        adv = adv.detach().requires_grad_()
        z = model(adv)
        loss = F.cross_entropy(z, y) if a.loss == 'ce' else margin(z, y).mean()
        g, = torch.autograd.grad(loss, adv)
        if a.ball == 'linf': delta = (adv + a.step_size * g.sign() - x).clamp(-a.eps, a.eps)
        else:
            delta = adv + a.step_size * g / g.flatten(1).norm(dim=1).clamp_min(1e-10).view(-1, 1, 1, 1) - x
            delta = delta * (a.eps / delta.flatten(1).norm(dim=1).clamp_min(a.eps)).view(-1, 1, 1, 1)
        adv = (x + delta).clamp(0, 1).detach()
    return adv


def torchattacks_pgd(model, x, y, a):
    import torchattacks
    kind = dict(l2=torchattacks.PGDL2, linf=torchattacks.PGD)[a.ball]
    return kind(model, eps=a.eps, alpha=a.step_size, steps=a.steps, random_start=False)(x, y)


def foolbox_pgd(model, x, y, a):
    import foolbox
    kind = dict(l2=foolbox.attacks.L2PGD, linf=foolbox.attacks.LinfPGD)[a.ball]
    attack = kind(abs_stepsize=a.step_size, steps=a.steps, random_start=False)
    return attack(foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=a.eps)[1]


def judged(make):
    "A rival's images in batches, judged after the last step."
    def correct(model, x, y, a, bs):
        parts = []
        for xb, yb in zip(x.split(bs), y.split(bs)):
            adv = make(model, xb, yb, a)
            with torch.no_grad(): parts.append(model(adv).argmax(1) == yb)
        return torch.cat(parts)
    return correct


def ours(reading): return lambda model, x, y, a, bs: robust_correct(model, x, y, a, batch_size=bs, reading=reading)


def rivals(attack):
    "Those that are installed and know this attack: the libraries have no margin loss in a fixed ball."
    known = dict(plain=plain_loop)
    if attack.loss == 'ce':
        if importlib.util.find_spec('torchattacks'): known['torchattacks'] = torchattacks_pgd
        if importlib.util.find_spec('foolbox'): known['foolbox'] = foolbox_pgd
    return {name: judged(make) for name, make in known.items()}


def timed(f, model, x, y, attack, o):
    "Seconds and robust accuracy."
    sync = torch.cuda.synchronize if x.is_cuda else lambda: None
    sync()
    start = o.clock()
    ok = f(model, x, y, attack, o.batch_size)
    sync()
    return o.clock() - start, ok.float().mean().item()


def compare(model, x, y, attack, o):
    "One record for each rival."
    methods = dict(last=ours('last'), any=ours('any')) | rivals(attack)
    few = slice(0, o.batch_size)
    for f in methods.values(): timed(f, model, x[few], y[few], replace(attack, steps=1), o)   # warm up
    seconds, accuracy, names = {m: [] for m in methods}, {}, list(methods)
    for r in range(o.repeats):
        for m in names[r % len(names):] + names[:r % len(names)]:
            s, accuracy[m] = timed(methods[m], model, x, y, attack, o)
            seconds[m].append(s)
    return [record(m, seconds, accuracy) for m in methods if m not in ('last', 'any')]


def record(rival, seconds, accuracy):
    "Both ratios, repeat by repeat: their seconds over ours."
    ratio = {k: [theirs / mine for theirs, mine in zip(seconds[rival], seconds[k])] for k in ('last', 'any')}
    return dict(rival=rival, same_work=ratio['last'], early_exit=ratio['any'],
                seconds={k: seconds[k] for k in (rival, 'last', 'any')},
                robust={k: accuracy[k] for k in (rival, 'last', 'any')})


def network(arch, norm, o):
    "Trained on the data it will be attacked on, long enough to be worth attacking."
    train = load(o.data, 'train', limit=o.train_images)
    model = build_model(arch, norm, num_classes=len(train.classes), in_channels=train.x.shape[1], width=o.width,
                        mean=train.mean, std=train.std, seed=0).to(o.device)
    recipe = replace(RECIPES['digits' if o.data == 'digits' else 'short'], epochs=o.epochs, seed=0)
    fit(model, train.to(o.device), recipe, progress=False)
    return model.to(memory_format=torch.contiguous_format)   # torchattacks refuses gradients that are channels last


def spread(values, form='.2f'): return f'{median(values):{form}} ({min(values):{form}}-{max(values):{form}})'


def table(rows):
    "Markdown: medians, and the range over repeats."
    head = ('network', 'attack', 'steps', 'against', 'theirs, s', 'same work: ratio', 'early exit: ratio',
            'robust accuracy: theirs', 'last', 'any')
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for r in rows:
        cells = (r['network'], r['attack'], r['steps'], r['rival'], spread(r['seconds'][r['rival']]),
                 spread(r['same_work']), spread(r['early_exit']),
                 *(f'{100 * r["robust"][k]:.1f}' for k in (r['rival'], 'last', 'any')))
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


def machine(o):
    "What the numbers were taken on."
    name = torch.cuda.get_device_name() if o.device.startswith('cuda') else platform.processor() or platform.machine()
    versions = {m: importlib.import_module(m).__version__ for m in ('torch', 'foolbox') if importlib.util.find_spec(m)}
    return dict(device=name, threads=torch.get_num_threads(), python=platform.python_version(), **versions)


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='digits', choices=EPS)
    p.add_argument('--archs', nargs='+', default=['vgg11', 'resnet18'])
    p.add_argument('--norms', nargs='+', default=['bn', 'none'])
    p.add_argument('--balls', nargs='+', default=['l2', 'linf'])
    p.add_argument('--losses', nargs='+', default=['ce', 'cw'])
    p.add_argument('--steps', nargs='+', type=int, default=[10, 50])
    p.add_argument('--width', type=float, default=.25)
    p.add_argument('--images', type=int, default=1000)
    p.add_argument('--train-images', type=int, help='default: all')
    p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--batch-size', type=int, default=256)
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--threads', type=int, help='default: as torch chooses')
    p.add_argument('--device', default='cpu')
    p.add_argument('--cpu-time', action='store_true', help='count CPU seconds: with one thread on a busy machine')
    p.add_argument('--quick', action='store_true', help='VGG11 alone, PGD l2 in 10 steps, 200 images, 3 repeats')
    p.add_argument('--out', type=Path, default=Path(__file__).parent / 'out' / 'attacks.json')
    o = p.parse_args()
    if o.quick: vars(o).update(QUICK)
    if o.threads: torch.set_num_threads(o.threads)
    o.clock = time.process_time if o.cpu_time else time.perf_counter
    return o


def main():
    o, rows = options(), []
    test = load(o.data, 'test', limit=o.images)
    x, y = test.pixels(o.device), test.y.to(o.device)
    for arch in o.archs:
        for norm in o.norms:
            model = network(arch, norm, o)
            for ball in o.balls:
                for loss in o.losses:
                    for steps in o.steps:
                        eps = EPS[o.data][ball]
                        attack = Attack(ball, eps, loss, steps, STEP[ball] * eps)
                        about = dict(network=f'{arch} {norm}', attack=f'{loss} {ball} {eps:.3g}', steps=steps, n=len(x))
                        rows += [about | record for record in compare(model, x, y, attack, o)]
                        print(table(rows[-1:]).splitlines()[-1], flush=True)
    about = machine(o) | dict(data=o.data, images=len(x), width=o.width, batch_size=o.batch_size, repeats=o.repeats,
                              clock='CPU' if o.cpu_time else 'wall')
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.write_text(json.dumps(dict(about=about, rows=rows), indent=1))
    print('\n' + ', '.join(f'{k} {v}' for k, v in about.items()) + '\n\n' + table(rows))


if __name__ == '__main__': main()
