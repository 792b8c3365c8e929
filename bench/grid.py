"""How large a grid may Snakemake plan? A dry run of 10, 100 and 1000 jobs: CPU time and peak memory, as Markdown.

    .venv/bin/python bench/grid.py [JOBS ...] > bench/grid.md
"""
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
# in a process of its own, so that the peak is that of this dry run alone
CHILD = '''
import resource, sys
from pathlib import Path
from nrf_repro.cli import snakemake
folder = Path('reports/build', Path(sys.argv[1]).stem)
folder.mkdir(parents=True, exist_ok=True)
status = snakemake(sys.argv[1], ['core'], folder, '*', 'measure', '--cores', 2, '--dry-run', '--quiet', 'host')
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print('used', status, used.ru_utime + used.ru_stime, used.ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10))
'''
PAGE = """## A grid of a thousand networks

A dry run of the grid: Snakemake reads the profile, builds the graph and says which jobs it would start; with `--cluster reports/slurm` at most 100
of them wait in the queue at once. Of the CPU seconds some are Python's own start. {python}, Snakemake {snakemake}. Written by `{command}`.

| networks, a job each | planned | CPU seconds | peak memory, MB |
| ---: | ---: | ---: | ---: |
{lines}
"""


def grid(jobs, folder):
    "The tiny profile with so many networks, a job each."
    profile = yaml.safe_load((ROOT / 'reports/profiles/tiny.yaml').read_text())
    profile.pop('studies', None)
    profile['grids'] = [profile['grids'][0] | dict(norms=['bn'], regimes=['standard'], seeds=list(range(jobs)), job=['norm', 'seed'])]
    file = Path(folder, f'grid-{jobs}.yaml')
    file.write_text(yaml.safe_dump(profile))
    return file


def dry_run(file):
    "Jobs planned, CPU seconds, MB."
    run = subprocess.run([sys.executable, '-c', CHILD, str(file)], cwd=ROOT, capture_output=True, text=True)
    used = run.stdout.splitlines()[-1].split() if run.stdout else ['']
    if run.returncode or used[0] != 'used' or used[1] != '0': raise SystemExit(f'The dry run of {file.name} failed: {run.stderr[-2000:]}{run.stdout[-2000:]}')
    planned = next(int(line.split()[1]) for line in (run.stdout + run.stderr).splitlines() if re.fullmatch(r'network +\d+ *', line))
    return planned, float(used[2]), float(used[3])


if __name__ == '__main__':
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for jobs in map(int, sys.argv[1:] or ['10', '100', '1000']):
            planned, seconds, peak = dry_run(grid(jobs, folder))
            shutil.rmtree(ROOT / f'reports/build/grid-{jobs}')
            assert planned == jobs, f'{jobs} networks, {planned} jobs'
            lines.append(f'| {jobs} | {planned} | {seconds:.1f} | {peak:.0f} |')
    print(PAGE.format(python=f'Python {platform.python_version()}', snakemake=version('snakemake'), command=' '.join(['bench/grid.py', *sys.argv[1:]]), lines='\n'.join(lines)), end='')
