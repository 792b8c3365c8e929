"""The site says what the notebooks say, without nbdev's marks; it works from a disk, in a browser, without a network.

The browser is the system's Chromium; AXE=path/to/axe.min.js (npm's axe-core) adds the check of accessibility.
"""
import base64
import gzip
import html
import http.server
import io
import json
import os
import re
import shutil
import sys
import threading
from collections import defaultdict
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from PIL import Image, ImageChops

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'docs'))
import captions
import chapter_links
import chapters
import drawings
import front
import make_site
import pages
import reference
import verdicts

CFG = make_site.settings() | dict(published={'reports/published/demo/report.html'})
OTHERS = ('reports', 'overview', 'benchmarks', 'robustness', 'learn', 'test_a_model', 'glossary', 'add', 'cite', 'bibliography')
NOTEBOOKS = {p.stem: p for p in make_site.book_notebooks()}
CHAPTERS = [name for name in NOTEBOOKS if name != 'index']


def notebook(*cells):
    "A notebook of (kind, source) or (kind, source, printed)."
    def cell(kind, source, printed=None):
        out = [dict(output_type='stream', name='stdout', text=printed)] if printed else []
        made = dict(cell_type=kind, id='abc', metadata={}, source=source)
        return made | (dict(outputs=out) if kind == 'code' else {})
    return dict(cells=[cell(*c) for c in cells])


def shown(*cells): return list(chapters.convert(notebook(*cells)))


def sources(*cells): return [c['source'] for c in shown(*cells)]


# Conversion

def test_directives_go_and_hidden_cells_go():
    made = sources(('code', '#| default_exp models.norms'), ('code', '#| hide\nsecret()'),
                   ('code', '#|hide\nimport nbdev; nbdev.nbdev_export()'),
                   ('code', "from nbdev.export import nb_export; nb_export('a.ipynb', '..')"), ('markdown', '# T'),
                   ('code', '#| export\n#| code-fold: true\ndef f(): pass\n'), ('code', 'f()\nx = 1 #| hide_line'))
    assert [m for m in made if 'class="exported"' not in m] == ['# T', 'def f(): pass', 'f()']
    assert any('nrf_repro.models.norms' in m for m in made)


@pytest.mark.parametrize('directive, tags, left', [
    ('#| echo: false', ['remove-input'], '1'), ('#| slow', [], '1'),
    ('#| output: false', [], None), ('#| hide_output', [], None)])
def test_what_a_directive_hides(directive, tags, left):
    cell, = shown(('code', f'{directive}\nprint(1)', '1'))
    assert cell['metadata']['tags'] == tags and cell['source'] == 'print(1)'
    assert [o['text'] for o in cell['outputs']] == ([left] if left else [])


def test_output_asis_is_markdown():
    code, text = shown(('code', '#| output: asis\nprint("**b**")', '**b**'))
    assert code['outputs'] == [] and text['cell_type'] == 'markdown' and text['source'] == '**b**'
    only, = shown(('code', '#| echo: false\n#| output: asis\nprint("**b**")', '**b**'))
    assert only['source'] == '**b**'


def test_imports_and_long_cells_are_folded_and_nothing_else():
    def tags(code): return shown(('code', code))[0]['metadata']['tags']
    assert tags('import os\nimport re\n\nimport torch') == ['hide-input'] == tags('\n'.join('x = 1' for _ in range(40)))
    assert tags('import os\nprint(os.name)\nx = 1') == [] == tags('import os') == tags('x = 1\ny = 2\nz = 3')
    assert tags('#| code-fold: show\n' + '\n'.join('x = 1' for _ in range(40))) == []


def test_warnings_and_progress_bars_are_left_out_and_sentences_stay():
    noise, sentence = ('File "/home/me/x.py": FutureWarning: beware', 'net:  25%|██▌  | 40/160', ' \n'), '12 images here'
    outputs = [dict(output_type='stream', name='stderr', text=t) for t in (*noise, [sentence])]
    nb = dict(cells=[dict(cell_type='code', id='a', metadata={}, source='f()', outputs=outputs)])
    assert [o['text'] for o in next(chapters.convert(nb))['outputs']] == [[sentence]]


def test_prose_is_linked_but_code_is_not():
    module = reference.Module('models.norms', '', [reference.Object('normalize', None, '')])
    nb = notebook(('code', 'from nrf_repro.models.norms import (normalize,\n                             other)'),
                  ('markdown', '# `normalize`\n\n> Claim.\n\n'
                               'Use `normalize` as [attacks](../2_robustness/08_attacks.ipynb#loss) say, not [this](../x.ipynb).\n\n'
                               '> **Paper** (table 1): x.\n\n```python\n`normalize` chapter 7\n```\n\n[s](../../settings.ini) '
                               '[r](../reports/published/demo/report.html) ![f](../docs/f.png)'))
    text = json.loads(chapters.page('03_norms', nb, ['03_norms', '08_attacks'], CFG, [module]))['cells'][1]['source']
    assert text.startswith('# `normalize`\n\n<p class="badges">')
    assert '{.claim}\n> Claim.' in text and '{.paper}\n> **Paper**' in text
    assert 'Use {py:obj}`normalize <nrf_repro.models.norms.normalize>` as [attacks](08_attacks.ipynb#loss) say' in text
    assert '```python\n`normalize` chapter 7\n```' in text and f'[s]({CFG["git_url"]}/blob/main/settings.ini)' in text
    assert '<a href="published/demo/report.html">r</a> ![f](files/docs/f.png)' in text


