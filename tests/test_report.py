"""Tables, figures and the report: what must not break when rows are odd, and the page in a real browser."""
import json
import math
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from nrf_repro import report, tables
from nrf_repro.results import frame, load_claims, make_row, paper_rows
from nrf_repro.tables import made_up_rows

CHROMIUM = os.environ.get('NRF_CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
ARGS = ['--no-sandbox', '--headless=new', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run']


def history(norms=('none', 'bn'), seeds=(0, 1), epochs=(1, 2)):
    for norm in norms:
        for seed in seeds:
            for epoch in epochs:
                one = dict(experiment='history', dataset='digits', arch='vgg11', width=.125, regime='standard', norm=norm, seed=seed, epoch=epoch, n=100, profile='made-up')
                yield make_row(**one, metric='clean_accuracy', value=.5 + .2 * epoch + .01 * seed)
                yield make_row(**one, metric='robust_accuracy', value=.2 * epoch, attack='pgd_l2', eps=1., steps=10, reading='any')
                yield make_row(**one, metric='ligs', value=None if epoch == 1 else .8, sigma=.05)


@pytest.fixture(scope='module')
def claims(): return load_claims()


@pytest.fixture(scope='module')
def rows(): return frame([*made_up_rows(), *history()])


def render(rows, claims, folder, **meta): return report.render(rows, claims, folder / 'report.html', profile='made-up', **meta)


def test_differences_are_paired_by_seed():
    rows = frame(made_up_rows(['none', 'bn']))
    rows['value'] += .1 * rows.seed.astype(float) / 3 * (rows.metric == 'robust_accuracy')  # luck that both share
    d = tables.differences(tables.one_setting(tables.named(rows)), 'bn').set_index('column').loc['pgd_l2']
    assert math.isclose(d.value, -.24, abs_tol=1e-9) and d.high - d.low < .05
    one_norm_one_seed_less = rows[~((rows.norm == 'none') & (rows.seed == 1))]
    d = tables.differences(tables.one_setting(tables.named(one_norm_one_seed_less)), 'bn').set_index('column').loc['pgd_l2']
    assert d.seeds == (0, 2)


def test_a_missing_attack_stays_in_the_table_and_in_the_list(rows, claims, tmp_path):
    holed = rows[~((rows.norm == 'bn') & (rows.attack == 'cw_l2') & (rows.experiment == 'final'))]
    text = tables.to_markdown(tables.wide(tables.table_1(holed)))
    assert next(line for line in text.splitlines() if '| BN |' in line).count('missing') == 1
    html = render(holed, claims, tmp_path).read_text()
    assert 'BN: CW ℓ2 (all seeds)' in html and html.count('nrf-missing"><b>missing') == 2  # BN and BN - None


def test_undertrained_networks_are_marked_where_they_stand(claims):
    poor = frame(made_up_rows(['none', 'bn'])).assign(value=lambda d: d.value.mask((d.metric == 'clean_accuracy') & (d.norm == 'bn'), .6))
    cells = tables.table_1(poor, rule=claims['C1'])
    assert set(cells[cells.norm == 'bn'].flag) == {'undertrained'} and set(cells[cells.norm == 'none'].flag) == {''}
    assert tables.to_html(cells, 'caption').count('⚠ undertrained') == 2
    assert 'no effect of BN' in next(report.reading_1(cells))


@pytest.mark.parametrize('odd', [
    dict(seeds=(0,)), dict(norms=['none']), dict(norms=['bn', 'gn']), dict(regime='adversarial'), dict(n=None), dict(width=None), dict(experiment='history'),
    dict(experiment='transfer')], ids=str)
def test_odd_rows_still_give_a_report(odd, claims, tmp_path):
    html = render(frame(made_up_rows(**odd)), claims, tmp_path).read_text()
    assert html.count('<tbody class="nrf-verdict">') == len(claims) and '>nan' not in html.lower() and ' nan' not in html.lower()


def test_everything_is_escaped(claims, tmp_path):
    evil = '<img src=x onerror=alert(1)>'
    html = render(frame(made_up_rows(dataset=evil, arch='a|b"&')), claims, tmp_path, machine=evil, about=evil, missing=[evil],
                  figures=[dict(title=evil, svg='<svg xmlns="http://www.w3.org/2000/svg"/>', caption=evil)]).read_text()
    assert '<img src=x' not in html and '&lt;img src=x' in html


def test_same_rows_same_bytes(rows, claims, tmp_path):
    first = render(rows, claims, tmp_path).read_bytes()
    assert render(rows.sample(frac=1, random_state=0), claims, tmp_path).read_bytes() == first and len(first) < 8e6


def test_mixed_sources_and_profiles_are_warned_of(rows, claims, tmp_path):
    mixed = pd.concat([rows, rows.head(3).assign(profile='tiny')]).reset_index(drop=True)
    mixed.loc[0, 'source_hash'] = '0123456789ab'
    html = render(mixed, claims, tmp_path).read_text()
    assert '3 of tiny' in html and '2 versions of the code' in html
    with pytest.raises(ValueError, match="no rows of profile 'paper'.*'made-up'"): report.render(rows, claims, tmp_path / 'no.html', profile='paper')
    with pytest.raises(ValueError, match="unknown key 'machin'"): render(rows, claims, tmp_path, machin='x')
    assert not (tmp_path / 'no.html').exists()


def test_downloads_hold_the_rows(rows, claims, tmp_path):
    import base64
    html = render(rows, claims, tmp_path).read_text()
    data = re.search(r'download="rows.jsonl" href="data:[^,]*;base64,([^"]+)"', html)[1]
    again = [json.loads(line) for line in base64.b64decode(data).decode().splitlines()]
    assert len(again) == len(rows) and all(make_row(**r) for r in again)


def test_latex_compiles_in_the_head(rows):
    text = tables.to_latex(tables.wide(tables.table_1(rows, paper_rows())), '100 % of 5_norms & more', 'tab:x')
    body = text.split(r'\midrule')[1].split(r'\bottomrule')[0]
    assert text.isascii() and r'100 \% of 5\_norms \& more' in text
    assert {line.count(' & ') for line in body.strip().splitlines()} == {text.split(r'\toprule')[1].split(r'\midrule')[0].count(' & ')}


def test_imports_are_light():
    code = 'import sys, nrf_repro.report; print([m for m in ("torch", "matplotlib", "seaborn", "jinja2") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# --- in a browser ---

@pytest.fixture(scope='module')
def browser():
    if not CHROMIUM: pytest.skip('no chromium: install it (Debian: apt-get install chromium) or name it in NRF_CHROMIUM to test the page in a browser')
    api = pytest.importorskip('playwright.sync_api', reason='no playwright: pip install playwright to test the page in a browser')
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope='module')
def page_url(rows, claims, tmp_path_factory):
    folder = tmp_path_factory.mktemp('page')
    (folder / 'a b.ipynb').write_text('{}')
    return render(rows, claims, folder, notebooks={'a notebook': 'a b.ipynb'}).as_uri()


@pytest.fixture
def opened(browser, page_url):
    "A function that opens the report at a width; afterwards nothing may have gone wrong."
    seen, pages = [], []

    def visit(width, **more):
        pages.append(page := browser.new_page(viewport=dict(width=width, height=800), **more))
        page.on('console', lambda m: seen.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('pageerror', lambda e: seen.append(str(e)))
        page.on('request', lambda r: seen.append(f'asked for {r.url}') if not r.url.startswith(('data:', page_url)) else None)
        page.goto(page_url)
        return page
    yield visit
    for page in pages: page.close()
    assert not seen


@pytest.mark.parametrize('width', [1280, 390, 320])
def test_no_horizontal_scroll(opened, width):
    page = opened(width)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
    assert page.evaluate('document.documentElement.scrollWidth') <= width


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_theme_toggles_and_is_remembered(opened, scheme):
    page = opened(1280, color_scheme=scheme)
    paper = lambda: page.evaluate('getComputedStyle(document.body).backgroundColor')
    before = paper()
    assert (before == 'rgb(253, 253, 252)') == (scheme == 'light')
    page.focus('#theme')
    page.keyboard.press('Enter')
    assert paper() != before and page.get_attribute('#theme', 'aria-pressed') == str(scheme == 'light').lower()
    page.reload()
    assert paper() != before
    page.click('#theme')
    assert paper() == before


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast(opened, scheme):
    "Every visible text has WCAG AA contrast (4.5) with the nearest background behind it."
    poor = opened(1280, color_scheme=scheme).evaluate(r'''() => {
      const rgb = s => (s.match(/[\d.]+/g) || []).map(Number);
      const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
      return [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length
          && !['SCRIPT', 'STYLE'].includes(e.tagName)).map(e => {
        const style = getComputedStyle(e), ink = rgb(e instanceof SVGElement ? style.fill : style.color), a = light(ink), b = light(behind(e));
        return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName, e.textContent.slice(0, 40)];
      }).filter(([ratio]) => ratio < 4.5);
    }''')
    assert not poor


def test_links_and_downloads_work(opened):
    page = opened(1280)
    ids = set(page.evaluate('[...document.querySelectorAll("[id]")].map(e => e.id)'))
    links = page.evaluate('[...document.querySelectorAll("a")].map(a => a.getAttribute("href"))')
    assert {u[1:] for u in links if u.startswith('#')} <= ids and [u for u in links if not u.startswith(('#', 'data:'))] == ['a b.ipynb']
    with page.expect_download() as got: page.click('a[download="rows.csv"]')
    assert pd.read_csv(got.value.path()).shape[1] == 32


def test_accessible_names(opened):
    page = opened(1280)
    assert page.evaluate('document.documentElement.lang') == 'en'
    assert page.evaluate('[...document.querySelectorAll("table")].every(t => t.caption && t.caption.textContent.trim())')
    assert page.evaluate('[...document.querySelectorAll("th")].every(t => t.scope)')
    assert page.evaluate('[...document.querySelectorAll("svg[role=img]")].map(s => s.getAttribute("aria-label").length).every(n => n > 40)')
    assert page.evaluate('[...document.querySelectorAll(".nrf-scroll")].every(s => s.tabIndex === 0 && (s.getAttribute("aria-label") || s.getAttribute("aria-labelledby")))')
