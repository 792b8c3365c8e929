"""Time LIGS with K draws against the K + 1 gradient passes that it cannot do without.

    python bench/ligs.py                     # VGG11 with BN, 1 and 4 draws
    python bench/ligs.py --full              # VGG and ResNet, BN and none, 1, 4 and 16 draws
"""
from statistics import median

import torch
import torch.nn.functional as F

from common import held_out, markdown, options, parser, publish, ratios, spread, trained, turns
from nrf_repro.attacks import optimised_inference
from nrf_repro.features import ligs

FULL = dict(archs=['vgg11', 'resnet18'], norms=['bn', 'none'], draws=[1, 4, 16], images=1000, repeats=5,
            train_images=10000, epochs=15)


def bare(net, x, y, passes, bs):
    "Nothing but gradients in the pixels."
    for _ in range(passes):
        for xb, yb in zip(x.split(bs), y.split(bs)):
            xb = xb.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(net(xb), yb, reduction='sum'), xb)


def compare(model, x, y, draws, o):
    "LIGS over bare passes: of the network as it is, and of the copy made for speed that LIGS uses itself."
    with optimised_inference(model, x) as fast:
        methods = dict(
            ligs=lambda r: ligs(model, x, y, draws=draws, sigma=.01, seed=r, batch_size=o.batch_size),
            model=lambda r: bare(model, x, y, draws + 1, o.batch_size),
            fast=lambda r: bare(fast, x, y, draws + 1, o.batch_size))
        for f in methods.values(): f(0)                            # warm up
        seconds = {m: [s for s, _ in run] for m, run in turns(methods, o).items()}
    return [ratios(seconds['ligs'], seconds[k]) for k in ('model', 'fast')]


def settings():
    p = parser(__doc__, repeats=5)
    p.add_argument('--archs', nargs='+', default=['vgg11'])
    p.add_argument('--norms', nargs='+', default=['bn'])
    p.add_argument('--draws', nargs='+', type=int, default=[1, 4])
    p.add_argument('--width', type=float, default=.25)
    p.add_argument('--images', type=int, default=512)
    p.add_argument('--train-images', type=int, default=2000)
    p.add_argument('--epochs', type=int, default=6)
    p.add_argument('--batch-size', type=int, default=256)
    if p.parse_known_args()[0].full: p.set_defaults(**FULL)
    return options(p)


def main():
    o, rows, worst = settings(), [], []
    x, y = held_out(o)
    for arch in o.archs:
        for norm in o.norms:
            model = trained(arch, norm, o)
            for draws in o.draws:
                plain, fast = compare(model, x, y, draws, o)
                worst.append(median(fast))
                rows.append((f'{arch} {norm}', draws, draws + 1, spread(plain), spread(fast)))
                print(rows[-1], flush=True)
    head = 'network', 'draws K', 'bare passes', 'LIGS / passes of the network', "LIGS / passes of LIGS' own fast copy"
    about = f'{len(x)} test images of {o.data}, batches of {o.batch_size}, width {o.width}. Below 1, LIGS is the faster.'
    reading = f'Against its own fast copy, noise, cosines and the copying included, LIGS takes at most {max(worst):.2f} times the bare passes, by the medians.'
    publish('LIGS', '\n\n'.join([about, markdown(head, rows), reading]), o)


if __name__ == '__main__': main()