@pytest.mark.parametrize('name', CHAPTERS)
def test_no_chapter_shows_a_directive(name):
    nb = json.loads(NOTEBOOKS[name].read_text(encoding='utf-8'))
    made = list(chapters.convert(nb))
    assert len(made) > 3 and chapters.title_of(nb)
    assert not [c['source'] for c in made if re.search(r'^\s*#\|', c['source'], re.M)]
    hidden = [c for c in nb['cells'] if re.search(r'\A\s*#\|\s*hide\s*$', ''.join(c['source']), re.M)]
    visible = {c['source'] for c in made}
    assert not [c for c in hidden if chapters.split_directives(''.join(c['source']))[1] in visible]


def test_the_order_is_that_of_the_files():
    names = ['02_b', '10_c', '03_a']
    book = {n: notebook(('markdown', f'# {n[3:]}')) for n in sorted(names)}
    text = chapters.trees(book, [])
    assert re.findall(r'^\d+  \w <(\w+)>$', text, re.M) == ['02_b', '03_a', '10_c']


def test_chapters_link_to_their_neighbours_by_title(tmp_path):
    for path, title in {'1_a/01_x': 'First', '1_a/02_y': 'Second', '2_b/03_z': 'Third'}.items():
        file = tmp_path / f'nbs/{path}.ipynb'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(notebook(('markdown', f'# {title}'), ('code', 'nbdev.nbdev_export()'))))
    def links(): return [json.loads(p.read_text())['cells'][1]['source'] for p in sorted(tmp_path.glob('nbs/*/*'), key=lambda p: p.stem)]
    for _ in range(2): chapter_links.write_links(tmp_path)
    assert links() == [['Next: [Second](02_y.ipynb)'], ['Previous: [First](01_x.ipynb) · Next: [Third](../2_b/03_z.ipynb)'],
                       ['Previous: [Second](../1_a/02_y.ipynb)']]
    (tmp_path / 'nbs/1_a/02_y.ipynb').unlink()
    chapter_links.write_links(tmp_path)
    assert links() == [['Next: [Third](../2_b/03_z.ipynb)'], ['Previous: [First](../1_a/01_x.ipynb)']]
    assert not [c for c in chapters.convert(json.loads(file.read_text())) if 'Previous' in c['source']]


# Figures

def drawing(code, *below):
    "The cells of a chapter in which this code draws one red picture above these paragraphs."
    png = io.BytesIO()
    Image.new('RGB', (1350, 100), 'red').save(png, 'PNG')
    nb = notebook(('markdown', '# T\n\n## Section'), ('code', code), *(('markdown', b) for b in below))
    nb['cells'][1]['outputs'] = [dict(output_type='display_data', data={'image/png': base64.b64encode(png.getvalue()).decode()}, metadata={})]
    return [c for c in chapters.convert(nb)][1:]


def test_the_paragraph_below_a_figure_becomes_its_caption_and_its_words():
    figure, text = drawing('draw()', '*PGD $\\ell_2$, n = 3.* One `thing` to [see](x.ipynb).\n\nMore.')
    assert text['source'] == 'More.'
    told = figure['metadata']['mystnb']
    assert told['figure']['caption'].startswith('*PGD $\\ell_2$, n = 3.* One')
    assert told['image'] == dict(alt='PGD ℓ2, n = 3. One thing to see.', classes='photo', width='1000px')
    figure, text = drawing('draw()', 'It falls.')
    assert figure['metadata']['mystnb']['image']['alt'] == text['source'] == 'It falls.' and 'figure' not in figure['metadata']['mystnb']
    figure, _ = drawing('draw()', '## Next')
    assert figure['metadata']['mystnb']['image']['alt'] == 'Figure in the section “Section”'


def two_panels():
    "The stored SVG of two panels that share an axis, with a legend beside them and a title."
    import matplotlib.pyplot as plt
    from nrf_repro.report import figures
    with plt.rc_context():
        figures.style()
        fig, axes = plt.subplots(1, 2, figsize=(6, 2), sharey=True, layout='constrained')
        for ax in axes: ax.plot([0, 1], [0, 1], label='one', **figures.LOOKS['bn']); ax.plot([1, 0], 'k', label='two')
        axes[0].set_ylabel('share')
        axes[1].legend(loc='center left', bbox_to_anchor=(1, .5))
        fig.suptitle('a < b')
        plt.close(fig)
        return figures.notebook_svg(fig)


def test_a_drawing_is_cut_into_panels_and_legend_entries():
    svg = two_panels()
    html = drawings.panels(svg, 'words "here"', 'x-')
    title, row = html.split('<div class="parts">')[1:]
    assert title.startswith('<p class="title">a &lt; b</p>') and html.startswith('<div class="panels" role="img" aria-label="words &quot;here&quot;">')
    left, right, one, two = re.findall(r'<svg.*?</svg>', row)
    assert svg.count('>share<') == 2 and all(f'>{v}<' in panel for panel in (left, right) for v in ('share', '0.50'))
    assert ('>one<' in one, '>two<' in two) == (True, True) and not re.search('>one<|>two<', left + right)
    used, made = set(re.findall(r'#(x-[\w.-]+)', html)), re.findall(r' id="([^"]+)"', html)
    assert used <= set(made) and len(set(made)) == len(made)


