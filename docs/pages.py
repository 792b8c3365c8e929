"""The pages that are not chapters: the API by task, published reports, benchmarks, robustness, how to add, how to cite, bibliography."""
import ast
import html
import re
import shutil
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
COPIED = {'.html', '.json', '.jsonl', '.csv', '.ipynb', '.md', '.tex', '.png', '.svg', '.yaml'}   # no weights


REPORTS = """# Reports

A report is one file with the tables and figures of the paper, ours beside the printed values, and a verdict on each
claim. It opens from a disk, offline.

{reports}

Two runs are compared by `nrf-repro compare demo cifar-small --out moved.html`. Your own network is measured by `nrf-repro measure`
([Test a model](test_a_model.md)).

## The claims

Their rules are in [claims.yaml]({url}/reports/claims.yaml), fixed beforehand; what was changed later is listed at its head.

| no. | claim | in short |
| --- | --- | --- |
{claims}
"""
API = """# API by task

These names are imported from `nrf_repro`, for example `from nrf_repro import robust_correct`. Importing the package loads none of
its modules: a name is loaded when it is first used. Each name links to its signature, its parameters and its source.
"""
CITE = """# How to cite

{message}

This software:

```bibtex
{ours}
```

The paper:

```bibtex
{paper}
```

The same for machines is in [CITATION.cff]({url}/CITATION.cff); all other works are in the
[bibliography](bibliography.md).
"""


def all_pages(root, cfg):
    "Name -> Markdown."
    cff = yaml.safe_load((root / 'CITATION.cff').read_text(encoding='utf-8'))
    url = f'{cfg["git_url"]}/blob/{cfg["branch"]}'
    return dict(reports=reports(root, url), benchmarks=benchmarks(root), robustness=robustness(root), add=page('add'), test_a_model=page('test_a_model').replace('REPOSITORY', cfg['git_url']), cite=cite(cff, cfg, url),
                bibliography=bibliography(cff))


def api(found):
    "The public names of the package by task, each with the first line of its docstring. `found`: of `reference.modules`."
    sys.path.insert(0, str(HERE.parent))
    from nrf_repro import TASKS
    there = {(m.name, o.name): o for m in found for o in m.objects}
    parts = []
    for task, packages in TASKS.items():
        lines = [line_of(there, package, name) for package, names in packages.items() for name in names.split()]
        parts += [f'## {task}', '\n'.join(['| name | what it is or returns |', '| --- | --- |', *lines])]
    return '\n\n'.join([API, *parts, ''])


def line_of(there, package, name):
    "A line of the table for a name of a package. Raises KeyError if no exported module of the package defines it."
    module = next((m for m, n in there if n == name and (m == package or m.startswith(f'{package}.'))), None)
    if module is None: raise KeyError(f'{name} is public in nrf_repro but no module of nrf_repro.{package} exports it.')
    node = there[module, name].node
    text = ast.get_docstring(node) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else entries_text(name)
    first = re.split(r'(?<=[.])(?<!al\.)\s', ' '.join(text.split()), maxsplit=1)[0].replace('|', r'\|')
    return f'| {{py:obj}}`{name} <nrf_repro.{module}.{name}>` | {first} |'


def entries_text(name):
    "The entries of a public constant."
    import nrf_repro
    return 'Constant with the entries ' + ', '.join(f'`{key}`' for key in getattr(nrf_repro, name)) + '.'


def home(cfg):
    "Stands in for nbs/index.ipynb."
    return dict(cells=[dict(cell_type='markdown', source=f'# {cfg["title"]}\n\n{cfg["description"]}')])


def published(root):
    "The folders of the published reports."
    return sorted(p.parent for p in root.glob('reports/published/*/report.html'))


def reports(root, url):
    "The list of reports, and the claims that they decide."
    there = [f'- <a href="published/{p.name}/report.html">{p.name}</a>{about(root, p.name)}' for p in published(root)]
    none = 'None is published yet. `make report` leaves one in `reports/build/demo/report.html`.'
    claims = yaml.safe_load((root / 'reports/claims.yaml').read_text(encoding='utf-8'))['claims']
    rows = [f'| {c["id"]} | **{c["title"]}** | {" ".join(c["statement"].split())} |' for c in claims]
    return REPORTS.format(reports='\n'.join(there) or none, url=url, claims='\n'.join(rows)) + leaderboard(root)


