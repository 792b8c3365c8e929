"""What the robustness tests did, as numbers: `NRF_COUNTS=docs/robustness pytest ...` leaves them for the page of the site.

    python tests/counted.py docs/robustness    prints them as a table
"""
import json
import os
import sys
from pathlib import Path


def count(group, name, **numbers):
    "Note how much a test did, if somebody wants to know."
    if not (folder := os.environ.get('NRF_COUNTS')): return
    file = Path(folder, f'{group}--{name}.json'.replace(' ', '-'))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(group=group, name=name) | numbers) + '\n', encoding='utf-8')


def counts(folder):
    "All that was noted, group by group."
    return sorted((json.loads(p.read_text(encoding='utf-8')) for p in Path(folder).glob('*.json')), key=lambda c: (c['group'], c['name']))


def table(folder):
    "The same as Markdown."
    def numbers(c): return ', '.join(f'{k.replace("_", " ")} {v}' for k, v in c.items() if k not in ('group', 'name'))
    return '\n'.join(['| group | what was done | numbers |', '| --- | --- | --- |', *(f'| {c["group"]} | {c["name"]} | {numbers(c)} |' for c in counts(folder))])


if __name__ == '__main__': print(table(sys.argv[1]))