def test_a_drawing_takes_the_colours_of_the_theme():
    html = drawings.panels(two_panels(), 'a', 'x-')
    assert 'var(--cc44601, #c44601)' in html and 'fill: #' not in html and 'stroke: #' not in html
    dark = drawings.dark_colors(html)
    assert '--cc44601: #f08a3c' in dark and '--c000000: #e7e9eb' in dark and drawings.dark_colors('<p>none</p>') == ''
    for color in ('#c44601', '#440154', '#1f77b4', '#7f7f7f', '#000000'): assert drawings.contrast(drawings.in_the_dark(color)) >= 4.4, color


def test_a_drawing_stands_between_what_is_printed_before_and_after_it():
    nb = notebook(('code', 'draw()'), ('markdown', '*A caption.* More.'))
    svg = dict(output_type='display_data', data={'image/svg+xml': two_panels()}, metadata={})
    nb['cells'][0]['outputs'] = [dict(output_type='stream', name='stdout', text='before'), svg, dict(output_type='stream', name='stdout', text='after')]
    first, figure, last = chapters.convert(nb)
    assert (first['source'], first['outputs'][0]['text'], last['source'], last['outputs'][0]['text']) == ('draw()', 'before', '', 'after')
    assert last['metadata']['tags'] == ['remove-input'] and 'aria-label="A caption. More."' in figure['source']
    assert figure['source'].endswith('<figcaption>\n\n*A caption.* More.\n\n</figcaption></figure>') and '\n\n' not in figure['source'].partition('<figcaption>')[0]


def test_a_picture_gets_lighter_and_keeps_its_look():
    picture, png = Image.linear_gradient('L').resize((500, 300)).convert('RGB'), io.BytesIO()
    Image.blend(picture, Image.effect_noise((500, 300), 20).convert('RGB'), .1).save(png, 'PNG')
    before = dict(data={'image/png': base64.b64encode(png.getvalue()).decode()})
    after = captions.lighter(before)
    small = base64.b64decode(after['data']['image/png'])
    assert len(small) < .8 * len(png.getvalue()) and Image.open(io.BytesIO(small)).size == (500, 300)
    off = ImageChops.difference(Image.open(png).convert('L'), Image.open(io.BytesIO(small)).convert('L'))
    assert max(off.get_flattened_data() if hasattr(off, 'get_flattened_data') else off.getdata()) < 12
    text = dict(data={'text/plain': 'x'})
    assert captions.lighter(text) is text


def test_plots_and_photographs_are_distinguished():
    plot = Image.new('RGB', (400, 300), 'white')
    plot.paste('blue', (50, 140, 350, 160))
    assert captions.kind(plot) == 'plot' and captions.kind(Image.new('RGBA', (40, 30), (0, 0, 0, 0))) == 'plot'
    assert captions.kind(Image.effect_noise((400, 300), 90).convert('RGB')) == 'photo'


def test_only_code_that_computes_nothing_is_folded_as_drawing():
    draws = 'fig, axes = plt.subplots(1, 2)\nfor ax, (name, c) in zip(axes, curves.items()):\n    ax.plot(c)\n    ax.set(title=name)'
    assert chapters.fold({}, draws) == 'Show the code of the figure (4 lines)'
    for computes in ('c = robust_correct(net, x, y, attack)', 'assert c.mean() > 0', 'def f(): pass', 'print(c)'):
        assert chapters.fold({}, f'{draws}\n{computes}') is None
    assert chapters.fold({}, 'x = 1\ny = 2\nz = 3\nw = 4') is None
    assert chapters.fold({'code-fold': 'true', 'code-summary': 'Show the check'}, 'assert x') == 'Show the check (1 line)'


@pytest.mark.parametrize('name', [n for n in CHAPTERS if n < '26'])
def test_every_figure_of_the_argument_has_text_as_text(name):
    cells = list(chapters.convert(json.loads(NOTEBOOKS[name].read_text(encoding='utf-8'))))
    alts = [html.unescape(a) for c in cells for a in re.findall(r'class="panels" role="img" aria-label="([^"]*)"', c['source']) if c['cell_type'] == 'markdown']
    alts += [c['metadata']['mystnb']['image']['alt'] for c in cells if 'image' in c['metadata'].get('mystnb', {})]
    assert all(len(a) > 15 and not re.search(r'\$|\]\(|\*', a) for a in alts)
    assert sum(a.startswith('Figure in the section') for a in alts) <= 1


# The first page

def test_stored_verdicts_belong_to_the_published_rows():
    stored = json.loads(verdicts.STORED.read_text(encoding='utf-8'))
    stale = [name for name, folder in verdicts.published().items() if stored.get(name, {}).get('hash') != verdicts.hash_of(folder)]
    assert not stale and set(stored) == set(verdicts.published()), 'Run python docs/verdicts.py and commit docs/verdicts.json.'