def mark(line, marks, again):
    "The mark of a robust accuracy: ⚠ with the reason where a check of its attack failed, ○ where no stronger attack was tried, else ''."
    network = tuple(map(str, (line.dataset, line.arch, line.width, line.regime, line.norm)))
    reason = marks.get(line.profile, {}).get((*network, 'pgd_l2'))
    if reason: return f' <abbr title="{html.escape(reason)}">⚠</abbr>'
    if reason is None and (line.profile, *network) not in again: return ' <abbr title="no stronger attack was tried on this network">○</abbr>'
    return ''


def attacked_again(rows):
    "The networks that all attacks were tried on image by image: (profile, data, network, width, training, norm)."
    paired = rows[(rows.experiment == 'paired_images') & rows.source.str.match(r'\d+ ', na=False)]
    return set(map(lambda key: tuple(map(str, key)), paired[['profile', 'dataset', 'arch', 'width', 'regime', 'norm']].itertuples(index=False)))


def board_line(line, marks, again): # a line of the package's `leaderboard`
    "The cells of a network: (what is shown, what it is sorted by)."
    from nrf_repro.report.text import arch_name, norm_name
    interval = '' if line.low != line.low else f' <small>[{line.low:.1f}, {line.high:.1f}]</small>'
    texts = [line.profile, line.dataset, arch_name(line.arch), norm_name(line.norm), line.regime]
    numbers = [(f'{line.width:g}', line.width), (f'{line.clean:.1f}', line.clean), (f'{line.robust:.1f}{interval}{mark(line, marks, again)}', line.robust),
               (f'{line.LIGS:.3f}', line.LIGS), (f'{line.eps:g}', line.eps), (line.seeds, line.seeds)]
    return [(text, text) for text in texts] + [(shown, -1 if value != value else value) for shown, value in numbers]


def leaderboard(root):
    "The published networks, from their rows: an HTML table that is sorted by a click on the head of a column."
    from nrf_repro.experiment.published import leaderboard as lines, published_rows
    from nrf_repro.report.checks import doubts
    if not list(root.glob('reports/published/*/rows.jsonl')): return ''
    rows = published_rows(root / 'reports/published')
    marks, again = {profile: doubts(own) for profile, own in rows.groupby('profile')}, attacked_again(rows)
    board = lines(rows).rename(columns={'clean, %': 'clean', 'robust, %': 'robust', 'robust low, %': 'low', 'robust high, %': 'high'})
    heads = ['Profile', 'Data', 'Network', 'Norm', 'Training', 'Width', 'Clean, %', 'Robust, %', 'LIGS', 'eps', 'Seeds']
    top = ''.join(f'<th scope="col"><button type="button">{head}</button></th>' for head in heads)
    body = [''.join(f'<td data-value="{value}">{shown}</td>' for shown, value in board_line(line, marks, again)) for line in board[board.robust.notna()].itertuples()]
    table = ['<table class="leaderboard">', f'<thead><tr>{top}</tr></thead>', '<tbody>', *(f'<tr>{cells}</tr>' for cells in body), '</tbody></table>']
    return '\n'.join([BOARD, *table, ''])


BOARD = """
## Leaderboard

Mean over seeds; robust accuracy under PGD ℓ2 at the profile's eps, which differs between profiles, with its 95 % t interval over
seeds. Read it beside clean accuracy. ⚠: a check of the attack failed, so the value is too high; the title of the mark says which,
and the checks are in [Is the attack strong enough?](12_attack_strength.ipynb). ○: no stronger attack was tried. Without a mark: stronger
attacks were tried and no check failed. A click on the head of a column sorts by it. The small networks lie beside the rows: `nrf_repro.load_published('demo', arch='vgg11', norm='bn')`.
"""


def about(root, name):
    "What a profile says of itself."
    file = root / f'reports/profiles/{name}.yaml'
    return f': {yaml.safe_load(file.read_text(encoding="utf-8"))["about"]}' if file.is_file() else ''


def published_files(root):
    "The files of published reports that go to the site: rows, tables and notebooks, but no weights."
    return [p for folder in published(root) for p in sorted(folder.rglob('*')) if p.is_file() and p.suffix in COPIED]


def copy_reports(root, out):
    "The published reports, where links to them lead."
    shutil.rmtree(out / 'published', ignore_errors=True)
    chapters = [p.stem for p in (root / 'nbs').glob('*_*/*.ipynb')]
    for file in published_files(root):
        target = out / file.relative_to(root / 'reports')
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.name == 'report.html': target.write_text(on_site(file.read_text(encoding='utf-8'), chapters), encoding='utf-8')
        else: shutil.copyfile(file, target)


