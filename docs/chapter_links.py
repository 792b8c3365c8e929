"""The last visible cell of each chapter: links to the chapters before and after it, by title.

`tests/check_clean.py` calls `write_links`, so a chapter that is added, renamed or moved changes the links around it.
"""
import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINKS = re.compile(r'\A(Previous|Next): \[')


def source_of(cell): return ''.join(cell['source'])


def title_of(notebook):
    "The first heading of a notebook."
    lines = (line for c in notebook['cells'] if c['cell_type'] == 'markdown' for line in source_of(c).splitlines())
    return next(line[2:].strip() for line in lines if line.startswith('# '))


def link_line(here, before, after, titles):
    "'Previous: [...](...) · Next: [...](...)' for the chapter at `here`; None where there is no neighbour."
    def link(word, path): return f'{word}: [{titles[path]}]({os.path.relpath(path, here.parent)})'
    return ' · '.join(link(word, path) for word, path in (('Previous', before), ('Next', after)) if path)


def with_links(notebook, line):
    "The notebook's cells with this line in its own cell, before the cell that exports the module."
    cells = [c for c in notebook['cells'] if not (c['cell_type'] == 'markdown' and LINKS.match(source_of(c)))]
    old = next((c for c in notebook['cells'] if c['cell_type'] == 'markdown' and LINKS.match(source_of(c))), None)
    cell = dict(cell_type='markdown', id=old['id'] if old else 'neighbours', metadata={}, source=[line])
    place = len(cells)
    while place and 'nbdev_export(' in source_of(cells[place - 1]): place -= 1
    return [*cells[:place], cell, *cells[place:]]


def write_links(root=ROOT):
    "Write the links into all chapters whose links differ."
    paths = sorted((p for p in (root / 'nbs').glob('*_*/*.ipynb')), key=lambda p: p.stem)
    books = {p: json.loads(p.read_text(encoding='utf-8')) for p in paths}
    titles = {p: title_of(nb) for p, nb in books.items()}
    for i, path in enumerate(paths):
        before, after = paths[i - 1] if i else None, paths[i + 1] if i + 1 < len(paths) else None
        cells = with_links(books[path], link_line(path, before, after, titles))
        if cells != books[path]['cells']:
            books[path]['cells'] = cells
            path.write_text(json.dumps(books[path], ensure_ascii=False, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': write_links()
