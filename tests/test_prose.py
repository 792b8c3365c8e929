"""Intervals and single numbers that the chapters of parts III and IV state are those that their cells compute or check.

A stated interval, such as −16.3 [−19.7, −12.9], is bound if three numbers that follow each other in an output or in a check of the
same chapter are equal to it at its precision (in points or as a fraction; the text may turn the sign of a loss). The outputs come
from the rows when the chapter runs, so a row that changes makes the sentence fail here. Outputs of slow cells are stored.

A single number in points or per cent is bound if one output or check of the chapter is equal to it at its precision. This is a
weaker test: a chapter prints many numbers, so a wrong one may be equal to another by chance. A test below measures how often a
number that is changed in its last digit is found: 99 % of the intervals, and about a quarter of the single numbers.
"""
import json
import re

import pytest
from conftest import ROOT

NUMBER = r'[−+-]?(?:\d+\.?\d*|\.\d+)(?:e-\d+)?'
STATED = re.compile(rf'(?<![ℓ\w])({NUMBER})(?: points?| %)? \[({NUMBER}), ({NUMBER})\]')
SINGLE = re.compile(r'(?<![ℓ\w.−+-])([−+-]?\d+(?:\.\d+)?)(?: points?| %)(?! (?:\[|interval|t interval))')   # 95 % intervals are no results
OTHERS = {'77.4', '59.4', '13.6'}   # measured by others and cited there
CHAPTERS = sorted((ROOT / 'nbs').glob('[34]_*/*.ipynb'))


def computed(notebook): # -> the numbers of each output and each code cell, as texts
    for cell in notebook['cells']:
        if cell['cell_type'] != 'code': continue
        yield ''.join(cell['source'])
        for out in cell['outputs']:
            yield ''.join(out.get('text', ''))
            yield from (''.join(text) for kind, text in out.get('data', {}).items() if kind in ('text/plain', 'text/markdown'))


def stated(notebook): # -> texts
    return [m.groups() for cell in notebook['cells'] if cell['cell_type'] == 'markdown' for m in STATED.finditer(''.join(cell['source']))]


def size(text): return abs(float(text.replace('−', '-')))


def same(number, text): # a computed number, and a stated one
    digits = len(text.partition('.')[2])
    return any(abs(factor * number - size(text)) <= .5000001 * 10**-digits for factor in (1, 100))


def unbound(notebook):
    "The stated intervals that no output and no check of the notebook has."
    triples = triples_of(notebook)
    return [f'{mean} [{low}, {high}]' for mean, low, high in stated(notebook) if not bound((mean, low, high), triples)]


def triples_of(notebook): # -> three numbers that follow each other in an output or in a check
    found = [[size(x) for x in re.findall(NUMBER, text)] for text in computed(notebook)]
    return [triple for numbers in found for triple in zip(numbers, numbers[1:], numbers[2:])]


def bound(interval, triples):
    mean, low, high = interval
    return any(same(a, mean) and (same(b, low) and same(c, high) or same(b, high) and same(c, low)) for a, b, c in triples)


def without_mean(notebook): # -> intervals in the text that no mean stands before: they are not compared
    prose = [STATED.sub(' ', ''.join(cell['source'])) for cell in notebook['cells'] if cell['cell_type'] == 'markdown']
    return [m[0] for text in prose for m in re.finditer(rf'\[{NUMBER}, {NUMBER}\]', text)]


def single(notebook): # -> texts
    prose = [STATED.sub(' ', ''.join(cell['source'])) for cell in notebook['cells'] if cell['cell_type'] == 'markdown']
    return [found for text in prose for found in SINGLE.findall(text)]


CHECK = re.compile(r'\bassert\b|\btest_\w+\(|allclose|isclose')


def results(notebook): # -> numbers of outputs and of checks; other code is left out, whose settings would bind a number by chance
    for cell in notebook['cells']:
        if cell['cell_type'] != 'code': continue
        source = ''.join(cell['source'])
        yield from [source] if 'stated(' in source else (line for line in source.splitlines() if CHECK.search(line))
        yield from list(computed(dict(cells=[cell])))[1:]


def unbound_single(notebook, stated=None):
    "The stated numbers without interval that no output and no check of the notebook has."
    numbers = {size(x) for text in results(notebook) for x in re.findall(NUMBER, text)}
    return [text for text in stated or single(notebook) if text not in OTHERS and not any(same(n, text) for n in numbers)]


def changed(text): # -> the number with another last digit, four times
    digits = len(text.partition('.')[2])
    return [f'{size(text) + k * 10**-digits:.{digits}f}' for k in (-2, -1, 1, 2) if size(text) + k * 10**-digits > 0]


def chapter(*cells): return dict(cells=list(cells))
def prose(text): return dict(cell_type='markdown', source=[text])
def code(source, *texts): return dict(cell_type='code', source=[source], outputs=[dict(text=[t]) for t in texts])


def test_an_interval_is_bound_by_an_output_or_a_check():
    said = prose('BN loses 16.3 points [12.9, 19.7], and LIGS by −0.131 [−0.173, −0.089].')
    assert unbound(chapter(said, code('x', '-0.1631 -0.1968 -0.1287\n−0.131 [−0.173, −0.089]'))) == []
    assert unbound(chapter(said, code("test_eq(x, [-16.3, -19.7, -12.9])"))) == ['−0.131 [−0.173, −0.089]']
    assert unbound(chapter(said, code('x', '-0.1641 -0.1968 -0.1287'))) == ['16.3 [12.9, 19.7]', '−0.131 [−0.173, −0.089]']


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
def test_stated_intervals_are_computed(path):
    notebook = json.loads(path.read_text(encoding='utf-8'))
    assert unbound(notebook) == without_mean(notebook) == []


def test_a_single_number_is_bound_by_an_output_or_a_check():
    said = prose('NF loses 5.4 points, BN 40 % of that [1.0, 2.0], with 95 % intervals.')
    assert single(chapter(said)) == ['5.4', '40']
    assert unbound_single(chapter(said, code('x', '-0.0541 and 40.2'))) == []
    assert unbound_single(chapter(said, code('x', '-0.0531'))) == ['5.4', '40']
    assert unbound_single(chapter(said, code('size = 40\nassert y == 5.4'))) == ['40']      # a setting is no result


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
def test_stated_single_numbers_are_computed(path): assert unbound_single(json.loads(path.read_text(encoding='utf-8'))) == []


def test_how_often_a_changed_number_is_found():
    intervals, singles = [], []
    for notebook in (json.loads(path.read_text(encoding='utf-8')) for path in CHAPTERS):
        triples = triples_of(notebook)
        intervals += [not bound((other, low, high), triples) for mean, low, high in stated(notebook) for other in changed(mean)]
        others = [other for text in single(notebook) if text not in OTHERS for other in changed(text)]
        singles += [other in set(unbound_single(notebook, others)) for other in others]
    assert sum(intervals) / len(intervals) > .95 and sum(singles) / len(singles) > .2


def test_so_many_numbers_are_bound():
    counts = [len(stated(json.loads(path.read_text(encoding='utf-8')))) for path in CHAPTERS]
    assert sum(counts) >= 100 and sum(n > 0 for n in counts) >= 8
    assert sum(len(single(json.loads(path.read_text(encoding='utf-8')))) for path in CHAPTERS) >= 150