def on_site(report, chapters=()):
    """The text of a published report, whose links to notebooks of chapters lead to their pages instead.

    `chapters`: the names of today. A report keeps the number that a chapter had when it was rendered; the name after it decides.
    """
    today = {name.partition('_')[2]: name for name in chapters}
    def link(m): return f'{m[1]}{today.get(m[2].partition("_")[2], m[2])}.html"'
    home = '<a href="../../index.html">nrf_repro</a> (<a href="../../test_a_model.html">test your own model</a>), report of'
    return re.sub(r'(href="\.\./\.\./)\.\./nbs/(?:\w+/)?(\w+)\.ipynb"', link, report.replace('<span>nrf_repro, report of', f'<span>{home}', 1))


def page(name):
    "A page written by hand: its links lead to files of the repository, on the site to pages beside it."
    text = (HERE / f'pages/{name}.md').read_text(encoding='utf-8')
    return re.sub(r'\]\((?:\.\./)+(?:nbs/(?:\d_\w+/)?)?', '](', text)


def benchmarks(root):
    "The tables that `make bench` leaves as Markdown."
    candidates = root / 'docs/benchmarks.md', *sorted(root.glob('bench/*.md'))
    files = [p for p in candidates if p.is_file() and p.name != 'README.md']
    if not files: return '# Benchmarks\n\nNone is published yet.\n'
    texts = [re.sub(r'^# .+\n', '', p.read_text(encoding='utf-8'), count=1) for p in files]
    return '\n\n'.join(['# Benchmarks', *texts]) + '\n'


def robustness(root):
    "The page on faults, with what the tests counted."
    sys.path.insert(0, str(HERE.parent / 'tests'))
    from counted import table
    there = sorted(root.glob('docs/robustness/*.json'))
    return page('robustness').replace('<!-- counts: put here by docs/pages.py -->', table(there[0].parent) if there else 'None are kept yet.')


def names(authors):
    "Given and family names, as a list in words."
    all = [' '.join(filter(None, (a.get('given-names'), a.get('family-names')))) or a['name'] for a in authors]
    return all[0] if len(all) == 1 else ', '.join(all[:-1]) + ' and ' + all[-1]


def where(ref):
    "Conference or journal, and year."
    venue = (ref.get('conference') or {}).get('name') or ref.get('journal') or ref.get('publisher', {}).get('name', '')
    return ', '.join(filter(None, (venue, str(ref.get('year') or ref.get('date-released', '')))))


def entry(ref):
    "A line of the bibliography."
    title = ref['title']
    if url := ref.get('url') or (f'https://doi.org/{ref["doi"]}' if 'doi' in ref else None): title = f'[{title}]({url})'
    note = f' {ref["notes"]}' if ref.get('notes') else ''
    return f'{names(ref["authors"])}. {title}{"" if ref["title"].endswith("?") else "."} {where(ref)}.{note}'


def bibliography(cff):
    "All that the book cites, as CITATION.cff lists it."
    lines = [f'{i}. {entry(ref)}' for i, ref in enumerate(cff['references'], 1)]
    return '\n'.join(['# Bibliography', '', *lines, ''])


def bibtex_name(a): return f'{a["family-names"]}, {a["given-names"]}' if 'family-names' in a else f'{{{a["name"]}}}'


def bibtex(key, ref):
    "A BibTeX record."
    kind = {'conference-paper': 'inproceedings', 'article': 'article'}.get(ref.get('type'), 'misc')
    fields = dict(title=f'{{{ref["title"]}}}', author=' and '.join(map(bibtex_name, ref['authors'])),
                  booktitle=(ref.get('conference') or {}).get('name'))
    fields |= {name: ref.get(name) for name in ('journal', 'version', 'url')} | dict(year=ref.get('year') or str(ref.get('date-released', ''))[:4])
    return '\n'.join([f'@{kind}{{{key},', *(f'  {k} = {{{v}}},' for k, v in fields.items() if v), '}'])


def cite(cff, cfg, url):
    "How to cite us, and the paper."
    ours = bibtex(cfg['title'], cff | dict(url=cfg['git_url'], type='software'))
    return CITE.format(message=cff['message'], ours=ours, paper=bibtex('paper', cff['references'][0]), url=url)
