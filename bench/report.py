"""Where the time of `make report` goes, how the cost grows, and what memory a profile takes.

    python bench/report.py --build reports/build/demo              # reads what a build left, and makes short runs
    time make report; python bench/report.py --wall 251            # with the seconds that the command took
    python bench/report.py --full                                  # memory of all profiles, growth on more points
"""
import ast
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np

from common import ROOT, markdown, options, parser, publish, spread, turns, wall_clock
from nrf_repro.attacks import Attack, robust_correct
from nrf_repro.data import load
from nrf_repro.models import build_model
from nrf_repro.training.loop import fit
from nrf_repro.training.recipe import RECIPES

KINDS = dict(train_cell='training', attack_cell='attacks', run_studies='studies')  # a word of the cell -> kind
WORK = 'training', 'attacks', 'studies'
PROFILES = 'tiny', 'demo', 'cifar-small', 'cifar', 'paper'


# what a build left

def imports_alone(source):
    "Is this cell nothing but imports?"
    try: body = ast.parse(source).body
    except SyntaxError: return False
    return bool(body) and all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in body)


def kind(cell):
    "What a cell spends its time on."
    source = ''.join(cell['source'])
    if imports_alone(source): return 'imports'
    return next((k for word, k in KINDS.items() if word in source), 'settings, tables, figures')


def notebook_times(nb):
    "Seconds by kind, the kernel's start and end being what no cell took; and when it began and ended."
    took, about = Counter(), nb['metadata']['papermill']
    for cell in nb['cells']: took[kind(cell) if cell['cell_type'] == 'code' else 'kernel'] += cell['metadata'].get('papermill', {}).get('duration') or 0
    took['kernel'] += about['duration'] - sum(took.values())
    return took, tuple(datetime.fromisoformat(about[t]).timestamp() for t in ('start_time', 'end_time'))


def busy(spans, gap=60):
    "Seconds from first to last, without the pauses longer than `gap` in which nothing ran."
    total, end = 0., None
    for a, b in sorted(spans):
        total += b - a if end is None or a - end > gap else max(b, end) - end
        end = b if end is None else max(b, end)
    return total


def left_by(build):
    "Seconds by kind over all executed notebooks of a build, their spans, and those that could not be read."
    took, spans, broken = Counter(), [], []
    for file in sorted((build / 'notebooks').glob('*.ipynb')):
        try: seconds, span = notebook_times(json.loads(file.read_text(encoding='utf-8')))
        except (ValueError, KeyError, TypeError): broken.append(file.name)     # never finished
        else: took, spans = took + seconds, [*spans, span]
    return took, spans, broken


def rows_seconds(build):
    "What the rows themselves account for: epochs of training, and measurements."
    epochs, rest = {}, 0.
    for file in [*build.glob('runs/*/*.jsonl'), *build.glob('studies/*/rows.jsonl')]:
        for line in file.read_text(encoding='utf-8').splitlines():
            row = json.loads(line)
            if row['experiment'] == 'history': epochs[file, row['epoch']] = row['seconds'] or 0    # one epoch, several metrics
            else: rest += row['seconds'] or 0
    return sum(epochs.values()), rest


def anatomy(build, cores, wall):
    "The table of where the time went, and the ratio that counts."
    took, spans, broken = left_by(build)
    if not spans: return f'`{build.name}`: no executed notebook lies there; `make report` leaves them.'
    wall, work = wall or busy(spans), sum(took[k] for k in WORK)
    epochs, rest = rows_seconds(build)
    rows = [(k, f'{s:.0f}', f'{100 * s / sum(took.values()):.0f} %') for k, s in took.most_common()]
    seeds = {json.loads(f.read_text(encoding='utf-8')).get('seed') for f in build.glob('runs/*/config.json')} - {None}
    parts = [f'Build `{build.name}`, {len(seeds)} seeds, {len(spans)} notebooks; wall {wall:.0f} s on {cores} cores. Training, attacks and studies took '
             f'{work:.0f} s of notebook time, {work / cores:.0f} s a core: **wall / pure compute = {wall * cores / work:.2f}** '
             f'(rows account for {epochs:.0f} s of training epochs and {rest:.0f} s of measurements).',
             markdown(('what', 'seconds, summed over notebooks', 'share'), rows)]
    if broken: parts.append(f'Left out, not finished: {", ".join(broken)}.')
    return '\n\n'.join(parts)


