"""What the benchmarks say must be worth saying: same work for all, honest arithmetic, sections that leave each other alone."""
import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nrf_repro.data import load
from nrf_repro.models import build_model
from nrf_repro.training.loop import fit
from nrf_repro.training.recipe import RECIPES

BENCH = Path(__file__).parents[1] / 'bench'


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    def module(name):
        monkeypatch.delitem(importlib.sys.modules, name, raising=False)
        return importlib.import_module(name)
    yield module
    for name in ('common', 'attacks', 'ligs', 'training', 'report', 'gpu'): importlib.sys.modules.pop(name, None)


def test_a_section_is_rewritten_whole_and_alone(bench, tmp_path, monkeypatch):
    common = bench('common')
    monkeypatch.setattr(common.sys, 'argv', ['bench/ligs.py', '--repeats', '2'])
    o = argparse.Namespace(page=tmp_path / 'page.md', data='digits', device='cpu', cpu_time=False, repeats=2, load=0.)
    common.publish('LIGS', 'first\n\n### Inner\n\nstale', o)
    common.publish('Attacks', 'second', o)
    before = o.page.read_text()
    assert before.index('## Attacks') < before.index('## LIGS') and 'bench/ligs.py --repeats 2`' in before
    common.publish('LIGS', 'third', o)
    after = o.page.read_text()
    assert after.count('## ') == 2 and 'third' in after and 'second' in after and 'first' not in after and 'stale' not in after
    assert before.split('## LIGS')[0] == after.split('## LIGS')[0] and [p.name for p in tmp_path.iterdir()] == ['page.md']


def test_every_repeat_runs_each_once_and_the_order_rotates(bench):
    common, seen = bench('common'), []
    ticks = iter(range(100))
    o = argparse.Namespace(repeats=3, device='cpu', clock=lambda: next(ticks))
    out = common.turns({m: lambda r, m=m: seen.append((r, m)) for m in 'abc'}, o)
    assert seen == [(r, m) for r, order in enumerate(('abc', 'bca', 'cab')) for m in order]
    assert all([s for s, _ in run] == [1, 1, 1] for run in out.values())
    assert common.spread([3., 1., 2.]) == '2.00 (1.00-3.00)' and common.ratios([4, 9], [2, 3]) == [2, 3]


def test_a_run_that_was_ended_goes_on_where_it_stopped_and_mixes_no_kinds(bench, tmp_path, monkeypatch):
    attacks, words = bench('attacks'), ['attacks.py', '--data', 'digits', '--images', '20', '--train-images', '64', '--epochs', '1',
                                        '--width', '.0625', '--steps', '1', '--repeats', '1', '--page', str(tmp_path / 'page.md')]
    common = importlib.import_module('common')
    monkeypatch.setattr(attacks, 'OUT', tmp_path / 'attacks.json')
    monkeypatch.setattr(common, 'ROOT', tmp_path)
    def run(*more):
        monkeypatch.setattr(common.sys, 'argv', words + list(more))
        attacks.main()
        return json.loads(attacks.OUT.read_text())['rows']
    with pytest.raises(SystemExit, match='leave out --go-on'): run('--go-on')
    first = run()
    both = run('--losses', 'ce', 'cw', '--go-on')
    assert first and both[:len(first)] == first and {r['attack'].split()[0] for r in both[len(first):]} == {'cw'}
    page = (tmp_path / 'page.md').read_text()
    assert '--go-on' not in page and 'when its runs began' in page
    assert run('--losses', 'ce', 'cw', '--go-on') == both     # with nothing left, the page alone is written again
    with pytest.raises(SystemExit, match='another images'): run('--images', '30', '--go-on')


def test_each_way_to_train_makes_the_same_steps_of_the_same_network(bench):
    training = bench('training')
    train = load('digits', 'train', limit=64)
    r = replace(RECIPES['digits'], epochs=2, batch_size=24, schedule='multistep', milestones=(1.,), clip=None)
    def model(): return build_model('vgg11', 'none', num_classes=10, in_channels=1, width=1/16, mean=train.mean, std=train.std, seed=0)
    same = train[torch.zeros(64, dtype=torch.long)]            # one image alone: no order, no augmentation to differ by
    ways = [lambda m: fit(m, same, r, progress=False), lambda m: training.tutorial(m, same, r, 0), lambda m: training.limit(m, same, r)]
    ends = []
    for way in ways:
        net = model()
        way(net)
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    start = torch.cat([p.detach().flatten() for p in model().parameters()])
    assert all((e - ends[0]).abs().max() < 1e-4 for e in ends) and (ends[0] - start).abs().max() > 1e-3