def test_stored_verdicts_are_what_the_rows_give():
    from nrf_repro.results.rows import read_rows
    from nrf_repro.results.rules import load_claims
    stored = json.loads(verdicts.STORED.read_text(encoding='utf-8'))['cifar-cpu']
    fresh = verdicts.compute('cifar-cpu', read_rows(ROOT / 'reports/published/cifar-cpu/rows.jsonl'), load_claims(ROOT / 'reports/claims.yaml'))
    def rounded(v): return {k: round(x, 9) if isinstance(x, float) else x for k, x in v.items()}
    for key in ('decided', 'parts'): assert list(map(rounded, fresh[key])) == list(map(rounded, stored[key]))
    for id in ('C1', 'C2'): assert list(map(rounded, fresh['networks'][id])) == list(map(rounded, stored['networks'][id]))
    assert fresh['stable'] == stored['stable'] and fresh['controls'] == stored['controls']


@pytest.fixture(scope='module')
def board(): return front.Board(ROOT, verdicts.current(ROOT))


def test_each_claim_has_a_line_with_the_effect_that_its_title_names(board):
    text = front.table(board)
    assert list(front.CLAIMS) == list(board.claims)
    for id in front.CLAIMS:
        line = re.search(rf'<tr id="{id}">.*', text)[0]
        first = board.first(id, board.shown_scale(id))
        metric = board.claims[id].parts[0].metric
        assert front.effect_text(first, metric) in line and line.count('<td class="badge-') == len(board.scales)
        assert ('class="paper"' in line) == (first.paper_effect == first.paper_effect)
        assert (ROOT / 'reports' / re.search(r'href="(published/[^"#]+)', line)[1]).is_file() and f'{Path(board.claims[id].chapter).name}.html' in line
    c9 = re.search(r'<tr id="C9">.*', text)[0]
    assert 'early-stopped networks −6.5 ✗' in c9
    assert set(front.SCALES) >= set(board.scales)


def test_what_is_said_of_the_largest_scale_is_in_its_rows():
    from nrf_repro.report.readings import PAPER_EPOCHS
    from nrf_repro.results.rows import read_rows
    rows = read_rows(ROOT / 'reports/published/cifar/rows.jsonl')
    final = rows[(rows.experiment == 'final') & (rows.metric == 'clean_accuracy')]
    epochs, = final.epoch.unique()
    seeds = sorted(final.groupby(['arch', 'norm']).seed.nunique().unique())
    assert front.SCALES['cifar'].endswith(f'{" or ".join(map(str, seeds))} seeds, {epochs} epochs (paper: {PAPER_EPOCHS})')
    assert set(final.arch) == {'resnet18', 'vgg11'} and set(final.width) == {1}


def test_the_answer_follows_the_verdict(board, monkeypatch):
    text = front.answer(board)
    assert text.startswith('<strong>Yes</strong>') and all(front.size(n) in text for n in board.networks('C2', board.shown_scale('C2')))
    monkeypatch.setattr(board, 'top', board.top.assign(verdict='not reproduced'))
    assert front.answer(board).startswith('<strong>No</strong>')


def test_an_interval_lies_on_the_side_of_zero_that_it_says():
    def at(effect, low, high, paper): return front.plot(type('V', (), dict(effect=effect, low=low, high=high, paper_effect=paper)), 'clean_accuracy', (-20, 20), width=100)
    drawn = at(-.1, -.15, -.05, float('nan'))
    assert 'class="zero" d="M50.0' in drawn and 'd="M12.5 11.0H37.5"' in drawn and 'cx="25.0"' in drawn and 'class="paper"' not in drawn
    assert 'class="paper" d="M71.0' in at(.1, .05, .15, .1) and 'M93 11.0h6' in at(.1, .05, .15, .9)


# Reference

def test_reference_has_signature_docstring_comments_and_links():
    module, = reference.modules([ROOT / 'nrf_repro/models/norms.py'])
    text = reference.page(module, CFG)
    part = text[text.index('{py:function} normalize('):].split('::::')[0]
    assert part.startswith('{py:function} normalize(x: torch.Tensor, norm: str, groups: int=32, eps: float=1e-05)')
    assert '| `eps` | `1e-05` | added to the variance, under the root |' in part and 'one of `NORMS`' in part
    first, last = map(int, re.search(r'norms\.py#L(\d+)-L(\d+)', part).groups())
    lines = module.source.splitlines()
    assert lines[first - 1].startswith('def normalize(') and 'return ((wide - mu)' in lines[last - 1]
    cell = re.search(r'03_norms\.html#cell-(\w+)', part)[1]
    book = json.loads(NOTEBOOKS['03_norms'].read_text(encoding='utf-8'))['cells']
    assert any(c['id'] == cell and 'def normalize(' in ''.join(c['source']) for c in book)


def test_comments_are_taken_as_text():
    assert reference.safe("'l2' | 'linf', a_b <x> `c|d` $5") == r"'l2' \| 'linf', a\_b \<x\> `c\|d` \$5"


def test_every_public_name_is_in_the_reference():
    for module in reference.modules((ROOT / 'nrf_repro').rglob('[a-z]*.py')):
        text, public = reference.page(module, CFG), re.search(r'^__all__ = (\[.*?\])', module.source, re.M | re.S)[1]
        missing = [name for name in yaml.safe_load(public) if not re.search(rf'{{py:\w+}} {name}\b', text)]
        assert not missing, module.name


# Pages