def fixed_costs(o):
    "Seconds for a kernel to answer, and for the imports of a job."
    def kernel(r):
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel(stderr=subprocess.DEVNULL)
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    def run(code): return lambda r: subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
    modules = 'torch', 'nrf_repro.training.loop', 'nrf_repro.experiment.runs', 'nrf_repro.report.rendering'
    methods = {'a kernel starts and ends': kernel, 'Python starts and ends': run('pass')} | {f'... importing {m}': run(f'import {m}') for m in modules}
    return markdown(('what', 'seconds'), [(m, spread([s for s, _ in runs])) for m, runs in turns(methods, wall_clock(o)).items()])


# growth

def small(width, images):
    return build_model('vgg11', 'bn', num_classes=10, in_channels=1, width=width, mean=images.mean, std=images.std, seed=0)


def growth(o):
    "Cost of short runs on the digits as one size grows and the others stay: name -> (sizes, [seconds of each repeat])."
    train, test = load('digits', 'train', limit=320), load('digits', 'test', limit=400)
    x, y = test.pixels(), test.y
    recipe = replace(RECIPES['digits'], epochs=1, seed=0)
    def teach(width=.125, seeds=1, n=320):
        for seed in range(seeds): fit(small(width, train), train[:n], replace(recipe, seed=seed), progress=False)
    net = small(.125, train).eval()
    def attack(steps=10, n=200): robust_correct(net, x[:n], y[:n], Attack('l2', 1., 'ce', steps, .25), criterion='last_step')
    sizes = dict(seeds=[1, 2, 4], images=[100, 200, 400], steps=[5, 10, 20], width=[1 / 16, 1 / 8, 1 / 4])
    runs = dict(seeds=lambda v: teach(seeds=v), images=lambda v: attack(n=v), steps=lambda v: attack(steps=v), width=lambda v: teach(width=v))
    if o.full: sizes = dict(seeds=[1, 2, 4, 8], images=[50, 100, 200, 400], steps=[5, 10, 20, 40], width=[1 / 16, 1 / 8, 1 / 4, 1 / 2])
    teach(n=64)                                                      # warm up
    found = {}
    for name, values in sizes.items():
        took = turns({v: lambda r, v=v, f=runs[name]: f(v) for v in values}, o)
        found[name] = values, [[s for s, _ in took[v]] for v in values]
    return found


def exponent(sizes, seconds):
    "Of the power law through the medians: 1 is linear."
    return float(np.polyfit(np.log(sizes), np.log([median(s) for s in seconds]), 1)[0])


def draw_growth(found, file):
    "Each size relative to its smallest, both axes logarithmic; the dashed line is linear."
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(5, 3.4), layout='constrained')
    for (name, (sizes, seconds)), marker in zip(found.items(), 'os^D'):
        least = median(seconds[0])
        ax.plot([v / sizes[0] for v in sizes], [median(s) / least for s in seconds], marker=marker, label=f'{name} (power {exponent(sizes, seconds):.2f})')
    top = max(s[-1] / s[0] for s, _ in found.values())
    ax.plot([1, top], [1, top], 'k--', lw=1, label='linear')
    ax.set_xscale('log', base=2)
    ax.set_yscale('log', base=2)
    for axis in (ax.xaxis, ax.yaxis): axis.set_major_formatter('{x:g}')
    ax.set(xlabel='size, over the smallest', ylabel='time, over the smallest', title='How the cost grows')
    ax.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=110)
    plt.close(fig)


# memory

