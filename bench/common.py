"""What the benchmarks share: options, a network to measure, turns, and their section of docs/benchmarks.md."""
import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch

from nrf_repro.data import load
from nrf_repro.models import build_model, load_model, save_model
from nrf_repro.training.loop import fit
from nrf_repro.training.recipe import RECIPES

ROOT = Path(__file__).resolve().parents[1]
EPS = {'digits': dict(l2=1., linf=8 / 255),      # ours
       'cifar10': dict(l2=.25, linf=1 / 255)}    # the paper's
SECTIONS = 'Attacks', 'LIGS', 'Training', 'One GPU', 'The report'      # of the page, in this order


def parser(doc, **defaults):
    "Options that every benchmark takes."
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--full', action='store_true', help='all cases, for a quiet machine')
    p.add_argument('--data', choices=EPS, default='cifar10' if os.environ.get('NRF_DATA') else 'digits',
                   help='default: cifar10 where NRF_DATA is set, else digits')
    p.add_argument('--device', default='cpu', help='cpu or cuda')
    p.add_argument('--threads', type=int, help='default: as torch chooses, or OMP_NUM_THREADS')
    p.add_argument('--repeats', type=int, default=3, help='turns; the tables give median, least and most of them')
    p.add_argument('--cpu-time', action='store_true', help='count CPU seconds: with one thread on a busy machine')
    p.add_argument('--page', type=Path, default=ROOT / 'docs/benchmarks.md', help='whose section is rewritten')
    p.set_defaults(**defaults)
    return p


def options(p):
    "As given, with a clock."
    o = p.parse_args()
    o.load = os.getloadavg()[0]
    if o.threads: torch.set_num_threads(o.threads)
    o.clock = time.process_time if o.cpu_time else time.perf_counter
    return o


def wall_clock(o):
    "The same options, timed by the wall: other processes' time, and that which `fit` takes down, is seen by it alone."
    return argparse.Namespace(**vars(o) | dict(clock=time.perf_counter))


def timed(f, o, *args):
    "Seconds, and what f returns."
    sync = torch.cuda.synchronize if o.device.startswith('cuda') else lambda: None
    sync()
    start = o.clock()
    result = f(*args)
    sync()
    return o.clock() - start, result


def turns(methods,  # name -> f(repeat)
          o):       # repeats, clock, device
    "Every repeat runs each method once, in an order that rotates: name -> [(seconds, result)], repeat by repeat."
    names, out = list(methods), {m: [] for m in methods}
    for r in range(o.repeats):
        for m in names[r % len(names):] + names[:r % len(names)]: out[m].append(timed(methods[m], o, r))
    return out


def ratios(a, b): return [x / y for x, y in zip(a, b)]


def spread(values, form='.2f'):
    "Median, and the range over repeats."
    if len(values) == 1: return f'{values[0]:{form}}'
    return f'{median(values):{form}} ({min(values):{form}}-{max(values):{form}})'


def markdown(head, rows):
    "A table."
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def recipe(o): return replace(RECIPES['digits' if o.data == 'digits' else 'short'], epochs=o.epochs, seed=0)


def trained(arch, norm, o):
    "A network trained on the data it will be measured on; kept in bench/out for the next time."
    train = first(o.data, 'train', o.train_images)
    about = dict(arch=arch, norm=norm, width=o.width, data=train.fingerprint, recipe=asdict(recipe(o)))
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    file = ROOT / f'bench/out/{o.data}-{arch}-{norm}-{key}.safetensors'
    if not file.is_file():
        model = build_model(arch, norm, num_classes=len(train.classes), in_channels=train.x.shape[1], width=o.width,
                            mean=train.mean, std=train.std, seed=0).to(o.device)
        fit(model, train.to(o.device), recipe(o), progress=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, file)
    return load_model(file).to(o.device).to(memory_format=torch.contiguous_format).eval()


def first(name, split, count):
    "The first `count` images of a split, or all of a smaller split."
    images = load(name, split)
    return load(name, split, limit=min(count, len(images)))


def held_out(o):
    "Pixels and labels of the test images that the options ask for."
    images = first(o.data, 'test', o.images)
    return images.pixels(o.device), images.y.to(o.device)


def processor():
    "The CPU's name."
    info = Path('/proc/cpuinfo')
    name = re.search(r'model name\s*: (.+)', info.read_text()) if info.is_file() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def machine(o, *packages):
    "What the numbers were taken on, as text."
    device = torch.cuda.get_device_name() if o.device.startswith('cuda') else f'{processor()}, {os.cpu_count()} cores'
    versions = [f'{m} {importlib.import_module(m).__version__}' for m in ('torch', *packages) if importlib.util.find_spec(m)]
    clock = 'CPU time' if o.cpu_time else 'wall time'
    loads = getattr(o, 'loads', [o.load])
    began = f'load {", ".join(f"{n:.1f}" for n in loads)} when {"it" if len(loads) == 1 else "its runs"} began'
    return (f'{device}, {torch.get_num_threads()} thread(s), {began}; Python '
            f'{platform.python_version()}, {", ".join(versions)}; {clock}, {o.repeats} repeats, {time.strftime("%Y-%m-%d", time.gmtime())}.')


def command(o):
    "What anyone can run."
    words = shlex.join(w for w in sys.argv[1:] if not w.startswith(('--page', '--go-on')) and w != str(o.page))
    where = {'NRF_DATA': '<folder>' if o.data == 'cifar10' else None, 'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS'),
             'PYTHONPATH': os.environ.get('PYTHONPATH')}
    return ' '.join([*(f'{k}={v}' for k, v in where.items() if v), '.venv/bin/python', f'bench/{Path(sys.argv[0]).name}', words]).strip()


def publish(title, body, o, *packages):
    "Rewrite one section of the page, whole; the others stay."
    text = o.page.read_text(encoding='utf-8') if o.page.is_file() else ''
    found = {t: b.strip() for t, b in re.findall(r'^## ([^\n]+)\n(.*?)(?=^## |\Z)', text, re.M | re.S)}
    found[title] = f'Run by `{command(o)}`\n\nOn: {machine(o, *packages)}\n\n{body.strip()}'
    parts = [f'## {t}\n\n{found[t]}' for t in SECTIONS if t in found]
    draft = o.page.with_suffix('.part')
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text('\n\n'.join(['# Benchmarks', INTRODUCTION, *parts]) + '\n', encoding='utf-8')
    draft.replace(o.page)
    print(f'## {title}\n\n{found[title]}')


INTRODUCTION = """\
Speed, as ratios taken within one run: every repeat runs all methods once, in an order that rotates. Tables give the
median and, in brackets, the least and the most of the repeats. `make bench` runs all of it at a small size and rewrites
this page; `make bench BENCH=--full` runs every case, for a quiet machine; `BENCH='--device cuda'` runs it on a GPU,
which has not been done for this page where a section names a CPU. Each script can be run by itself and rewrites its own
section. A load above the number of threads says that the machine was busy: ratios then hold better than seconds."""
