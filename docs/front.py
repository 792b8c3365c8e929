"""The first page of the site: the question, the answer, a line for each claim, and where to go on. Its numbers come from `verdicts.py`."""
import math
import re
import sys
from functools import cache
from html import escape
from pathlib import Path

import verdicts

# Which effect the line of a claim shows.
CLAIMS = dict(C1='clean accuracy', C2='PGD ℓ2', C3='with IN', C4='LIGS without normalisation', C5='LIGS',
              C6='LIGS minus the threshold 0.9, without normalisation', C7='accuracy after training on D_rand, BN minus no normalisation',
              C8='robust accuracy', C9='transfer success, sources without minus with BN', C10='balanced accuracy')
SCALES = {'cifar': 'CIFAR-10, ResNet18 and VGG11 at full width, 2 or 3 seeds, 30 epochs (paper: 150)', 'cifar-cpu': 'VGG11 at a quarter of the width',
          'cifar-small': 'ResNet18, VGG11 and VGG16 at a quarter of the width, 10,000 images, undertrained', 'demo': 'digits, small ResNet18 and VGG11'}
PARTS = {'LIGS (bn)': 'LIGS with BN', 'conflicting (bn)': 'conflicting features', 'early against final': 'early-stopped networks'}   # others: as in the report
NAV = (('reports', 'Results'), ('learn', 'Learn'), ('test_a_model', 'Test a model'), ('tasks', 'API'), ('search', 'Search'))

PAGE = """# Does batch normalisation make networks easier to fool?

<div class="front">
<div class="answer">
<p>{answer}</p>
<dl>
<div><dt id="robust-accuracy">Robust accuracy</dt><dd>The share of test images that a network classifies correctly at every step of an attack, such as <abbr title="projected gradient descent">PGD</abbr>. A stronger attack can only lower it.</dd></div>
<div><dt id="ligs"><abbr title="local input gradient similarity">LIGS</abbr></dt><dd>Local input gradient similarity: the cosine between the gradient at an image and at the image plus noise. 1: the gradient keeps its direction.</dd></div>
</dl>
</div>
<p class="scales">{scales}</p>
<p class="caution"><strong>How to read the table.</strong> {caution}</p>
{table}
<div class="tiles">
{tiles}
</div>
</div>

The paper is Benz, Zhang and Kweon, *Batch Normalization Increases Adversarial Vulnerability and Decreases Adversarial
Transferability: A Non-Robust Feature Perspective* (ICCV 2021, [arXiv 2010.03316](https://arxiv.org/abs/2010.03316)).
[Findings, limits and profiles](overview.ipynb) are on one page, terms in the [glossary](glossary.md).
"""
TABLE = """<table class="claims">
<caption class="visually-hidden">Claims, their verdicts at each scale, and the effect at the largest scale</caption>
<thead><tr><th scope="col">Claim, and its effect</th>{scales}<th scope="col" class="plot">95 % interval, <span class="cross">✕</span> paper{axis}</th><th scope="col" class="number">Points, or LIGS</th><th scope="col">Evidence</th></tr></thead>
<tbody>
{lines}
</tbody>
</table>"""
LINE = """<tr id="{id}"><th scope="row"><a href="{report}"><b>{id}</b> {claim}</a><small>{shown}</small></th>{badges}<td class="plot">{plot}</td><td class="number">{effect}</td><td class="evidence"><a href="{chapter}.html">chapter {number}</a></td></tr>"""
BADGE = '<td class="badge-{kind}{head}" data-scale="{scale}">{cell}</td>'
VERDICT = '<a href="{link}" title="{title}"><span class="sign" aria-hidden="true">{sign}</span><span class="visually-hidden">{scale}: {verdict}</span>{stable}</a>'