MEMORY = '''
import resource, sys, torch
from dataclasses import replace
from nrf_repro.attacks import Attack, robust_correct
from nrf_repro.data import Images
from nrf_repro.models import build_model
from nrf_repro.training.loop import fit
from nrf_repro.training.recipe import Recipe
arch, width, n, test, c, side, bs = sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:])
g = torch.Generator().manual_seed(0)
x = torch.randint(256, (n, c, side, side), generator=g, dtype=torch.uint8)
train = Images(x, torch.arange(n) % 10, tuple('0123456789'), (.5,) * c, (.25,) * c, 'noise', 'train')
model = build_model(arch, 'bn', num_classes=10, in_channels=c, width=width, mean=train.mean, std=train.std, seed=0)
fit(model, train[:bs], Recipe(epochs=1, batch_size=bs), progress=False)
pixels = x[:test].float() / 255
robust_correct(model, pixels[:256], torch.arange(len(pixels[:256])) % 10, Attack('l2', .25, 'ce', 1, .1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
'''
SHAPES = dict(digits=(1, 32, 1297, 500), cifar10=(3, 32, 50000, 10000))   # channels, side, train and test images


def memory(name):
    "Peak of one job: the profile's data resident, a step of training and of an attack for its heaviest network."
    from nrf_repro.experiment.runs import load_profile
    profile = load_profile(name)
    grid = next(g for g in profile['grids'] if g['dataset'] in SHAPES)
    data, (c, side, most, test) = profile['data'][grid['dataset']], SHAPES[grid['dataset']]
    arch, width = max(((a, w) for g in profile['grids'] if g['dataset'] == grid['dataset'] for a, w in g['archs'].items() if '_' not in a),
                      key=lambda aw: (aw[1], aw[0].startswith('resnet'), int(aw[0].strip('vgresnt'))))
    base = RECIPES[data['recipes']['standard']['base']]
    given = data['recipes']['standard'].get('batch_size', base.batch_size)
    args = arch, width, min(data['train'] or most, most), min(data['test'] or test, test), c, side, given
    out = subprocess.run([sys.executable, '-c', MEMORY, *map(str, args)], capture_output=True, text=True, cwd=ROOT)
    if out.returncode: return name, arch, width, 'failed: ' + (out.stderr.strip().splitlines() or ['killed'])[-1]
    return name, arch, width, f'{int(out.stdout.split()[-1]) / 2**20:.2f}'


def settings():
    p = parser(__doc__, data='digits')
    p.add_argument('--build', type=Path, default=ROOT / 'reports/build/demo')
    p.add_argument('--cores', type=int, default=2, help='that the build ran on')
    p.add_argument('--wall', type=float, help='seconds that `make report` took; default: from its first to its last notebook')
    p.add_argument('--profiles', nargs='*', choices=PROFILES, default=['tiny', 'demo'], help='whose memory is measured')
    if p.parse_known_args()[0].full: p.set_defaults(profiles=list(PROFILES))
    return options(p)


def main():
    o = settings()
    found, picture = growth(o), o.page.parent / '_static/growth.png'
    draw_growth(found, picture)
    powers = ', '.join(f'{name} {exponent(*v):.2f}' for name, v in found.items())
    parts = ['### Where the time goes', anatomy(o.build, o.cores, o.wall), 'What a job pays before it begins (torch is imported by the cell that first needs it):', fixed_costs(o),
             '### How the cost grows', f'Short runs on the digits (VGG11, BN). Power of each size (1 is linear): {powers}. Training grows '
             'with seeds and width, an attack with images and steps; doubling the width quadruples the multiplications of most layers.',
             f'<img src="_static/{picture.name}" width="540" alt="Time against size, both over their smallest: {powers}">', '### Memory',
             'Peak of one job on the CPU, with the data of the profile resident and its heaviest network; jobs run side by side.',
             markdown(('profile', 'network', 'width', 'peak, GiB'), [memory(name) for name in o.profiles])]
    publish('The report', '\n\n'.join(parts), o)


if __name__ == '__main__': main()
