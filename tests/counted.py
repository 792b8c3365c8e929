"""What the robustness tests did, as numbers: `NRF_COUNTS=docs/robustness pytest ...` leaves them for the page of the site.

    python tests/counted.py docs/robustness    prints them as a table
"""
import json
import os
import re
import sys
from pathlib import Path


def count(group, name, **numbers):
    "Note how much a test did, if somebody wants to know."
    if not (folder := os.environ.get('NRF_COUNTS')): return
    file = Path(folder, re.sub(r'[^\w.-]+', '-', f'{group}--{name}.json'))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(group=group, name=name) | numbers) + '\n', encoding='utf-8')


def counts(folder):
    "All that was noted, group by group."
    return sorted((json.loads(p.read_text(encoding='utf-8')) for p in Path(folder).glob('*.json')), key=lambda c: (c['group'], c['name']))


def totals(folder):
    "The sums over all tests, in a line."
    names = dict(kills='kills', mutants='damaged files', programs='programs in the place of data', examples='examples of properties', jobs_submitted='jobs on Slurm')
    sums = {what: sum(c.get(k, 0) for c in counts(folder)) for k, what in names.items()}
    return 'In all: ' + ', '.join(f'{n:,} {what}' for what, n in sums.items() if n) + '.'


def table(folder):
    "The same as Markdown."
    def word(v): return f'{v:.2g}' if isinstance(v, float) else f'{v:,}' if isinstance(v, int) else v
    def numbers(c): return ', '.join(f'{k.replace("_", " ")} {word(v)}' for k, v in c.items() if k not in ('group', 'name'))
    lines = [f'| {c["group"]} | {c["name"].replace("_", " ")} | {numbers(c)} |' for c in counts(folder)]
    return '\n'.join(['| group | what was done | numbers |', '| --- | --- | --- |', *lines, '', totals(folder)])


if __name__ == '__main__': print(table(sys.argv[1]))