def frames(found):
    "`verdicts.current` -> frames as `decide_published` returns them."
    import pandas as pd
    def frame(key): return pd.DataFrame([v | dict(profile=name) for name, p in found.items() for v in p[key]])
    decided, parts = frame('decided'), frame('parts')
    for f in (decided, parts): f[['effect', 'low', 'high', 'paper_effect']] = f[['effect', 'low', 'high', 'paper_effect']].astype(float)
    return decided, parts


class Board:
    "What the page shows, from stored verdicts and the rules."
    def __init__(self, root, found):
        sys.path.insert(0, str(root))
        from nrf_repro.results.claims import headline
        from nrf_repro.results.rules import by_scale, load_claims
        self.root, self.found = root, found
        self.claims = load_claims(root / 'reports/claims.yaml')
        self.decided, self.parts = frames(found)
        self.top = headline(self.decided.assign(title='', statement='', reason=''), self.claims).set_index('id')
        self.scales = list(reversed(by_scale(found, self.claims['C1'])))

    def networks(self, id, profile):
        "A dict for each network: effect and interval of the claim's first part."
        return self.found[profile]['networks'].get(id, [])

    def verdict(self, id, profile): return next(self.decided[(self.decided.id == id) & (self.decided.profile == profile)].itertuples())

    def first(self, id, profile):
        "The claim's own effect: that of its first part."
        return next(self.parts[(self.parts.id == id) & (self.parts.profile == profile)].itertuples())

    def shown_scale(self, id):
        "The scale of the headline verdict; the largest with an effect where the claim has none."
        with_effect = [p for p in self.scales if not math.isnan(self.first(id, p).effect)]
        return self.top.profile[id] or next(iter(with_effect), self.scales[0])


def effect_text(v, metric):
    "Effect and interval as the tables write them."
    from nrf_repro.report.text import amount
    if math.isnan(v.effect): return 'not run'
    ends = '' if math.isnan(v.low) else f' [{amount(v.low, metric, unit=False)}, {amount(v.high, metric, unit=False)}]'
    return amount(v.effect, metric, unit=False) + ends


def plot(v, metric, span, width=190, height=22):
    "An interval on a zero line, and the paper's value as a cross: an SVG. A LIGS of 0.1 is as wide as ten points."
    low, high = span
    def x(value): return round((100 * value - low) / (high - low) * width, 1)
    from nrf_repro.report.text import amount
    y, said = height / 2, effect_text(v, metric) + ('' if math.isnan(v.paper_effect) else f'; paper {amount(v.paper_effect, metric, unit=False)}')
    ticks = ''.join(f'<path class="grid" d="M{x(t / 100)} 0V{height}"/>' for t in range(-100, 101, 10) if low < t < high and t)
    marks = f'<path class="zero" d="M{x(0)} 0V{height}"/>'
    if not math.isnan(v.low): marks += f'<path class="bar" d="M{x(v.low)} {y}H{x(v.high)}"/>'
    if not math.isnan(v.effect): marks += f'<circle class="dot" cx="{x(v.effect)}" cy="{y}" r="3"/>'
    if not math.isnan(v.paper_effect):
        c = min(x(v.paper_effect), width - 14)
        arrow = f'M{c + 7} {y}h6m-3 -3l3 3l-3 3' if x(v.paper_effect) > width - 6 else ''
        marks += f'<path class="paper" d="M{c - 4} {y - 4}l8 8m0 -8l-8 8{arrow}"/>'
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(said)}">{ticks}{marks}</svg>'


def axis(span, width=190):
    "The numbers of the axis, in points; 10 points are a LIGS of 0.1."
    low, high = span
    marks = ''.join(f'<text x="{(t - low) / (high - low) * width:.1f}" y="9" text-anchor="middle">{t:+d}</text>' if t else
                    f'<text x="{-low / (high - low) * width:.1f}" y="9" text-anchor="middle">0</text>' for t in range(-100, 101, 10) if low + 3 < t < high - 3)
    return f'<svg class="axis" viewBox="0 0 {width} 11" width="{width}" height="11" aria-hidden="true">{marks.replace(">-", ">−")}</svg>'


