"""Tables, figures and the report: what must not break when rows are odd, and the page in a real browser."""
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nrf_repro.report import html as writers
from nrf_repro.report import rendering as report
from nrf_repro.report import tables
from nrf_repro.report.readings import reading_1
from nrf_repro.experiment.profile import STUDIES
from nrf_repro.results.rules import load_claims
from nrf_repro.results.rows import FIELDS, frame, make_row, paper_rows, read_rows
from nrf_repro.studies.base import shown
from made_up import made_up_rows

ROOT = Path(__file__).parents[1]


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


def render(rows, claims, folder, **meta): return report.render_report(rows, claims, folder / 'report.html', profile='made-up', studies=shown, **meta)


@pytest.fixture(scope='module')
def html(rows, claims, tmp_path_factory): return render(rows, claims, tmp_path_factory.mktemp('html')).read_text()


@pytest.fixture(scope='module')
def stable(rows, claims): return report.sensitivity(claims, rows)


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
    text = writers.to_markdown(tables.wide(tables.table_1(holed)))
    assert next(line for line in text.splitlines() if '| BN |' in line).count('missing') == 1
    html = render(holed, claims, tmp_path).read_text()
    assert 'BN: CW ℓ2 (all seeds)' in html and html.count('nrf-missing"><b>missing') == 2  # BN and BN - None


def test_undertrained_networks_are_marked_where_they_stand(claims):
    poor = frame(made_up_rows(['none', 'bn'])).assign(value=lambda d: d.value.mask((d.metric == 'clean_accuracy') & (d.norm == 'bn'), .6))
    cells = tables.table_1(poor, rule=claims['C1'])
    assert set(cells[cells.norm == 'bn'].flag) == {'undertrained'} and set(cells[cells.norm == 'none'].flag) == {''}
    assert tables.to_html(cells, 'caption').count('⚠ undertrained') == 2
    assert 'no effect of BN' in next(reading_1(cells))


@pytest.mark.parametrize('odd', [
    dict(seeds=(0,)), dict(norms=['none']), dict(norms=['bn', 'gn']), dict(regime='adversarial'), dict(n=None), dict(width=None), dict(experiment='history'),
    *(dict(experiment=study) for study in STUDIES)], ids=str)
def test_odd_rows_still_give_a_report(odd, claims, tmp_path):
    html = render(frame(made_up_rows(**odd)), claims, tmp_path).read_text()
    assert html.count('<tbody class="nrf-verdict"') == len(claims) and '>nan' not in html.lower() and ' nan' not in html.lower()


def test_everything_is_escaped(claims, tmp_path):
    evil = '<img src=x onerror=alert(1)>'
    html = render(frame(made_up_rows(dataset=evil, arch='a|b"&')), claims, tmp_path, machine=evil, about=evil, missing=[evil]).read_text()
    assert '<img src=x' not in html and '&lt;img src=x' in html


def test_same_rows_same_bytes(rows, claims, html, tmp_path):
    assert render(rows.sample(frac=1, random_state=0), claims, tmp_path).read_bytes() == html.encode('utf-8') and len(html) < 8e6


def test_a_profile_that_is_too_small_for_a_claim_says_so(rows, claims, stable, tmp_path, monkeypatch):
    from nrf_repro.results import power
    monkeypatch.setattr(report, 'sensitivity', lambda *_: stable)
    for value, said in ((.3, 1), (.7, 0)):
        monkeypatch.setattr(power, 'read_error_rates', lambda: pd.DataFrame([dict(profile='made-up', id='C2', rule='all seeds', power=value)]))
        html = re.sub(r'</?a\b[^>]*>', '', render(rows, claims, tmp_path).read_text())     # its words may link to the glossary
        assert html.count('This profile is too small to decide the claim if the effect is only twice the smallest one (power 30 %).') >= said
        assert ('This profile is too small' in html) == bool(said)


