"""Reads what there is to know about the package from settings.ini, so that no fact stands in two places.

A wheel also holds what a checkout has in reports/, as nrf_repro/_data: see `Build`.
"""
import hashlib
import json
import lzma
import shutil
import struct
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(ROOT / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
public = cfg.getboolean('public')   # False: addresses are placeholders, and no metadata names them

# Copied as they are; of published profiles, rows are compressed and networks are named with their SHA-256.
DATA = ['requirements.lock', 'reports/Snakefile', 'reports/claims.yaml', 'reports/error_rates.csv', 'reports/profiles/*.yaml',
        'reports/paper/*.csv', 'reports/notebooks/*.ipynb', 'reports/slurm/*.yaml',
        'reports/published/*/origin.json', 'reports/published/*/networks/networks.json']


def registry_entry(file, profile):
    "SHA-256, address and arguments of a published network (safetensors: the length of a JSON header, the header, the weights)."
    content = file.read_bytes()
    header = json.loads(content[8:8 + struct.unpack('<Q', content[:8])[0]])
    url = f'{cfg["networks_url"]}/{profile}/{file.name}' if public else ''
    return dict(sha256=hashlib.sha256(content).hexdigest(), url=url, config=json.loads(header['__metadata__']['config']))


def registries(root):
    "Path -> text of the registry of each published profile: made from the networks; a source archive, which has none, holds it."
    found = {}
    for place in sorted(root.glob('reports/published/[!.]*/networks')):
        path = place / 'registry.json'
        networks = {file.stem: registry_entry(file, place.parent.name) for file in sorted(place.glob('[!.]*.safetensors'))}
        found[path.relative_to(root)] = path.read_text(encoding='utf-8') if path.is_file() else json.dumps(networks, indent=1) + '\n'
    return found


def write_data(root, to):
    "Write the data of the package, as `DATA` says; returns the files."
    files = [path.relative_to(root) for pattern in DATA for path in sorted(root.glob(pattern)) if '/.' not in path.as_posix()]
    for file in files:
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, to / file)
    for rows in sorted(root.glob('reports/published/[!.]*/rows.jsonl')):
        file = rows.relative_to(root).with_name('rows.jsonl.xz')
        (to / file).write_bytes(lzma.compress(rows.read_bytes(), preset=9))
        files.append(file)
    for file, text in registries(root).items():
        (to / file).write_text(text, encoding='utf-8')
        files.append(file)
    return [to / file for file in files]


class Build(build_py):
    "A wheel gets nrf_repro/_data. An editable installation does not: there the package reads reports/ of the checkout."
    written = ()

    def run(self):
        super().run()
        if self.editable_mode: return
        shutil.rmtree(to := Path(self.build_lib, cfg['lib_name'], '_data'), ignore_errors=True)
        self.written = list(map(str, write_data(ROOT, to)))

    def get_outputs(self, include_bytecode=True): return [*super().get_outputs(include_bytecode), *self.written]


class Archive(sdist):
    "A source archive holds the registries, because it leaves the larger networks out."
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for file, text in registries(ROOT).items():
            Path(base_dir, file).parent.mkdir(parents=True, exist_ok=True)
            Path(base_dir, file).write_text(text, encoding='utf-8')


extras = {k.removeprefix('pip_extras_'): v.split() for k, v in cfg.items() if k.startswith('pip_extras_')}
extras['dev'] = cfg['dev_requirements'].split()

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    **(dict(author_email=cfg['author_email'], url=cfg['git_url'],
            project_urls=dict(Documentation=cfg['doc_host'] + cfg['doc_baseurl'], Issues=f'{cfg["git_url"]}/issues',
                              Changelog=f'{cfg["git_url"]}/blob/{cfg["branch"]}/CHANGELOG.md')) if public else {}),
    keywords=cfg['keywords'],
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Science/Research', 'Operating System :: POSIX :: Linux',
                 'Operating System :: MacOS', 'Programming Language :: Python :: 3 :: Only',
                 *(f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)),
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed'],
    packages=find_packages(include=['nrf_repro', 'nrf_repro.*']),
    package_data={'nrf_repro': ['py.typed', '*.pyi', 'report/templates/*', 'report/*.toml', 'studies/*.txt'], 'nrf_repro.*': ['*.pyi']},
    include_package_data=False,
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    python_requires=f">={cfg['min_python']}",
    entry_points={
        'console_scripts': ['nrf-repro = nrf_repro.cli:main'],
        'nbdev': [f"{cfg['lib_name']} = {cfg['lib_name']}._modidx:d"],
    },
    cmdclass=dict(build_py=Build, sdist=Archive),
    zip_safe=False,
)