def span_of(board):
    "The ends of the axis that all lines share, in points. A paper's value above all intervals is an arrow at the end."
    shown = [board.first(id, board.shown_scale(id)) for id in CLAIMS]
    low = [100 * x for v in shown for x in (v.low, v.effect, v.paper_effect, 0) if not math.isnan(x)]
    high = [100 * x for v in shown for x in (v.high, v.effect, 0) if not math.isnan(x)]
    return min(low) - 4, max(high) + 8


def badges(board, id):
    "A cell for each scale: the verdict's sign, and in how many variants it is the same."
    from nrf_repro.report.text import SIGNS
    for scale in board.scales:
        v, same = board.verdict(id, scale), board.found[scale]['stable'].get(id)
        run = v.verdict != 'not run'
        complete = '' if v.complete or not run else ' Parts of the claim were not run.'
        title = f'{scale}: {v.verdict}.{complete}' + (f' The same in {same[0]} of {same[1]} variants.' if same and run else '')
        fragile = ' fragile' if same and 2 * same[0] < same[1] else ''
        stable = f'<span class="stable{fragile}">{same[0]}/{same[1]}</span>' if same and run else ''
        head = ' headline' if scale == board.top.profile[id] else ''
        link = VERDICT.format(link=report_link(board, id, scale), title=title, sign=SIGNS[v.verdict], scale=scale, verdict=v.verdict, stable=stable)
        cell = link if run else f'<span class="sign" aria-hidden="true">{SIGNS[v.verdict]}</span><span class="visually-hidden">not run</span>'
        yield BADGE.format(kind=v.verdict.replace(' ', '-'), head=head, scale=scale, cell=cell)


def shown_text(board, id):
    "Which effect a line shows and whether this part holds, and the part that decided where it is another one."
    from nrf_repro.report.text import SIGNS, amount
    from nrf_repro.report.verdict_table import _part_name
    claim, scale = board.claims[id], board.shown_scale(id)
    v, first = board.verdict(id, scale), board.first(id, scale)
    text = f'{CLAIMS[id]} {SIGNS[first.verdict]}' if len(claim.parts) > 1 else CLAIMS[id]
    if v.part == first.part or math.isnan(v.effect) or v.verdict == first.verdict == 'reproduced': return text
    part = next(p for p in claim.parts if p.name == v.part)
    return f'{text} · {PARTS.get(v.part) or _part_name(part)} {amount(v.effect, part.metric, unit=False)} {SIGNS[v.verdict]}'


@cache
def report_text(root, scale): return (root / f'reports/published/{scale}/report.html').read_text(encoding='utf-8')


def report_link(board, id, scale):
    "The published report of a scale, at the claim if the report has an anchor for it."
    text = report_text(board.root, scale)
    return f'published/{scale}/report.html' + (f'#{id}' if f'id="{id}"' in text else '#verdicts' if 'id="verdicts"' in text else '')


def table(board):
    "The claims, one in a line."
    span, lines = span_of(board), []
    for id in CLAIMS:
        claim, chapter = board.claims[id].title.removesuffix(' (our question)') + ' (our question)' * (id == 'C10'), board.claims[id].chapter.rpartition('/')[2]
        first, metric = board.first(id, board.shown_scale(id)), board.claims[id].parts[0].metric
        lines.append(LINE.format(id=id, claim=escape(claim), shown=escape(shown_text(board, id)), badges=''.join(badges(board, id)), plot=plot(first, metric, span),
                                 effect=effect_text(first, metric), report=report_link(board, id, board.shown_scale(id)), chapter=chapter, number=int(chapter[:2])))
    heads = ''.join(f'<th scope="col" class="scale">{scale}</th>' for scale in board.scales)
    return TABLE.format(scales=heads, axis=axis(span), lines='\n'.join(lines))