def test_how_to_add_works_as_written(tmp_path, monkeypatch, capsys):
    for split in ('train', 'test'):
        for name in ('a', 'b'):
            folder = tmp_path / 'folder' / split / name
            folder.mkdir(parents=True)
            Image.new('RGB', (40, 50), 'red' if name == 'a' else 'blue').save(folder / '1.png')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('NRF_CACHE', str(tmp_path / 'cache'))
    from nrf_repro import attacks
    text, space = (ROOT / 'docs/pages/add.md').read_text(encoding='utf-8'), {}
    try:
        for code in re.findall(r'```python\n(.*?)```', text, re.S): exec(code, space)
    finally: attacks.LOSSES.pop('lower', None)
    assert 'tensor(' in capsys.readouterr().out and len(space['images']) == 2


def test_the_claim_in_how_to_add_is_one_that_the_rules_know(tmp_path):
    from nrf_repro.results.rules import load_claims
    claims = yaml.safe_load((ROOT / 'reports/claims.yaml').read_text(encoding='utf-8'))
    text = (ROOT / 'docs/pages/add.md').read_text(encoding='utf-8')
    claims['claims'] += yaml.safe_load(re.search(r'```yaml\n(.*?)```', text, re.S)[1])
    (tmp_path / 'claims.yaml').write_text(yaml.safe_dump(claims))
    assert 'C11' in load_claims(tmp_path / 'claims.yaml')


def test_names_in_how_to_add_exist():
    text = (ROOT / 'docs/pages/add.md').read_text(encoding='utf-8')
    book = '\n'.join(p.read_text(encoding='utf-8') for p in (ROOT / 'nrf_repro').rglob('*.py'))
    names = set(re.findall(r'`([A-Z]{4,}_?[A-Z]*|[a-z]+_[a-z]+)`', re.sub(r'```.*?```', '', text, flags=re.S)))
    book += '\n'.join((ROOT / f'reports/{f}.yaml').read_text(encoding='utf-8') for f in ('claims', 'profiles/demo'))
    assert len(names) > 12 and not [n for n in names - {'nbdev_export'} if n not in book]


def test_the_call_for_published_networks_works_as_written():
    call = re.search(r'`nrf_repro\.(load_published\(.+?\))`', pages.BOARD)[1]
    from nrf_repro.experiment.published import load_published
    net = eval(call, dict(load_published=load_published))
    assert net.config['norm'] == 'bn' and not net.training


def test_every_reference_says_where_it_appeared():
    refs = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))['references']
    assert not [r['title'] for r in refs if r['type'] in ('conference-paper', 'article') and not pages.where(r).split(',')[0]]
    assert f'year = {{{2026}}}' in pages.bibtex('ours', dict(title='t', authors=[dict(name='a')], **{'date-released': '2026-11-21'}))


def test_a_published_report_leads_to_the_chapters_of_the_site():
    assert pages.on_site('<a href="../../../nbs/2_robustness/11_ligs.ipynb">x</a> <a href="notebooks/a.ipynb">') == (
        '<a href="../../11_ligs.html">x</a> <a href="notebooks/a.ipynb">')
    assert pages.on_site('<a href="../../../nbs/5_how_it_works/46_claims.ipynb">', ['45_claims']) == '<a href="../../45_claims.html">'


def test_without_published_reports_the_page_says_so(tmp_path):
    (tmp_path / 'reports').mkdir()
    shutil.copy(ROOT / 'reports/claims.yaml', tmp_path / 'reports')
    none = 'None is published yet'
    assert none in pages.reports(tmp_path, 'url') and none in pages.benchmarks(tmp_path)
    (tmp_path / 'reports/published/demo').mkdir(parents=True)
    (tmp_path / 'reports/published/demo/report.html').write_text('<p>r')
    (tmp_path / 'reports/published/demo/weights.safetensors').write_text('w')
    pages.copy_reports(tmp_path, tmp_path / 'out')
    assert 'published/demo/report.html' in pages.reports(tmp_path, 'url') and none not in pages.reports(tmp_path, 'url')
    assert [p.name for p in (tmp_path / 'out').rglob('*.*')] == ['report.html']


# The built site

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The whole site, about 20 s; every warning is a failure."
    folder = tmp_path_factory.mktemp('site')
    assert make_site.build(folder / 'out', folder / 'work') == 0, 'Sphinx warned: see its output above'
    return folder / 'out'


class Links(HTMLParser):
    "What a page refers to, and the places in it that can be referred to."
    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.images = [], set(), []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        self.links += [a[k] for k in ('href', 'src') if a.get(k)]
        if tag == 'img': self.images.append(a)
        if tag == 'link' and 'stylesheet' in a.get('rel', ''): assert '//' not in a['href'], a['href']
        if tag in ('script', 'img', 'iframe') and a.get('src'): assert not re.match('(https?:)?//', a['src']), a['src']


def test_no_link_is_broken_and_every_image_has_words(site):
    found = {p: Links(p) for p in site.rglob('*.html') if '_static' not in p.parts}
    broken = []
    for page, parsed in found.items():
        for link in parsed.links:
            if re.match(r'[a-z]+:|//', link): continue
            file, _, place = unquote(link).partition('#')
            target = (page.parent / file.partition('?')[0]).resolve() if file else page
            there = target.is_file() and (not place or target not in found or place in found[target].ids)
            if not there: broken.append((page.name, link))
        if 'published' not in page.parts: assert not [i['src'] for i in parsed.images if not i.get('alt')], page.name
    assert not broken
    assert {p.stem for p in found} >= {*CHAPTERS, *OTHERS, 'index', 'search', 'models.norms', 'cli'}