def notebook(folder, name, begin, end, cells):
    made = [dict(cell_type='code', source=[s], metadata=dict(papermill=dict(duration=d))) for s, d in cells]
    stamp = '2026-01-01T00:{:02d}:{:02d}+00:00'
    about = dict(start_time=stamp.format(*divmod(begin, 60)), end_time=stamp.format(*divmod(end, 60)), duration=end - begin)
    (folder / name).write_text(json.dumps(dict(cells=made, metadata=dict(papermill=about))))


def test_the_time_of_a_build_is_accounted_for_whole(bench, tmp_path):
    report, folder = bench('report'), tmp_path / 'build/notebooks'
    folder.mkdir(parents=True)
    notebook(folder, 'a.ipynb', 0, 20, [('import numpy as np\nfrom a import train_network', 2), ('x = train_network()', 10), ('measure_network(x)', 5)])
    notebook(folder, 'b.ipynb', 10, 30, [('run_studies()', 15), ('plot()', 1)])
    (folder / 'c.ipynb').write_text('')
    took, spans, broken = report.left_by(folder.parent)
    assert took == dict(imports=2, training=10, attacks=5, kernel=7, studies=15, **{'settings, tables, figures': 1}) and broken == ['c.ipynb']
    assert sum(took.values()) == 40 and report.busy(spans) == 30 and report.busy([(0, 10), (500, 510)]) == 20
    assert 'wall / pure compute = 2.00' in report.anatomy(folder.parent, 2, None)
    assert 'no executed notebook' in report.anatomy(tmp_path, 2, None)


def test_the_power_of_a_growth(bench):
    report = bench('report')
    assert report.exponent([1, 2, 4], [[3.], [6.], [12.]]) == pytest.approx(1)
    assert report.exponent([1, 2, 4], [[1., 9.], [4., 36.], [16., 144.]]) == pytest.approx(2)


GPU_WORDS = ['gpu.py', '--device', 'cpu', '--data', 'digits', '--archs', 'vgg11', '--norms', 'bn', '--width', '.0625', '--images', '20', '--batch-sizes', '10',
             '20', '--train-images', '64', '--train-batch', '32', '--epochs', '1', '--steps', '1', '--repeats', '1', '--processes', '2']


def test_the_gpu_benchmark_measures_each_part_beside_its_goal(bench, tmp_path, monkeypatch, capsys):
    gpu, common = bench('gpu'), importlib.import_module('common')
    monkeypatch.setattr(common, 'ROOT', tmp_path)
    started = []

    class InThisProcess:
        "A process that trains one network, without its start."
        returncode = 0
        def __init__(self, words, **how):
            started.append(words)
            monkeypatch.setattr(gpu.sys, 'argv', words[1:])
            gpu.main()
            self.printed = capsys.readouterr().out
        def communicate(self): return self.printed, None

    written, table = [], gpu.table
    monkeypatch.setattr(gpu, 'table', lambda rows: written.extend(rows) or table(rows))
    monkeypatch.setattr(gpu.subprocess, 'Popen', InThisProcess)
    monkeypatch.setattr(common.sys, 'argv', GPU_WORDS + ['--page', str(tmp_path / 'page.md')])
    gpu.main()
    page = (tmp_path / 'page.md').read_text()
    assert [row[:2] for row in written] == [(what, 'vgg11 bn') for what in ('attack, all steps', 'attack, early stopping', 'LIGS', 'training')]
    assert table(written) in page
    for what, _, [mine], _, [theirs], [ratio] in written:
        assert mine > 0 and theirs > 0 and ratio == pytest.approx(mine / theirs if what == 'LIGS' else theirs / mine)
    assert len(started) == 4 and '2 processes' in page and 'times the throughput' in page


def test_a_ratio_reaches_its_goal_from_the_right_side_and_before_it_is_rounded(bench):
    gpu = bench('gpu')
    def reached(what, ratio): return gpu.table([(what, 'vgg11 bn', [1.], 'other', [1.], ratio)]).splitlines()[-1].split('|')[-2].strip()
    assert [reached('training', [r]) for r in (.8999, .9, .95)] == ['no', 'yes', 'yes']        # at least .9
    assert [reached('LIGS', [r]) for r in (1.2, 1.3, 1.3001)] == ['yes', 'yes', 'no']          # at most 1.3
    assert [reached('attack, all steps', runs) for runs in ([1., 1.6, 9.], [1., 1.4, 9.])] == ['yes', 'no']    # the median of the repeats


def test_the_gpu_benchmark_says_that_there_is_no_gpu(bench, monkeypatch, capsys):
    gpu = bench('gpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(gpu.sys, 'argv', ['gpu.py'])
    with pytest.raises(SystemExit): gpu.main()
    assert 'no GPU that PyTorch can use' in capsys.readouterr().err