def size(v):
    "The size of an effect with its interval, without a sign: 13.7 points [12.1, 15.4]."
    effect, low, high = (100 * v[k] * (-1 if v['effect'] < 0 else 1) for k in ('effect', 'low', 'high'))
    ends = sorted((low, high))
    return f'{effect:.1f} points [{ends[0]:.1f}, {ends[1]:.1f}]'


def moves(v, up='raises', down='lowers'): return up if v.effect > 0 else down


def answer(board):
    "A few sentences. What they say follows the verdicts on C1 and C2 at their headline's scale, and those at other scales."
    scale = board.shown_scale('C2')
    clean, robust = (board.first(id, scale) for id in ('C1', 'C2'))
    word = {'reproduced': 'Yes', 'not reproduced': 'No', 'inconclusive': 'Perhaps'}[board.top.verdict['C2']]
    others = {}
    for p in board.scales:
        v = board.verdict('C2', p)
        if p != scale and v.verdict != 'not run': others.setdefault(v.verdict, []).append(p)
    from nrf_repro.report.text import arch_name, several
    said = '; '.join(f'{verdict} at {several(f"<code>{p}</code>" for p in ps)}' for verdict, ps in others.items())
    tried, lost, whole = (sum(p['controls'][k] for p in board.found.values()) for k in ('tried', 'lost', 'all'))
    each = several([f'<strong>{size(n)}</strong> in the {arch_name(n["arch"])}' for n in board.networks('C2', scale)])
    same = board.found[scale]['stable'].get('C1')
    fragile = f' (the same verdict in only {same[0]} of {same[1]} re-checks)' if same and 2 * same[0] < same[1] else ''
    return (f'<strong>{word}</strong>, at the largest scale: batch normalisation (BN) {moves(robust)} robust accuracy by {each}. It {moves(clean)} '
            f'clean accuracy by {size(clean._asdict())}{fragile}. The loss depends on scale and training ({said}). '
            f'Of {tried} controls, which are built to train as well without a normalisation layer, {lost} lose robust accuracy, {whole} of them as much as BN.')


def scales_text(board):
    "What each scale is."
    from nrf_repro.report.text import several
    intervals = dict.fromkeys(n['interval'] for n in board.networks('C2', board.shown_scale('C2')))
    over = several([i if i.startswith('t ') else f'over {i}' for i in intervals])
    return f'In brackets: 95 % intervals ({over} above). ' + ' · '.join(f'<code>{p}</code>: {SCALES[p]}' for p in board.scales) + '.'


def caution(board):
    "The signs of the table, and what to be careful about."
    kept = sum(a == b for p in board.found.values() for a, b in p['stable'].values())
    total = sum(len(p['stable']) for p in board.found.values())
    small = [id for id in CLAIMS if board.top.profile[id] == 'cifar-small']
    least = board.claims['C2'].parts[0].smallest_effect
    return (f'✓ reproduced: the whole interval lies beyond the smallest effect that counts ({100 * least:g} points for C2). ✗ not reproduced: it lies short of it. '
            f'? inconclusive. – not run. 7/9: the verdict is the same in 7 of 9 <a href="glossary.html#term-loo">re-checks</a> (one seed less; one attack, network or data set alone); '
            f'{kept} of {total} are the same in all. Framed: the largest scale with all parts; {len(small)} claims have it at <code>cifar-small</code>, whose networks are '
            f'<a href="glossary.html#term-undertrained">undertrained</a>. ✕: the paper\'s mean over its own networks, which are not all ours.')


TILES = (
    ('student', 'Learn', 'front/student.svg', 'How rescaling turns a cloud of points',
     '<a href="01_rescaling.html">Begin with chapter 1</a>, then drag eps in an <a href="{interactive}">interactive figure</a>.', 'learn.html'),
    ('researcher', 'Check the results', 'front/researcher.svg', 'Intervals beside a zero line',
     '<a href="reports.html">Reports</a>, <a href="{rows}">rows</a>, <a href="{rules}">rules</a> and <a href="25_conclusions.html">conclusions</a>.', 'reports.html'),
    ('engineer', 'Test a model', 'front/engineer.webp', 'The page that the command writes: accuracies with intervals and checks',
     '<code>nrf-repro measure MODEL IMAGES</code> writes <a href="test_a_model.html">this page</a>.', 'test_a_model.html'))