@pytest.fixture
def page(browser):
    "A page whose errors and requests to elsewhere are kept, and must be none in the end."
    context, faults = browser.new_context(viewport=dict(width=1300, height=900)), defaultdict(list)
    page = context.new_page()
    page.on('console', lambda m: m.type in ('error', 'warning') and faults['console'].append(f'{page.url}: {m.text}'))
    page.on('pageerror', lambda e: faults['error'].append(f'{page.url}: {e}'))
    def note(kind): return lambda r: faults[kind].append(f'{page.url}: {r.url}')
    page.on('request', lambda r: r.url.startswith(('file:', 'data:', 'blob:')) or note('request')(r))
    page.on('requestfailed', lambda r: 'ABORTED' in r.failure or note('failed')(r))     # aborted: we went on
    yield page
    context.close()
    assert not faults


def all_pages(site): return sorted(p for p in site.rglob('*.html') if not {'_static', 'published'} & set(p.parts))


def test_each_page_loads_from_disk_and_fits_a_narrow_screen(site, page):
    def too_wide(width):
        page.set_viewport_size(dict(width=width, height=800))
        return page.evaluate('document.documentElement.scrollWidth > window.innerWidth')
    for path in all_pages(site):
        page.set_viewport_size(dict(width=390, height=800))
        page.goto(path.as_uri())
        state = page.evaluate('''() => ({wide: document.documentElement.scrollWidth - window.innerWidth,
            images: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
            tex: [...document.querySelectorAll('.tex:not(.set), .temml-error')].map(e => e.textContent)})''')
        assert state == dict(wide=0, images=[], tex=[]), path.name
        if path.stem in ('index', *OTHERS): assert not [width for width in (800, 1000, 1200) if too_wide(width)], path.name


def neighbours(site, name):
    "Where the links to the previous and to the next page lead."
    text = (site / f'{name}.html').read_text(encoding='utf-8')
    found = (re.search(rf'<a class="{side}"\s+href="([^"]+)\.html"', text) for side in ('left-prev', 'right-next'))
    return [os.path.normpath(os.path.join(os.path.dirname(name), m[1])) if m else None for m in found]


def test_the_book_can_be_followed_forwards_and_back(site, page):
    order = ['index']
    while next := neighbours(site, order[-1])[1]: order.append(next)
    assert order[1:len(CHAPTERS) + 1] == CHAPTERS and {*OTHERS, 'api/models.norms', 'api/cli'} <= set(order)
    assert [neighbours(site, name)[0] for name in order[1:]] == order[:-1]
    page.goto((site / 'index.html').as_uri())
    for name in CHAPTERS[:3]:
        page.locator('a.right-next').click()
        page.wait_for_url(f'**/{name}.html')
    page.locator('a.left-prev').click()
    page.wait_for_url(f'**/{CHAPTERS[1]}.html')


def test_search_finds_words_and_names(site, page):
    for words, target in (('robust_correct', 'api/attacks.evaluate.html'), ('whitening', '01_rescaling.html')):
        page.goto((site / 'index.html').as_uri())
        page.keyboard.press('Control+k')
        page.locator('#pst-search-dialog input[type=search]').fill(words)
        page.keyboard.press('Enter')
        page.wait_for_selector('#search-results li a', timeout=60_000)
        found = page.eval_on_selector_all('#search-results li a', 'links => links.map(a => a.href)')
        assert any(target in f for f in found), found


@contextmanager
def serving(site):
    "The site's address on a server that compresses, as those of sites do."
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a): super().__init__(*a, directory=str(site))
        def log_message(self, *a): pass
        def do_GET(self):
            file = Path(self.translate_path(self.path))
            if not file.is_file(): return self.send_error(404)
            body = gzip.compress(file.read_bytes(), mtime=0)
            self.send_response(200)
            for name, value in {'Content-Type': self.guess_type(str(file)), 'Content-Encoding': 'gzip', 'Content-Length': str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError): self.wfile.write(body)     # the browser has gone on
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module')
def served(site):
    with serving(site) as address: yield address


@pytest.fixture
def visitor(browser):
    "A page of a visitor without a cache."
    context = browser.new_context(viewport=dict(width=1440, height=900))
    yield context.new_page()
    context.close()


DEFINED = {'LIGS': '11_ligs', 'local input gradient similarity': '11_ligs', 'PGD': '08_attacks', 'robust accuracy': '09_robust_accuracy', 'Fixup': '07_controls'}


def test_search_gives_the_chapter_that_defines_a_term_first(served, visitor):
    for words, chapter in DEFINED.items():
        visitor.goto(f'{served}/search.html?q={words}')
        visitor.wait_for_selector('#search-results li p.context', timeout=60_000)
        links = visitor.eval_on_selector_all('#search-results li a', 'links => links.map(a => a.href)')
        assert f'/{chapter}.html' in links[0], (words, links[:3])
        said = visitor.eval_on_selector_all('#search-results li p.context', 'all => all.map(p => p.textContent)')
        assert not [s for s in said if re.search('System Settings|Repository|Open in Colab|Contents', s)], words


LIMIT_KB, LIMIT_PAINT_KB = 600, 200      # compressed: all of a page, and what the first paint waits for (a second at 1.6 Mbit/s)


