"""Reads what there is to know about the package from settings.ini, so that no fact stands in two places."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = cfg['DEFAULT']

extras = {k.removeprefix('pip_extras_'): v.split() for k, v in cfg.items() if k.startswith('pip_extras_')}
extras['dev'] = cfg['dev_requirements'].split()

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    url=cfg['git_url'],
    keywords=cfg['keywords'],
    packages=find_packages(include=['nrf_repro', 'nrf_repro.*']),
    include_package_data=True,
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    python_requires=f">={cfg['min_python']}",
    entry_points={
        'console_scripts': ['nrf-repro = nrf_repro.cli:main'],
        'nbdev': [f"{cfg['lib_name']} = {cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
