"""Rows and their files."""
import json
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from nrf_repro.results import rows as R

BASE = dict(experiment='final', metric='clean_accuracy', dataset='digits', arch='vgg11', norm='bn', seed=0, value=.5, n=400)
ROBUST = dict(metric='robust_accuracy', attack='pgd_l2', eps=1., reading='any')


def row(**fields): return R.make_row(**BASE | fields)


# rows

def test_a_row_has_all_fields_and_its_origin():
    r = row()
    assert list(r) == list(R.FIELDS)
    assert r['source_hash'] == R.source_hash() and r['torch'] and r['eps'] is None
    assert row(git_commit='abc', torch='1.0')['git_commit'] == 'abc'


@pytest.mark.parametrize('fields, error, words', [
    (dict(sede=1), ValueError, 'unknown row field sede'),
    (dict(value=97.2), ValueError, 'not per cent'),
    (dict(value=-.01), ValueError, 'outside'),
    (dict(value=None), ValueError, 'always defined'),
    (dict(value=float('nan')), ValueError, 'always defined'),
    (dict(metric='ligs', value=.5), ValueError, 'needs `sigma`'),
    (dict(metric='ligs', sigma=.01, value=float('inf')), ValueError, '`value` is infinite'),
    (dict(metric='ligs', sigma=.01, value=-1.2), ValueError, 'ligs is -1.2, outside [-1, 1]: it is a mean of cosines'),
    (ROBUST | dict(attack=None), ValueError, 'needs `attack`'),
    (ROBUST | dict(reading=None), ValueError, 'needs `reading`'),
    (dict(seed=.5), TypeError, '`seed` takes a whole number'),
    (dict(seed='0'), TypeError, '`seed` takes a number'),
    (dict(n=True), TypeError, '`n` takes a number'),
    (dict(arch=11), TypeError, '`arch` takes text'),
    (dict(norm='BN'), ValueError, "norm 'BN'"),
    (dict(experiment=None), ValueError, 'needs `experiment`')])
def test_bad_rows_are_refused_in_one_sentence(fields, error, words):
    with pytest.raises(error) as e: row(**fields)
    assert words in str(e.value) and '\n' not in str(e.value)


def test_value_is_required():
    with pytest.raises(ValueError, match='needs `value`'): R.make_row(experiment='final', metric='clean_accuracy')


def test_null_is_one_thing():
    for nothing in (None, float('nan'), np.nan, pd.NA, np.float32('nan')):
        assert row(metric='ligs', sigma=.01, value=nothing)['value'] is None
    assert type(row(value=np.float32(.5))['value']) is float and type(row(seed=np.int64(3))['seed']) is int


def test_config_hash_sees_values_not_order():
    assert R.config_hash(dict(a=1, b=[2])) == R.config_hash(dict(b=[2], a=1))
    assert len({R.config_hash(dict(a=x)) for x in (1, 2, '1', None)}) == 4


def test_source_hash_sees_any_change(tmp_path, monkeypatch):
    monkeypatch.setattr(R, 'PACKAGE', tmp_path)
    fresh = R.source_hash.__wrapped__
    (tmp_path/'a.py').write_text('x = 1')
    first = fresh()
    (tmp_path/'_modidx.py').write_text('d = {}')
    assert fresh() == first
    (tmp_path/'a.py').write_text('x = 2')
    second = fresh()
    (tmp_path/'a.py').rename(tmp_path/'b.py')
    assert len({first, second, fresh()}) == 3


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(R, 'PACKAGE', tmp_path)
    assert R.git_commit.__wrapped__() is None
    subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)  # a repository that does not track the package
    (tmp_path/'__init__.py').touch()
    assert R.git_commit.__wrapped__() is None


def test_torch_is_not_imported():
    code = 'import sys, nrf_repro.results.rows as r; r.make_row(experiment="x", metric="y", value=1); sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


# files

def some_rows():
    return [row(norm=m, seed=s, value=s / 10, epoch=e, width=w) for m in ('none', 'bn', None) for s in (10, 2) for e in (None, 1)
            for w in (None, .125)]