def test_mixed_sources_and_profiles_are_warned_of(rows, claims, tmp_path):
    mixed = pd.concat([rows, rows.head(3).assign(profile='tiny')]).reset_index(drop=True)
    mixed.loc[0, 'source_hash'] = '0123456789ab'
    html = render(mixed, claims, tmp_path).read_text()
    care = re.search(r'<div class="warning".*?</div>', html, re.S)[0]
    assert '3 of tiny' in care and '2 versions of the code' in html and '0123456789ab' not in care and '`' not in care
    with pytest.raises(ValueError, match="no rows of profile 'paper'.*'made-up'"): report.render_report(rows, claims, tmp_path / 'no.html', profile='paper')
    with pytest.raises(ValueError, match="unknown key 'machin'"): render(rows, claims, tmp_path, machin='x')
    assert not (tmp_path / 'no.html').exists()


def test_anchors_name_what_they_show_and_lead_there_and_back(rows, claims, html):
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert set(claims) <= set(ids) and {'evidence-C1', 'table-1', 'figure-3-digits-vgg11-0-125', 'term-ligs', 'files'} <= set(ids)
    part = html[html.index('id="table-1"'):html.index('id="headline"')]
    assert 'href="#C1"' in part and 'report.tables.table_1' in part and 'nrf-repro report --profile made-up --all' in part
    assert 'href="#table-1"' in html[html.index('id="C1"'):html.index('id="C3"')]
    numbers = re.search(r'data-lines="([\d,-]+)">(\d+) as', part)
    found = [i for span in numbers[1].split(',') for a, *b in [span.split('-')] for i in range(int(a), int((b or [a])[0]) + 1)]
    shown = rows.sort_values(list(report.IDENTITY), kind='stable', ignore_index=True).loc[found]
    assert len(found) == int(numbers[2]) and set(shown.experiment) == {'final'} and set(shown.norm) == {'none', 'bn'}


def test_stability_stands_beside_the_verdict_and_in_read_with_care(html, stable):
    same = stable[stable.id == 'C2'].same
    assert f'same in {same.sum()} of {len(same)} variants' in html[html.index('id="C2"'):html.index('id="C3"')]
    assert 'verdicts stay the same with one seed less' in re.search(r'<div class="warning".*?</div>', html, re.S)[0]


def test_downloads_hold_the_rows(rows, html):
    import base64
    data = re.search(r'download="rows.jsonl" href="data:[^,]*;base64,([^"]+)"', html)[1]
    again = [json.loads(line) for line in base64.b64decode(data).decode().splitlines()]
    assert len(again) == len(rows) and all(make_row(**r) for r in again)


def test_latex_compiles_in_the_head(rows):
    text = writers.to_latex(tables.wide(tables.table_1(rows, paper_rows())), '100 % of 5_norms & more', 'tab:x')
    body = text.split(r'\midrule')[1].split(r'\bottomrule')[0]
    assert text.isascii() and r'100 \% of 5\_norms \& more' in text
    assert {line.count(' & ') for line in body.strip().splitlines()} == {text.split(r'\toprule')[1].split(r'\midrule')[0].count(' & ')}


def test_imports_are_light():
    for modules, names in (('rendering', 'torch'), ('comparison html tables', 'torch matplotlib jinja2')):
        wanted = ', '.join(f'nrf_repro.report.{module}' for module in modules.split())
        code = f'import sys, {wanted}; print([m for m in "{names}".split() if m in sys.modules])'
        assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# --- in a browser ---

@pytest.fixture(scope='module')
def page_url(rows, claims, tmp_path_factory):
    folder = tmp_path_factory.mktemp('page')
    (folder / 'a b.ipynb').write_text('{}')
    return render(rows, claims, folder, notebooks={'a notebook': 'a b.ipynb'}).as_uri()


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
    def kept():
        page.wait_for_timeout(500)      # a busy browser writes and reads its storage when it likes
        page.reload()
        return paper() != before
    assert any(kept() for _ in range(5))
    page.click('#theme')
    assert paper() == before


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast(opened, faint_of, scheme): assert not faint_of(opened(color_scheme=scheme))


