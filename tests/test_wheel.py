"""The package as it is installed: a wheel is built, unpacked beside the same dependencies, and used in an empty folder."""
import json
import lzma
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from hashlib import sha256
from pathlib import Path

import pytest

from conftest import ROOT

SOURCES = ('nrf_repro', 'reports', 'nbs', 'docs', 'tests', 'bench', '.ci', '.github', 'setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md',
           'LICENSE', 'CITATION.cff', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', 'Makefile', 'requirements.in', 'requirements-override.in',
           'requirements.lock', '.gitignore', '.pre-commit-config.yaml')
PLACEHOLDERS = ('nrf-repro.github.io', 'github.com/nrf-repro', 'nrf-repro.org')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The folder of a wheel and a source archive, and what building them said."
    place = tmp_path_factory.mktemp('source')
    for name in SOURCES: (place / name).symlink_to(ROOT / name)     # what building writes stays out of the working copy
    words = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', 'dist', '.']
    said = [subprocess.run([*words, kind], cwd=place, capture_output=True, text=True, env=clean_env(PYTHONDONTWRITEBYTECODE='')) for kind in ('--wheel', '--sdist')]
    for run in said: assert run.returncode == 0, run.stderr[-2000:]
    return place / 'dist', ''.join(run.stdout + run.stderr for run in said)


@pytest.fixture(scope='module')
def wheel(built): return next(built[0].glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "The Python of an environment that holds the wheel, and takes all else from this one."
    place = tmp_path_factory.mktemp('env')
    venv.create(place, with_pip=False)
    site = next(place.glob('lib/python*/site-packages'))
    with zipfile.ZipFile(wheel) as z: z.extractall(site)
    (site / 'dependencies.pth').write_text('\n'.join(p for p in sys.path if p.endswith('site-packages')) + '\n')
    python = place / 'bin/python'
    script = place / 'bin/nrf-repro'    # as pip writes it from entry_points.txt
    script.write_text(f'#!{python}\nimport sys\nfrom nrf_repro.cli import main\nsys.exit(main())\n')
    script.chmod(0o755)
    return python


def clean_env(**more):
    "No trace of the checkout."
    return {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'NRF_DATA', 'VIRTUAL_ENV')} | dict(OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1') | more


def run(python, *words, cwd, **env):
    return subprocess.run([python, '-m', 'nrf_repro', *map(str, words)], cwd=cwd, env=clean_env(**env), capture_output=True, text=True)


def contents(folder): return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob('*')}


def test_building_gives_no_warning(built): assert not [line for line in built[1].splitlines() if 'warning' in line.lower() or 'deprecat' in line.lower()]


def test_the_copies_in_the_wheel_are_those_of_the_repository(wheel):
    data = 'nrf_repro/_data/'
    with zipfile.ZipFile(wheel) as z:
        held = {name.removeprefix(data): z.read(name) for name in z.namelist() if name.startswith(data)}
    for name, content in held.items():
        if name.endswith('.xz'): content, name = lzma.decompress(content), name.removesuffix('.xz')
        if name.endswith('registry.json'): continue
        assert content == (ROOT / name).read_bytes(), name
    for pattern in ('reports/*', 'reports/profiles/*', 'reports/paper/*', 'reports/notebooks/*', 'reports/slurm/*'):
        for path in ROOT.glob(pattern):
            if path.is_file() and not path.name.startswith('.'): assert str(path.relative_to(ROOT)) in held, path
    for place in sorted(ROOT.glob('reports/published/[!.]*/networks')):
        registry = json.loads(held[str((place / 'registry.json').relative_to(ROOT))])
        for file in place.glob('*.safetensors'): assert registry[file.stem]['sha256'] == sha256(file.read_bytes()).hexdigest() and not registry[file.stem]['url']
        assert set(registry) == set(json.loads((place / 'networks.json').read_text()))