def test_pages_are_light_and_their_first_paint_waits_for_little(served, browser):
    seen = {}
    for name in ('index', 'reports', 'tasks', '76_measure', *(n for n in CHAPTERS if n < '26')):
        context = browser.new_context(viewport=dict(width=1440, height=900))
        page, sizes = context.new_page(), {}
        network = context.new_cdp_session(page)
        network.send('Network.enable')
        network.on('Network.loadingFinished', lambda e: sizes.__setitem__(e['requestId'], e['encodedDataLength']))
        page.goto(f'{served}/{name}.html', wait_until='load', timeout=120_000)
        waits = page.evaluate("""() => [...performance.getEntriesByType('navigation'),
            ...performance.getEntriesByType('resource').filter(r => r.renderBlockingStatus === 'blocking')].map(r => r.encodedBodySize)""")
        page.evaluate('for (const i of document.images) i.loading = "eager"')
        page.wait_for_function('[...document.images].every(i => i.complete)', timeout=120_000)
        seen[name] = round(sum(sizes.values()) / 1e3), round(sum(waits) / 1e3)
        assert len(waits) > 5, waits      # the page, style sheets and scripts
        context.close()
    assert not {n: s for n, s in seen.items() if s[0] > LIMIT_KB or s[1] > LIMIT_PAINT_KB}, seen


def test_the_first_screen_answers(site, page):
    page.set_viewport_size(dict(width=1440, height=900))
    page.goto((site / 'index.html').as_uri())
    ends = page.evaluate("""() => Object.fromEntries(['h1', '.answer', 'table.claims', '.caution', '.tiles'].map(s => {
        const r = document.querySelector(`article ${s}`).getBoundingClientRect(); return [s, [r.top, r.bottom]]; }))""")
    assert max(bottom for _, bottom in ends.values()) <= 900 and min(top for top, _ in ends.values()) >= 0, ends
    links = page.eval_on_selector_all('nav.topnav a', 'all => all.map(a => a.textContent)')
    assert links == [name for _, name in front.NAV]
    for name in links:
        page.goto((site / 'index.html').as_uri())
        page.locator('nav.topnav a', has_text=name).click()
        page.locator('nav.topnav a[aria-current]', has_text=name).wait_for()
        assert page.locator('nav.topnav a[aria-current]').text_content() == name


def test_the_leaderboard_has_intervals_and_marks_and_is_sorted_by_a_click(site, page):
    page.goto((site / 'reports.html').as_uri())
    def column(): return [float(v) for v in page.eval_on_selector_all('table.leaderboard tbody td:nth-child(8)', 'all => all.map(e => e.dataset.value)')]
    robust = column()
    assert len(robust) > 20 and robust != sorted(robust)
    for order in (sorted(robust, reverse=True), sorted(robust)):
        page.click('table.leaderboard th:nth-child(8) button')
        assert column() == order
    assert page.get_attribute('table.leaderboard th:nth-child(8)', 'aria-sort') == 'ascending'
    cells = page.locator('table.leaderboard tbody td:nth-child(8)').all_inner_texts()
    assert all('[' in cell for cell in cells) and 0 < sum('⚠' in cell for cell in cells) < len(cells)
    assert all(page.eval_on_selector_all('table.leaderboard abbr', 'all => all.map(e => e.title.length > 10)'))


def test_terms_lead_to_the_glossary(site, page):
    page.goto((site / '13_tables_1_and_2.html').as_uri())
    terms = page.locator('article a.nrf-term')
    ids = terms.evaluate_all('all => all.map(a => a.hash)')
    assert len(ids) > 5 and len(set(ids)) == len(ids)
    assert len(terms.first.get_attribute('title')) > 20
    terms.first.click()
    page.wait_for_url('**/glossary.html#term-*')
    page.locator('dl.glossary div:target dt').wait_for(state='visible')


PARTS = """() => [...document.querySelectorAll('article .panels svg')].map(svg => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width, row = svg.parentElement;
    const sizes = [...svg.querySelectorAll('text, tspan')].filter(t => t.style.fontSize && t.getClientRects().length).map(t => scale * parseFloat(getComputedStyle(t).fontSize));
    return {left: box.left, right: box.right, top: box.top, bottom: box.bottom, text: Math.min(...sizes, 99), panel: row.classList.contains('parts'),
            row: [...document.querySelectorAll('article .panels .parts')].indexOf(row)}; })"""


@pytest.mark.parametrize('width', [390, 1280])
def test_figures_fit_and_their_text_can_be_read(site, page, width):
    page.set_viewport_size(dict(width=width, height=844))
    faults, seen = {}, 0
    for name in CHAPTERS:
        if '<div class="panels"' not in (site / f'{name}.html').read_text(encoding='utf-8'): continue
        page.goto((site / f'{name}.html').as_uri())
        parts = page.evaluate(PARTS)
        seen += len(parts)
        wrong = [p for p in parts if p['left'] < 0 or p['right'] > width or p['text'] < 9]
        panels = [p for p in parts if p['panel'] and p['right'] - p['left'] > 200]
        if width < 600: wrong += [p for p, q in zip(panels, panels[1:]) if p['row'] == q['row'] and q['top'] < p['bottom'] - 1]   # side by side
        if wrong: faults[name] = wrong
    assert seen > 150 and not faults


