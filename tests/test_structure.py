"Packages import one way, no two modules import each other, and chapters end with exercises."
import ast
import importlib
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

ORDER = ('theory', 'data', 'models', 'attacks', 'features', 'results', 'training', 'experiment', 'report', 'studies', 'measure', 'cli')
MODULES = {'.'.join(p.relative_to(ROOT / 'nrf_repro').with_suffix('').parts): p
           for p in sorted((ROOT / 'nrf_repro').rglob('*.py')) if not p.stem.startswith('_')}


def imports_of(name):
    "The modules of the package that a module imports when it is imported itself."
    package, found = ['nrf_repro', *name.split('.')[:-1]], set()
    for node in ast.parse(MODULES[name].read_text(encoding='utf-8')).body:
        if not isinstance(node, ast.ImportFrom): continue
        start = package[:len(package) - node.level + 1] if node.level else []
        path = '.'.join([*start, *filter(None, [node.module])])
        if path.partition('.')[0] != 'nrf_repro': continue
        path = path.partition('.')[2]
        found |= {'.'.join(filter(None, [path, a.name])) for a in node.names} & set(MODULES) or {path}
    return found - {''}


def place(name): return ORDER.index(name.partition('.')[0])


@pytest.mark.parametrize('name', MODULES)
def test_a_module_imports_only_its_own_package_and_those_before_it(name):
    assert not [other for other in imports_of(name) if place(other) > place(name)]


def test_no_module_imports_itself_through_others():
    graph = {name: imports_of(name) & set(MODULES) for name in MODULES}
    def reached(name):
        seen, left = set(), [*graph[name]]
        while left:
            if (other := left.pop()) not in seen: seen.add(other); left += graph[other]
        return seen
    assert not [name for name in MODULES if name in reached(name)]


def test_the_reader_of_imports_finds_them():
    assert {'results.paired', 'results.rows'} <= imports_of('results.claims') and 'attacks' in {i.partition('.')[0] for i in imports_of('features.linearity')}
    assert len(MODULES) > 50


def test_public_names_are_few_and_each_is_there_and_documented():
    import nrf_repro
    names = nrf_repro.__all__
    assert 40 < len(names) < 80 and names == sorted({n for packages in nrf_repro.TASKS.values() for text in packages.values() for n in text.split()})
    for name in names:
        thing = getattr(nrf_repro, name)
        assert not callable(thing) or thing.__doc__, name


def test_importing_the_package_loads_neither_torch_nor_pandas():
    code = "import sys, nrf_repro; print([m for m in ('torch', 'pandas', 'matplotlib', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


OLD_NAMES = {
    'nrf_repro': 'figures tables', 'nrf_repro.living': 'living_meta living_data living_html write_living', 'nrf_repro.report': 'all_tables reading_3 render', 'nrf_repro.report.recording': 'interactive_data write_interactive',
    'nrf_repro.experiment': 'PARTS Cell all_went_well build_folder device_of report_meta whole', 'nrf_repro.studies': 'run_studies shown',
    'nrf_repro.experiment.runs': 'PARTS Cell all_went_well build_folder load_profile device_of report_meta whole'}


@pytest.mark.parametrize('module, name', [(m, n) for m, names in OLD_NAMES.items() for n in names.split()])
def test_names_of_the_last_release_work_and_warn(module, name):
    with pytest.warns(DeprecationWarning, match=f'{module}.{name} is now nrf_repro'): assert getattr(importlib.import_module(module), name)


def test_an_unknown_name_is_an_attribute_error():
    for name in ('nrf_repro', 'nrf_repro.living', 'nrf_repro.experiment'):
        module = importlib.import_module(name)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"): module.nothing


CHAPTERS = sorted((ROOT / 'nbs').glob('[1-4]_*/*.ipynb'))
ANSWER = re.compile(r'\*\*Exercise (\d)\.\*\* (.+?)\n\n<details><summary>Answer</summary>\n\n(.+?)\n\n</details>', re.S)


def exercises(notebook):
    "The exercises after the summary: (number, question, answer) of each; and the cells that check them."
    cells = [(c['cell_type'], ''.join(c['source'])) for c in notebook['cells']]
    start = next((i for i, (_, text) in enumerate(cells) if text.startswith('## Exercises\n')), len(cells))
    after = [(kind, text) for kind, text in cells[start:] if not text.startswith(('#| hide', 'Previous: [', 'Next: ['))]
    return [ANSWER.findall(text) for kind, text in after if kind == 'markdown'], [text for kind, text in after if kind == 'code']


@pytest.mark.parametrize('path', [p for p in CHAPTERS if not p.stem.startswith('25')], ids=lambda p: p.stem)
def test_a_chapter_ends_with_exercises_whose_answers_are_folded_and_checked(path):
    found, checks = exercises(json.loads(path.read_text(encoding='utf-8')))
    assert len(found) in (2, 3) and [number for (number, _, _), in found] == [str(i + 1) for i in range(len(found))]
    assert checks and all('#| code-fold: true' in text and re.search(r'^\s*(for .*: )?(assert|test_\w+\(|torch\.testing|np\.testing)', text, re.M) for text in checks)


def test_exercises_without_an_answer_are_noticed():
    text = '## Exercises\n\n**Exercise 1.** Why?\n\n<details><summary>Answer</summary>\n\nBecause.\n\n</details>'
    def cells(*texts): return dict(cells=[dict(cell_type='markdown', source=[t]) for t in texts])
    assert exercises(cells(text, 'Next: [x](y)')) == ([[('1', 'Why?', 'Because.')]], [])
    assert exercises(cells(text.replace('</details>', ''))) == ([[]], []) and exercises(cells('# Title')) == ([], [])


def test_no_module_is_over_400_lines():
    long = {p.name: n for p in (ROOT / 'nrf_repro').rglob('*.py') if p.name != '_modidx.py' and (n := len(p.read_text(encoding='utf-8').splitlines())) > 400}
    assert long == {}
