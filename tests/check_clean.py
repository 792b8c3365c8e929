"""Is what is committed what the notebooks give? Write the links between chapters, export, clean and write the README, and see whether anything changes.

A module may also use a name that only a hidden cell of its notebook imports: there it works, imported it fails. So
pyflakes reads the package, and an undefined name is an error.

Without arguments: works, compares, and fails on any difference. With --write: leaves the changes in place.
"""
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'docs'))
import chapter_links
import stubs

BIN = Path(sys.executable).parent


def contents():
    "Every file that could change, by its hash."
    files = [*ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('reports/notebooks/*.ipynb'), *ROOT.glob('nrf_repro/**/*.py'), *ROOT.glob('nrf_repro/**/*.pyi'), *ROOT.glob('README*')]
    return {p.relative_to(ROOT): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def export_and_clean():
    chapter_links.write_links(ROOT)
    for words in (['nbdev_export'], ['nbdev_clean'], ['nbdev_clean', '--fname', 'reports/notebooks']):
        subprocess.run([BIN / words[0], *words[1:]], cwd=ROOT, check=True)
    stubs.write_stubs(ROOT)
    subprocess.run([sys.executable, ROOT / 'docs/readme.py'], cwd=ROOT, check=True)


def undefined_names():
    "As pyflakes prints them."
    said = subprocess.run([sys.executable, '-m', 'pyflakes', 'nrf_repro'], cwd=ROOT, capture_output=True, text=True)
    if said.returncode not in (0, 1) or said.stderr: sys.exit(f'pyflakes could not read the package: {said.stderr.strip()}')
    return [line for line in said.stdout.splitlines() if 'undefined name' in line]


if __name__ == '__main__':
    before = contents()
    export_and_clean()
    changed = sorted(str(p) for p, h in contents().items() if before.get(p) != h)
    if changed and '--write' not in sys.argv:
        sys.exit(f'Not in sync with the notebooks, or not clean: {", ".join(changed)}. Run `make book` and commit.')
    if unknown := undefined_names(): sys.exit('\n'.join(['Import these in an exported cell:', *unknown]))
    print('export, clean and README leave nothing changed' if not changed else f'wrote {", ".join(changed)}')