def test_same_rows_same_bytes(tmp_path):
    rows, seen = some_rows(), set()
    for i in range(5):
        random.Random(i).shuffle(rows)
        seen.add(R.write_rows(tmp_path/'rows.jsonl', rows).read_bytes())
    seen.add(R.write_rows(tmp_path/'rows.jsonl', R.read_rows(tmp_path)).read_bytes())  # through a frame and back
    assert len(seen) == 1
    seeds = [json.loads(line)['seed'] for line in (tmp_path/'rows.jsonl').read_text().splitlines()]
    assert seeds.index(2) < seeds.index(10)  # numbers sort as numbers


def test_writing_makes_up_no_origin(tmp_path):
    there = row() | dict(git_commit=None, torch=None, source_hash='elsewhere')
    back = R.read_rows(R.write_rows(tmp_path/'rows.jsonl', [there])).iloc[0]
    assert back.git_commit is None and back.torch is None and back.source_hash == 'elsewhere'


@pytest.mark.parametrize('breaks', ['bad row', 'same row twice', 'no rename'])
def test_a_failed_write_changes_nothing(tmp_path, monkeypatch, breaks):
    path = R.write_rows(tmp_path/'rows.jsonl', some_rows())
    before, rows = path.read_bytes(), some_rows()
    if breaks == 'bad row': rows[-1] = rows[-1] | dict(value=2)
    if breaks == 'same row twice': rows.append(rows[0] | dict(value=.77))
    if breaks == 'no rename': monkeypatch.setattr(R.os, 'replace', lambda *a: (_ for _ in ()).throw(OSError('disk')))
    with pytest.raises((ValueError, OSError)): R.write_rows(path, rows)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['rows.jsonl']


@pytest.mark.parametrize('start', [b'', b'\xef\xbb\xbf'])
@pytest.mark.parametrize('end', [b'', b'\n', b'\r\n', b'\n\n', b'\n \t\r\n\n'])
def test_a_byte_order_mark_and_empty_last_lines_are_no_rows(tmp_path, start, end):
    path, lines = tmp_path/'rows.jsonl', [json.dumps(row(seed=i)).encode() for i in range(3)]
    path.write_bytes(start + b'\n'.join(lines) + end)
    assert R.read_rows(path).seed.tolist() == [0, 1, 2]
    path.write_bytes(start + end)
    assert R.read_rows(path).empty
    path.write_bytes(start + b'\n'.join([lines[0], b'', lines[1]]) + end)
    with pytest.raises(ValueError, match='rows.jsonl line 2: '): R.read_rows(path)


@pytest.mark.parametrize('line, words', [
    ('{"metric":', 'line 2'), ('[1]', 'a row is a JSON object'), ('', 'line 2'),
    ('{"experiment": "x", "metric": "m", "value": 1, "colour": "red"}', 'unknown row field colour'),
    ('{"experiment": "x", "metric": "m", "value": Infinity}', 'infinite'),
    ('{"experiment": "x", "metric": "m"}', 'needs `value`'),
    ('{"experiment": "x", "metric": "m", "value": 1, "seed": "one"}', '`seed` takes a number')])
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path/'rows.jsonl'
    path.write_text(f'{json.dumps(row())}\n{line}\n{json.dumps(row(seed=1))}\n')
    with pytest.raises(ValueError) as e: R.read_rows(path)
    assert words in str(e.value) and 'rows.jsonl line 2: ' in str(e.value) and '\n' not in str(e.value)


def test_reading_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere: no such file'): R.read_rows(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='no file of rows'): R.read_rows(tmp_path)
    R.write_rows(tmp_path/'a'/'rows.jsonl', [row()])
    R.write_rows(tmp_path/'b'/'deep'/'rows.jsonl', [row(), row(seed=1)])
    df = R.read_rows(tmp_path)
    assert list(df) == list(R.FIELDS) and sorted(df.seed) == [0, 1]
    assert df.seed.dtype == 'Int64' and df.value.dtype == float and df.epoch.isna().all()
    R.write_rows(tmp_path/'c'/'rows.jsonl', [row(value=.6)])
    with pytest.raises(ValueError, match='two values for one measurement: experiment final'): R.read_rows(tmp_path)