def test_the_wheel_is_small_typed_and_without_tests_and_networks(wheel):
    with zipfile.ZipFile(wheel) as z: names = z.namelist()
    assert wheel.stat().st_size < 1_500_000 and {'nrf_repro/py.typed', 'nrf_repro/__init__.pyi', 'nrf_repro/experiment/__init__.pyi'} <= set(names)
    assert not [name for name in names if 'test_' in name or name.endswith('.safetensors') or '__pycache__' in name]
    assert {name.partition('/')[0].partition('-')[0] for name in names} == {'nrf_repro'}


def test_metadata_is_complete_and_has_no_placeholder(wheel):
    with zipfile.ZipFile(wheel) as z: text = z.read(next(name for name in z.namelist() if name.endswith('METADATA'))).decode()
    meta = Parser().parsestr(text)
    classifiers, needed = meta.get_all('Classifier'), ' '.join(meta.get_all('Requires-Dist'))
    assert meta['License-Expression'] == 'Apache-2.0' and meta['Requires-Python'] == '>=3.11'
    assert {'Typing :: Typed', *(f'Programming Language :: Python :: 3.{i}' for i in (11, 12, 13))} <= set(classifiers)
    assert not [c for c in classifiers if 'Windows' in c or 'OS Independent' in c or c.startswith('License')]    # locks need fcntl
    for package in ('matplotlib', 'jinja2', 'packaging'): assert package in needed.partition('extra')[0]
    assert not [word for word in PLACEHOLDERS if word in text]


