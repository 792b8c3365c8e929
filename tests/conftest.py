"""Small networks, small data, one thread: the whole suite is minutes on two cores."""
import os
import shutil
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)


@pytest.fixture(scope='session')
def cifar_root():
    "A folder with real CIFAR-10, or the test is skipped and says so."
    for root in (os.environ.get('NRF_DATA'), ROOT.parent / 'shared/data', ROOT / 'data'):
        if root and (any(Path(root).glob('cifar10/test-*.parquet')) or any(Path(root).glob('cifar-10-batches-*'))): return Path(root)
    pytest.skip('no CIFAR-10 at hand: set NRF_DATA to a folder that holds it')


LONG = [f'test_{name}.py' for name in 'pipeline site report cli wheel measure distributed'.split()]


def pytest_collection_modifyitems(items):
    "What takes longest comes first, so that none of it is left alone at the end of a parallel run."
    def place(item): return item.get_closest_marker('xdist_group') is None, LONG.index(item.path.name) if item.path.name in LONG else len(LONG)
    items.sort(key=place)


# --- pages in the system's Chromium ---

CHROMIUM = os.environ.get('NRF_CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ['--no-sandbox', '--headless=new', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run']


@pytest.fixture(scope='module')
def browser():
    if not CHROMIUM: pytest.skip('no chromium: install it (Debian: apt-get install chromium) or name it in NRF_CHROMIUM to test the page in a browser')
    api = pytest.importorskip('playwright.sync_api', reason='no playwright: pip install playwright to test the page in a browser')
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, page_url): # page_url: a fixture of the module that asks
    "A function that opens the page; afterwards nothing may have gone wrong, and nothing else have been asked for."
    seen, contexts = [], []

    def visit(width=1280, **more):
        contexts.append(context := browser.new_context(viewport=dict(width=width, height=800), **more))
        page = context.new_page()
        page.on('console', lambda m: seen.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('pageerror', lambda e: seen.append(str(e)))
        page.on('request', lambda r: seen.append(f'asked for {r.url}') if not r.url.startswith(('data:', page_url)) else None)
        page.goto(page_url)
        return page
    yield visit
    for context in contexts: context.close()
    assert not seen


@pytest.fixture(scope='session')
def faults_of():
    "A function: page -> what axe-core finds serious or critical on it (`every`: also moderate or minor), all folds open."
    if not (axe := os.environ.get('AXE')): pytest.skip('accessibility was not checked: AXE=path/to/axe.min.js is not given')

    def look(page, every=False):
        page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
        page.evaluate('Promise.allSettled(document.getAnimations().map(a => a.finished))')      # what fades in is faint for a moment
        page.add_script_tag(path=axe)
        found = page.evaluate('axe.run(document, {resultTypes: ["violations"], preload: false})')['violations']
        return [(v['id'], n['target'], n['html'][:120]) for v in found if every or v['impact'] in ('serious', 'critical') for n in v['nodes'][:3]]
    return look


@pytest.fixture(scope='session')
def faint_of():
    "A function: page -> every visible text whose contrast with the nearest background behind it is below WCAG AA, 4.5."
    return lambda page: page.evaluate(r'''() => {
      const rgb = s => (s.match(/[\d.]+/g) || []).map(Number);
      const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
      return [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length
          && !['SCRIPT', 'STYLE', 'OPTION'].includes(e.tagName)).map(e => {
        const style = getComputedStyle(e), a = light(rgb(e instanceof SVGElement ? style.fill : style.color)), b = light(behind(e));
        return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName, e.textContent.slice(0, 40)];
      }).filter(([ratio]) => ratio < 4.5);
    }''')