def test_no_rows_is_a_frame_too(tmp_path):
    assert list(R.read_rows(R.write_rows(tmp_path/'rows.jsonl', []))) == list(R.FIELDS)


# the paper

def test_paper_rows_are_the_printed_digits():
    paper = R.paper_rows()
    assert (paper.printed.astype(float) / 100 == paper.value).all() and paper.value.between(0, 1).all()
    assert paper.groupby('table').size().to_dict() == {'table 1': 90, 'table 2': 70}
    cell = paper[(paper.arch == 'vgg19') & (paper.norm == 'bn') & (paper.attack == 'cw_linf')].iloc[0]
    assert cell.printed == '0.03' and cell.eps == 1 / 255 and cell.dataset == 'imagenet'


def test_the_tables_differ_in_one_cell_and_it_has_a_note():
    paper = R.paper_rows().fillna({'attack': ''})
    wide = paper.pivot_table(index=['dataset', 'arch', 'norm', 'attack'], columns='table', values='value').dropna()
    odd = wide[wide['table 1'] != wide['table 2']].index.tolist()
    assert odd == [('cifar10', 'vgg16', 'none', 'pgd_l2')]
    assert '34.01' in R.printed_note(*odd[0]) and R.printed_note('cifar10', 'resnet50', 'none', 'cw_l2')


def test_paper_rows_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError, match='not there'): R.paper_rows(tmp_path/'none')


# --- pipes, devices, links ---

def test_a_link_stays_a_link_and_its_file_is_replaced_whole(tmp_path):
    (tmp_path / 'far').mkdir()
    for target in (tmp_path / 'far/rows', tmp_path / 'far/new'):
        link = tmp_path / f'link-{target.name}'
        link.symlink_to(target)
        for text in ('one', 'two'): assert R.write_atomically(link, text) == link
        assert link.is_symlink() and target.read_text() == 'two' and not target.is_symlink()
    assert sorted(p.name for p in (tmp_path / 'far').iterdir()) == ['new', 'rows']


@pytest.mark.parametrize('through_a_link', [False, True])
def test_a_pipe_is_written_into(tmp_path, through_a_link):
    import os
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    name = tmp_path / 'link' if through_a_link else pipe
    if through_a_link: name.symlink_to(pipe)
    text = 'row\n' * 50_000   # more than a pipe holds
    reader = subprocess.Popen(['cat', str(pipe)], stdout=subprocess.PIPE, text=True)
    import threading
    writer = threading.Thread(target=R.write_atomically, args=(name, text))
    writer.start()
    assert reader.communicate()[0] == text
    writer.join()
    assert pipe.is_fifo() and R.is_special(name)


def test_a_pipe_that_nobody_reads_is_an_error_and_stays(tmp_path, monkeypatch):
    import os
    os.mkfifo(tmp_path / 'pipe')
    monkeypatch.setattr(R.time, 'monotonic', iter(range(0, 100, 4)).__next__)
    with pytest.raises(OSError, match=r'pipe cannot be written \(nobody reads from it\)'): R.write_atomically(tmp_path / 'pipe', 'x')
    assert (tmp_path / 'pipe').is_fifo() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('path', ['/dev/null', '/dev/stdout', '/dev/stderr', '/dev/fd/1', '/proc/self/fd/1'])
def test_devices_and_streams_are_special(path): assert R.is_special(path)


def test_dev_null_is_still_a_device():
    from pathlib import Path
    R.write_atomically('/dev/null', 'x')
    assert Path('/dev/null').is_char_device()


def test_a_stream_that_is_a_file_is_continued(tmp_path):
    code = 'from nrf_repro.results.rows import write_atomically; print("before"); write_atomically("/dev/stdout", "rows\\n"); print("after")'
    with open(tmp_path / 'log', 'w') as log: subprocess.run([sys.executable, '-c', code], stdout=log, check=True)
    assert (tmp_path / 'log').read_text() == 'before\nrows\nafter\n'