def tiles(board, cfg):
    "Three ways to go on."
    scale = board.shown_scale('C2')
    given = dict(interactive=interactive(board), rows=f'published/{scale}/rows.jsonl', rules=f'{cfg["git_url"]}/blob/{cfg["branch"]}/reports/claims.yaml')
    for kind, head, picture, alt, text, link in TILES:
        yield (f'<section class="tile {kind}" aria-labelledby="tile-{kind}"><img src="_static/{picture}" alt="{alt}" width="150" height="84"/>'
               f'<div><h2 id="tile-{kind}"><a href="{link}">{head}</a></h2><p>{text.format(**given)}</p></div></section>')


def interactive(board):
    "The interactive figures of the report of the largest scale that has some."
    for scale in board.scales:
        if 'id="interactive-figures"' in report_text(board.root, scale): return f'published/{scale}/report.html#interactive-figures'
    return '72_interactive.html'


def page(root, cfg):
    "The first page as Markdown; without published rows the name and description."
    if not verdicts.published(root): return f'# {cfg["title"]}\n\n{cfg["description"]}\n'
    board = Board(root, verdicts.current(root))
    return PAGE.format(answer=answer(board), table=table(board), scales=scales_text(board), caution=caution(board), tiles='\n'.join(tiles(board, cfg)))


LEARN = """# Learn

The book has {count} chapters. Parts I to IV make the argument; part V shows how the package works. Each chapter begins with
its claim and runs on a CPU.
New here? Read chapters {path}, then [the conclusions](25_conclusions.ipynb). Terms are in the [glossary](glossary.md).
"""


def learn(book, folders, part_title, number_of, title_of):
    "All chapters with their claims, as Markdown."
    links = [f'[{number_of(n)}]({n}.ipynb)' for n in book if str(number_of(n)) in ('1', '3', '8', '11')]
    parts = [LEARN.format(count=len(book), path=', '.join(links))]
    for folder in dict.fromkeys(folders[n] for n in book if folders[n]):
        lines = [f'- **{number_of(n)}** [{title_of(nb)}]({n}.ipynb){claim_of(nb)}' for n, nb in book.items() if folders[n] == folder]
        parts += [f'## {part_title(folder)}', '\n'.join(lines)]
    return '\n\n'.join(parts) + '\n'


def claim_of(nb):
    "The chapter's claim, after a dash; '' without one."
    text = next((''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown' and re.search(r'^# ', ''.join(c['source']), re.M)), '')
    found = re.search(r'\A\s*# [^\n]+\n+> ([^\n]+)', text)
    return f' – {unlinked(found[1])}' if found else ''


def unlinked(text): return re.sub(r'\[([^\]]+)\]\([^)]*\)', r'\1', text)


def glossary(chapters):
    "The terms, each with a link to the chapter that defines it, as Markdown around HTML."
    from nrf_repro.report.html import glossary as terms
    parts = []
    for id, term in terms().items():
        chapter = Path(term.get('chapter', '')).name
        more = f' <a href="{chapter}.html">Chapter {int(chapter[:2])}</a>' if chapter in chapters else ''
        long = f' <span class="long">{escape(term["long"])}</span>' if 'long' in term else ''
        parts.append(f'<div id="term-{id}"><dt>{escape(term["name"])}{long}</dt><dd>{escape(term["text"])}{more}</dd></div>')
    return '# Glossary\n\nThe terms of the book, the reports and this site. Where a page uses one for the first time, it links to its definition here.\n\n' \
           '<dl class="glossary">\n' + '\n'.join(parts) + '\n</dl>\n'
