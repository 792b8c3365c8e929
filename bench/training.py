"""Time `fit` against the usual torchvision DataLoader loop, and against the limit: the network stepping on one batch.

    python bench/training.py                 # VGG11 with BN, 2,000 images, 3 epochs
    python bench/training.py --full          # VGG11 and ResNet18, 10,000 images, 5 epochs

The same network from the same start, recipe, augmentation and number of steps; every repeat is another seed.
"""
import os
from dataclasses import replace
from statistics import mean

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common import EPS, first, held_out, markdown, options, parser, publish, ratios, recipe, spread, timed, turns, wall_clock
from nrf_repro.attacks import Attack
from nrf_repro.models import build_model
from nrf_repro.training.loop import Monitor, correct, fit
from nrf_repro.training.recipe import lr_at

FULL = dict(archs=['vgg11', 'resnet18'], train_images=10000, epochs=5, images=2000)


class Pictures(Dataset):
    "As torchvision.datasets.CIFAR10 hands them out: a PIL image at a time, through transforms."
    def __init__(self, images, augment):
        crop = [transforms.RandomCrop(images.x.shape[-1], padding=4)] if augment.startswith('crop') else []
        flip = [transforms.RandomHorizontalFlip()] if augment.endswith('flip') else []
        self.transform = transforms.Compose([*crop, *flip, transforms.ToTensor()])
        x = images.x.permute(0, 2, 3, 1).numpy()
        self.data, self.targets = (x[..., 0] if x.shape[-1] == 1 else x), images.y.tolist()

    def __len__(self): return len(self.data)
    def __getitem__(self, i): return self.transform(Image.fromarray(self.data[i])), self.targets[i]


def sgd(model, r): return torch.optim.SGD(model.parameters(), r.lr, r.momentum, weight_decay=r.weight_decay, nesterov=r.nesterov)


def step(model, opt, x, y, r, epoch):
    "What every loop does."
    for group in opt.param_groups: group['lr'] = lr_at(r, epoch)
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward()
    if r.clip: torch.nn.utils.clip_grad_norm_(model.parameters(), r.clip)
    opt.step()


def tutorial(model, train, r, workers):
    "As tutorials do it."
    torch.manual_seed(r.seed)
    loader = DataLoader(Pictures(train, r.augment), r.batch_size, shuffle=True, drop_last=True, num_workers=workers)
    opt, device = sgd(model, r), next(model.parameters()).device
    model.train()
    for epoch in range(r.epochs):
        for i, (x, y) in enumerate(loader): step(model, opt, x.to(device), y.to(device), r, epoch + (i + .5) / len(loader))


def limit(model, train, r):
    "As many steps on a batch that lies ready."
    model, opt = model.to(memory_format=torch.channels_last), sgd(model, r)
    device = next(model.parameters()).device
    x = train.pixels(device)[:r.batch_size].contiguous(memory_format=torch.channels_last)
    y, steps = train.y[:r.batch_size].to(device), len(train) // r.batch_size
    model.train()
    for epoch in range(r.epochs):
        for i in range(steps): step(model, opt, x, y, r, epoch + (i + .5) / steps)


def compare(arch, norm, train, x, y, o):
    "Seconds and final accuracy of each way to train."
    def way(f):
        def run(seed):
            model = build_model(arch, norm, num_classes=len(train.classes), in_channels=train.x.shape[1], width=o.width,
                                mean=train.mean, std=train.std, seed=seed).to(o.device)
            f(model, replace(recipe(o), augment=o.augment, seed=seed))
            return model
        return run
    resident = train.to(o.device)
    ways = dict(ours=way(lambda m, r: fit(m, resident, r, progress=False)), limit=way(lambda m, r: limit(m, resident, r)))
    for workers in o.workers: ways[f'DataLoader, {workers} workers'] = way(lambda m, r, w=workers: tutorial(m, train, r, w))
    way(lambda m, r: fit(m, resident[:2 * r.batch_size], replace(r, epochs=1), progress=False))(0)     # warm up
    runs = turns(ways, o)
    return {k: ([s for s, _ in run], [correct(m, x, y).float().mean().item() for _, m in run]) for k, run in runs.items()}


def watching(arch, norm, train, test, o):
    "Share of the time that goes into looking: clean accuracy, PGD and LIGS on 100 images after every second epoch."
    model = build_model(arch, norm, num_classes=len(train.classes), in_channels=train.x.shape[1], width=o.width,
                        mean=train.mean, std=train.std, seed=0).to(o.device)
    eps, epochs = EPS[o.data]['l2'], max(o.epochs, 2)
    watch = Monitor(test, Attack('l2', eps, 'ce', 10, .4 * eps), epochs=tuple(range(2, epochs + 1, 2)))
    seconds, history = timed(lambda: fit(model, train.to(o.device), replace(recipe(o), epochs=epochs), monitor=watch, progress=False), wall_clock(o))
    return 1 - history.seconds.sum() / seconds


def lines(network, found):
    "Rows of the table: each rival's seconds over ours."
    mine, _ = found['ours']
    for name, (seconds, accuracy) in found.items():
        yield (network, name, spread(seconds, '.1f'), spread(ratios(seconds, mine)),
               '-' if name == 'limit' else spread([100 * a for a in accuracy], '.1f'))


def settings():
    p = parser(__doc__)
    p.add_argument('--archs', nargs='+', default=['vgg11'])
    p.add_argument('--norm', default='bn')
    p.add_argument('--width', type=float, default=.25)
    p.add_argument('--train-images', type=int, default=2000)
    p.add_argument('--images', type=int, default=1000, help='test images')
    p.add_argument('--epochs', type=int, default=3)
    p.add_argument('--augment', default='crop-flip')
    p.add_argument('--workers', nargs='+', type=int, default=[0, 2], help='of the DataLoader')
    if p.parse_known_args()[0].full: p.set_defaults(**FULL)
    p.set_defaults(threads=os.cpu_count())     # one network has all cores
    return options(p)


def main():
    o, rows, text = settings(), [], []
    train, test = first(o.data, 'train', o.train_images), first(o.data, 'test', 100)
    x, y = held_out(o)
    for arch in o.archs:
        found = compare(arch, o.norm, train, x, y, o)
        rows += lines(f'{arch} {o.norm}', found)
        ours, bound = found['ours'][0], found['limit'][0]
        text.append(f'{arch}: {100 * mean(ratios(bound, ours)):.0f} % of the limit; looking (clean accuracy, 10 steps of PGD and LIGS '
                    f'on 100 images every second epoch) took {100 * watching(arch, o.norm, train, test, o):.0f} % of the time.')
        print(rows, text, flush=True)
    about = (f'{len(train)} images of {o.data}, width {o.width}, {o.epochs} epochs in batches of {recipe(o).batch_size}, augmented by '
             f'{o.augment}; accuracy on {len(x)} test images. Every repeat is another seed.')
    head = 'network', 'loop', 'seconds', 'its time / ours', 'accuracy, %'
    notes = ('The *limit* is the same network making the same number of steps on one batch that lies ready, channels last. The '
             'DataLoader loop decodes and augments image by image, as tutorials do; with workers it does so in processes of their own.')
    publish('Training', '\n\n'.join([about, markdown(head, rows), *text, notes]), o, 'torchvision')


if __name__ == '__main__': main()