def test_everything_that_is_imported_is_declared(wheel):
    "A package that a module imports at its top is a requirement of the package itself."
    import ast
    from importlib.metadata import packages_distributions
    with zipfile.ZipFile(wheel) as z:
        text = z.read(next(name for name in z.namelist() if name.endswith('METADATA'))).decode()
        sources = [z.read(name).decode() for name in z.namelist() if name.endswith('.py')]
    imported = set()
    for source in sources:
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import): imported |= {alias.name.partition('.')[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: imported.add(node.module.partition('.')[0])
    declared = {line.removeprefix('Requires-Dist: ').lower() for line in text.splitlines() if line.startswith('Requires-Dist') and 'extra ==' not in line}
    names = packages_distributions()
    lost = [name for name in sorted(imported - sys.stdlib_module_names - {'nrf_repro'})
            if not any(line.startswith(dist.lower()) for dist in names.get(name, [name]) for line in declared)]
    assert set(lost) <= {'pydantic_core'} and len(imported) > 20, lost     # pydantic's own


def test_the_names_of_the_data_do_not_depend_on_the_folder(installed, tmp_path):
    code = '''
import nrf_repro, json
from nrf_repro.results.rows import CHECKOUT
from nrf_repro.experiment import published_networks
rows = nrf_repro.read_published()
print(json.dumps(dict(file=nrf_repro.__file__, checkout=str(CHECKOUT), profiles=nrf_repro.profiles(), claims=list(nrf_repro.load_claims()),
      paper=len(nrf_repro.paper_rows()), rows={k: len(v) for k, v in rows.items()}, sum=float(rows['demo'].value.sum()),
      networks=len(published_networks('cifar-small')), minutes=nrf_repro.load_profile('demo').minutes)))'''
    import nrf_repro
    (tmp_path / 'reports/profiles').mkdir(parents=True)
    (tmp_path / 'reports/claims.yaml').write_text('of another project')
    said = subprocess.run([installed, '-c', code], cwd=tmp_path, env=clean_env(), capture_output=True, text=True, check=True).stdout
    there, rows = json.loads(said), nrf_repro.read_published()
    assert str(ROOT) not in there['file'] and there['checkout'] == 'None'
    assert there['profiles'] == nrf_repro.profiles() and there['claims'] == list(nrf_repro.load_claims()) and there['paper'] == len(nrf_repro.paper_rows())
    assert there['rows'] == {k: len(v) for k, v in rows.items()} and there['sum'] == rows['demo'].value.sum()
    assert there['networks'] == len(nrf_repro.published_networks('cifar-small')) and there['minutes'] == nrf_repro.load_profile('demo').minutes


def test_a_published_network_is_named_and_loads_from_a_clone(installed, tmp_path):
    code = f'''
from nrf_repro import load_published
try: load_published('demo', norm='bn', arch='vgg11')
except FileNotFoundError as e: print(e)
try: load_published('demo', norm='bn')
except ValueError as e: print(e)
try: load_published('demo', norm='bnn')
except ValueError as e: print(e)
print(load_published('demo', norm='bn', arch='vgg11', folder={str(ROOT / 'reports/published')!r}).config['norm'])'''
    said = subprocess.run([installed, '-c', code], cwd=tmp_path, env=clean_env(TORCH_HOME=str(tmp_path / 'torch')), capture_output=True, text=True, check=True).stdout
    assert "no address to fetch it from: clone the repository and pass folder='CLONE/reports/published'" in said and said.endswith('\nbn\n')
    assert "2 published networks fit norm='bn', arch=None, regime='standard'. Pass arch= or dataset=; these fit: digits-resnet18" in said
    assert "0 published networks fit norm='bnn', arch=None, regime='standard'. Choose one of: digits-resnet18" in said
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('words, expected', [
    ('plan tiny --no-costs', 'Profile tiny:'), ('plan --profile tiny --no-costs', 'Profile tiny:'), ('compare demo cifar-cpu', 'A: demo, B: cifar-cpu'),
    ('report tiny --dry-run --quiet', 'job'), ('restore cifar-cpu', 'rows are in nrf-build/cifar-cpu')])
def test_commands_work_outside_a_clone_and_write_only_there(installed, tmp_path, words, expected):
    package = next(installed.parent.parent.glob('lib/python*/site-packages/nrf_repro'))
    before = contents(package)
    said = run(installed, *words.split(), cwd=tmp_path)
    assert said.returncode == 0 and expected in said.stdout + said.stderr, said.stderr[-1500:]
    assert contents(package) == before and {p.name for p in tmp_path.iterdir()} <= {'nrf-build'}


@pytest.mark.parametrize('words, message', [
    ('publish tiny', 'reports/published is written in a clone of the repository, and this package is installed: pass --to FOLDER.'),
    ('plan dmeo', "Unknown profile 'dmeo' (did you mean demo?): choose one of cifar, "), ('verify nothing', "'nothing' is not there")])
def test_errors_outside_a_clone(installed, tmp_path, words, message):
    said = run(installed, *words.split(), cwd=tmp_path)
    assert said.returncode == 2 and message in said.stderr and 'Traceback' not in said.stderr and not [*tmp_path.iterdir()]


@pytest.mark.parametrize('words, missing, message', [
    ('report tiny', 'snakemake', 'nrf-repro: snakemake is not installed: pip install "nrf_repro[run]"'),
    ('report tiny', 'papermill ipykernel', 'nrf-repro: papermill, ipykernel are not installed: pip install "nrf_repro[run]"'),
    ('report tiny --all', 'torchattacks', 'nrf-repro: torchattacks is not installed: pip install "nrf_repro[reference]"'),
    ('notebook {template} out/a.ipynb', 'nbformat', 'pip install "nrf_repro[run]"')])
def test_a_missing_extra_is_named_before_a_folder_is_made(installed, tmp_path, words, missing, message):
    (tmp_path / 'blocked').mkdir()
    (tmp_path / 'blocked/sitecustomize.py').write_text(f'import sys\nfor name in {missing.split()!r}: sys.modules[name] = None\n')
    words = words.format(template=ROOT / 'reports/notebooks/tables.ipynb')
    said = run(installed, *words.split(), cwd=tmp_path, PYTHONPATH=str(tmp_path / 'blocked'))
    assert said.returncode == 2 and message in said.stderr and 'Traceback' not in said.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['blocked']


def test_the_source_archive_can_run_its_tests(built, tmp_path):
    with tarfile.open(next(built[0].glob('*.tar.gz'))) as archive: archive.extractall(tmp_path, filter='data')
    root = next(tmp_path.iterdir())
    for path in [*ROOT.glob('tests/*.py'), *ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('reports/profiles/*'), *ROOT.glob('docs/*.py'), ROOT / 'Makefile']:
        if '.ipynb_checkpoints' not in path.parts: assert (root / path.relative_to(ROOT)).is_file(), path
    assert not [*root.glob('reports/build')] and not [*root.rglob('__pycache__')]
    assert [*root.glob('reports/published/demo/networks/*.safetensors')] and [*root.glob('reports/published/cifar/networks/registry.json')]
    words = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', 'tests/test_intervals.py', '-k', 'wilson']
    said = subprocess.run(words, cwd=root, env=clean_env(PYTHONPATH=str(root)), capture_output=True, text=True)
    assert said.returncode == 0 and 'passed' in said.stdout, said.stdout[-1500:]


CONSUMER = '''
import pandas as pd
from torch import nn

import nrf_repro
from nrf_repro import Attack, Recipe, build_model, fit, load, measure
from nrf_repro.results import read_rows

net: nn.Module = build_model('vgg11', 'bn', width=1 / 8, seed=0)
test = load('digits', 'test', limit=100)
history: pd.DataFrame = fit(net, test, Recipe(epochs=1))
attack = Attack(ball='linf', eps=8 / 255, loss='ce', steps=10, step_size=2 / 255)
adversarial = attack(net, test.pixels(), test.y)
m = measure(net, test[:50], attacks={'pgd': attack}, limit=50, name='mine', device='cpu')
robust: float = m['pgd']
nrf_repro.write_rows(m.to_html('page.html').with_suffix('.jsonl'), m.rows)
lines: pd.DataFrame = nrf_repro.compare(read_rows('rows.jsonl'), m)
low: float = nrf_repro.wilson(3, 10).low
nrf_repro.measure(net, (test.x, test.y), checks=0)
'''
WRONG = {"nrf_repro.measure('vgg11', 'digits', limit='three')": 'Argument "limit" to "measure" has incompatible type "str"',
         "nrf_repro.measure('vgg11')": 'Missing positional argument "images"', "nrf_repro.mesure('vgg11', 'digits')": 'has no attribute "mesure"',
         "nrf_repro.build_model('vgg11', norm=3)": 'Argument "norm" to "build_model"', "nrf_repro.load('digits', 'test').pixel()": 'has no attribute "pixel"'}


def test_mypy_accepts_a_correct_script_and_rejects_wrong_ones(installed, tmp_path):
    mypy = pytest.importorskip('mypy.version', reason='no mypy: make setup installs it')
    others = ','.join(f'{name}.*' for name in 'torch torchvision numpy scipy sklearn pandas matplotlib pydantic PIL seaborn tqdm fastcore safetensors'.split())
    (tmp_path / 'mypy.ini').write_text(f'[mypy-{others}]\nfollow_imports = skip\nignore_missing_imports = True\n')   # types of torch take minutes
    (tmp_path / 'right.py').write_text(CONSUMER)
    (tmp_path / 'wrong.py').write_text('import nrf_repro\n' + '\n'.join(WRONG) + '\n')
    words = [sys.executable, '-m', 'mypy', '--config-file', 'mypy.ini', '--python-executable', installed]
    right, wrong = (subprocess.run([*words, file], cwd=tmp_path, capture_output=True, text=True,
                                    env=clean_env(PYTHONPATH=str(Path(mypy.__file__).parent.parent))) for file in ('right.py', 'wrong.py'))
    assert right.returncode == 0 and 'no issues found' in right.stdout, right.stdout
    found = wrong.stdout.splitlines()
    for number, message in enumerate(WRONG.values(), 2):
        assert [line for line in found if line.startswith(f'wrong.py:{number}: error') and message in line], (message, wrong.stdout)


def test_every_public_function_is_annotated():
    import inspect

    import nrf_repro
    functions = [getattr(nrf_repro, name) for name in nrf_repro.__all__ if inspect.isfunction(getattr(nrf_repro, name))]
    assert len(functions) > 40
    for f in functions:
        s = inspect.signature(f)
        assert s.return_annotation is not s.empty and all(p.annotation is not p.empty for p in s.parameters.values()), f.__name__
