"""A copy of the code to run in, which nobody edits meanwhile: rows of two runs then have one source."""
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent


def checkout(folder):
    "The package and its reports, without what was run."
    shutil.copytree(ROOT / 'nrf_repro', folder / 'nrf_repro', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'reports', folder / 'reports', ignore=shutil.ignore_patterns('build', 'published'))
    return folder