def test_plots_are_drawings_and_pictures_are_sharp(site, page):
    page.set_viewport_size(dict(width=1280, height=844))
    faults = {}
    for name in CHAPTERS:
        page.goto((site / f'{name}.html').as_uri())
        page.evaluate('for (const i of document.images) i.loading = "eager"')
        page.wait_for_function('[...document.images].every(i => i.complete)')
        found = page.eval_on_selector_all('article :is(figure, .cell_output) > img', 'all => all.map(i => [i.className, i.naturalWidth / i.getBoundingClientRect().width])')
        if wrong := [f for f in found if 'plot' in f[0] or f[1] < 1.9]: faults[name] = wrong
    assert not faults


def test_figures_follow_the_theme(site, page):
    page.add_init_script('localStorage.setItem("mode", "dark"); localStorage.setItem("theme", "dark")')
    for name in ('11_ligs', '08_attacks'):     # without colour maps, whose text keeps its colour
        page.goto((site / f'{name}.html').as_uri())
        inks = page.eval_on_selector_all('article .panels svg text', 'all => [...new Set(all.map(t => getComputedStyle(t).fill))]')
        assert inks and all(min(map(int, re.findall(r'\d+', ink)[:3])) > 120 for ink in inks)
        assert not page.eval_on_selector_all('article .panels, article .panels *', 'all => all.filter(e => getComputedStyle(e).filter !== "none").length')
    photo = page.locator('article img.photo').first
    assert photo.evaluate('i => getComputedStyle(i).filter') == 'none'
    assert page.locator('article figure figcaption').count() == 4
    assert all(len(label) > 15 for label in page.eval_on_selector_all('article .panels', 'all => all.map(e => e.getAttribute("aria-label"))'))


def test_the_theme_switches_and_stays(site, page):
    page.emulate_media(color_scheme='light')
    page.goto((site / f'{CHAPTERS[0]}.html').as_uri())
    script = '[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]'
    def look(): return tuple(page.evaluate(script))
    seen = [look()]
    for mode in ('dark', 'light', 'dark'):
        page.locator('button.theme-switch-button:visible').first.click()
        page.locator(f'button.theme-change-button[data-mode={mode}]:visible').click()
        seen.append(look())
    assert [t for t, _ in seen] == ['light', 'dark', 'light', 'dark']
    assert seen[0] == seen[2] and seen[0][1] != seen[1][1]
    page.wait_for_timeout(500)      # the browser writes its storage when it likes
    page.reload()
    assert look() == seen[3]


def test_a_folded_cell_opens_by_keyboard(site, page):
    page.goto((site / '03_norms.html').as_uri())
    fold = page.locator('details.hide').first
    assert not fold.locator('pre').first.is_visible()
    fold.locator('summary').focus()
    page.keyboard.press('Enter')
    assert fold.locator('pre').first.is_visible()


@pytest.mark.parametrize('width, theme', [(1280, 'light'), (1280, 'dark'), (390, 'dark')])
def test_no_accessibility_fault(site, page, faults_of, width, theme):
    page.set_viewport_size(dict(width=width, height=800))
    page.add_init_script(f'localStorage.setItem("mode", "{theme}"); localStorage.setItem("theme", "{theme}")')
    faults = {}
    for name in ('index', '03_norms', '05_data', '08_attacks', CHAPTERS[-1], 'api/attacks.pgd', 'api/cli', 'reports', 'overview', 'learn', 'glossary', 'test_a_model', 'tasks', 'search'):
        page.goto((site / f'{name}.html').as_uri())
        if found := faults_of(page, every=True): faults[name] = found
    assert not faults


@pytest.mark.parametrize('width', [1280, 1480])
def test_a_line_of_118_characters_fits(site, page, width):
    page.set_viewport_size(dict(width=width, height=800))
    page.goto((site / '08_attacks.html').as_uri())
    too_wide = page.evaluate("""() => [...document.querySelectorAll('div.cell_input pre')].filter(e => e.offsetWidth).map(e => {
        e.textContent = 'x'.repeat(118);
        return e.scrollWidth - e.clientWidth; }).filter(more => more > 0)""")
    assert not too_wide


def test_the_contents_of_a_page_open_and_close(site, page):
    page.set_viewport_size(dict(width=1280, height=800))
    page.goto((site / '08_attacks.html').as_uri())
    page.locator('button.secondary-toggle:visible').click()
    page.locator('dialog[open] a', has_text='The iteration').click()
    page.wait_for_url('**#the-iteration')
    page.wait_for_function('!document.querySelector("dialog[open]")')


def test_no_page_links_to_a_repository_that_is_not_public(site):
    from make_site import without_placeholders
    git = CFG['git_url']
    page = f'<p><a class="badge" href="{git}/blob/main/x.ipynb">On GitHub</a> see <a href="{git}/blob/main/rules.yaml" title="x">the <b>rules</b></a> and <a href="a.html">a</a></p>'
    assert without_placeholders(page, git) == '<p> see the <b>rules</b> and <a href="a.html">a</a></p>'
    if CFG['public'] == 'True': pytest.skip('the repository is public')
    found = [p.name for p in site.rglob('*.html') if 'published' not in p.relative_to(site).parts and f'href="{git}' in p.read_text(encoding='utf-8')]
    assert not found, found[:5]