@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (1280, 'dark'), (390, 'dark')])
def test_no_serious_accessibility_fault(faults_of, opened, width, scheme): assert not faults_of(opened(width, color_scheme=scheme))


@pytest.mark.parametrize('path', sorted((ROOT / 'reports/published').glob('*/report.html')), ids=lambda p: p.parent.name)
def test_a_published_report_links_to_its_chapters_and_to_the_other_scales(path):
    "A report that was rendered outside reports/build has no such links."
    links = set(re.findall(r'href="([^"#:]+)"', path.read_text()))
    assert links > {f'../../published/{p.name}/report.html' for p in path.parents[1].iterdir() if p != path.parent and (p / 'report.html').is_file()}
    assert any(link.startswith('../../../nbs/') for link in links) and not [link for link in links if not (path.parent / link).exists()]


def test_links_and_downloads_work(opened):
    page = opened(1280)
    ids = set(page.evaluate('[...document.querySelectorAll("[id]")].map(e => e.id)'))
    links = page.evaluate('[...document.querySelectorAll("a")].map(a => a.getAttribute("href"))')
    assert {u[1:] for u in links if u.startswith('#')} <= ids and [u for u in links if not u.startswith(('#', 'data:'))] == ['a b.ipynb']
    page.click('#files > summary')
    with page.expect_download() as got: page.click('a[download="rows.csv"]')
    assert list(pd.read_csv(got.value.path())) == [f for f in FIELDS if f != 'outcomes']
    with page.expect_download() as got: page.click('article[aria-labelledby="table-1"] a[data-lines]')
    part = read_rows(got.value.path())
    assert got.value.suggested_filename == 'table-1.jsonl' and set(part.norm) == {'none', 'bn'} and set(part.experiment) == {'final'}
    assert len(part) == int(page.text_content('article[aria-labelledby="table-1"] a[data-lines]').split()[0])


def test_accessible_names(opened):
    page = opened(1280)
    assert page.evaluate('document.documentElement.lang') == 'en'
    assert page.evaluate('[...document.querySelectorAll("table")].every(t => t.caption && t.caption.textContent.trim())')
    assert page.evaluate('[...document.querySelectorAll("th")].every(t => t.scope)')
    assert page.evaluate('[...document.querySelectorAll("[role=img]")].map(s => s.getAttribute("aria-label").length).every(n => n > 40)')
    assert page.evaluate('[...document.querySelectorAll(".nrf-scroll")].every(s => s.tabIndex === 0 && (s.getAttribute("aria-label") || s.getAttribute("aria-labelledby")))')


def test_the_contents_stay_in_sight_and_fold_on_a_phone(opened):
    page = opened(1440)
    page.evaluate('document.getElementById("glossary").scrollIntoView()')
    assert 0 <= page.evaluate('document.querySelector("nav").getBoundingClientRect().top') < 10
    page = opened(390)
    assert not page.evaluate('document.querySelector("nav details").open')
    assert page.evaluate('[...document.querySelectorAll("figure svg")].every(s => s.getBoundingClientRect().width <= 390)')
    wide = page.evaluate('[...document.querySelectorAll(".nrf-scroll")].filter(b => b.scrollWidth > b.clientWidth + 1).map(b => b.hasAttribute("data-wide"))')
    assert wide and all(wide)


def test_a_printed_report_keeps_all_columns(opened):
    page = opened(794)
    page.emulate_media(media='print')
    right = page.evaluate('[...document.querySelectorAll("table thead th")].map(c => c.getBoundingClientRect().right)')
    assert page.evaluate('document.querySelector("#verdicts-cells thead").getClientRects().length') and max(right) <= 794
