"""The interactive figures: what is recorded is what the attack does, and the page in a real browser says the same as the record."""
import base64
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nrf_repro.report import interactive as pages
from nrf_repro.attacks import Attack
from nrf_repro.data import Images
from nrf_repro.results.rows import frame, make_row

ROOT = Path(__file__).parent.parent
ATTACK = Attack('l2', .5, 'ce', steps=10, step_size=.125)


class Bright(nn.Module):
    "Class 1 when the mean of the pixels is above one half; `steep` decides how sure it is."
    def __init__(self, steep, at=.5): super().__init__(); self.steep, self.at = steep, at
    def forward(self, x):
        d = self.steep * (x.flatten(1).mean(1) - self.at)
        return torch.stack([-d, d], 1)


def images(c=1, side=8, levels=(102, 110, 120, 140, 150, 160)):
    x = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, c, side, side).contiguous()
    return Images(x, torch.tensor([int(v > 127) for v in levels]), ('dark & <b>', 'bright'), (.5,) * c, (.2,) * c, 'shades', 'test')


def history(norms=('none', 'bn'), epochs=(1, 2, 5)):
    for norm in norms:
        for seed in (0, 1):
            for epoch in epochs:
                one = dict(experiment='history', dataset='digits', arch='vgg11', width=.125, regime='standard', norm=norm, seed=seed, epoch=epoch, n=100, profile='made-up')
                yield make_row(**one, metric='clean_accuracy', value=.4 + .1 * epoch + .01 * seed)
                yield make_row(**one, metric='robust_accuracy', value=.15 * epoch + .1 * (norm == 'none'), attack='pgd_l2', eps=1., steps=10, reading='any')
                yield make_row(**one, metric='ligs', value=None if epoch == 1 else .8, sigma=.05)


@pytest.fixture(scope='module')
def recorded(): return pages.record(dict(none=Bright(20), bn=Bright(20, at=.47)), images(), ATTACK, most=4)


@pytest.fixture(scope='module')
def data(recorded):
    more = [dict(c, title=f'{c["title"]}{i}') for i in range(2) for c in pages.epoch_curves(frame(history()))]
    return dict(images=recorded, courses=more, missing=[])


def test_the_first_wrong_step_has_a_closed_form(recorded):
    "For this network the attack moves every pixel alike: after s steps by s * step / side, at most eps / side."
    side, steps = 8, recorded['steps']
    for it in recorded['items']:
        x = pages.unpack(it['pixels'], 'u1', (64,))[0] / 255
        for m, at in enumerate((.5, .47)):
            far = abs(x - at)
            for k, eps in enumerate(recorded['eps']):
                reach = np.minimum(np.arange(steps + 1) * eps / 4, eps) / side
                beyond = np.flatnonzero(reach > far)
                assert it['fell'][m][k] == (beyond[0] if len(beyond) else -1)


def test_the_change_is_as_long_as_eps_and_comes_back_from_its_bytes(recorded):
    for i in range(len(recorded['items'])):
        for m in (0, 1):
            for k, eps in enumerate(recorded['eps']):
                change = pages.change_of(recorded, i, m, k)
                assert abs(np.linalg.norm(change) - eps) < 8 * recorded['unit'] and np.ptp(change) <= 2 * recorded['unit']


def test_only_images_that_all_networks_get_right_and_each_class_in_turn(recorded):
    shown = [it['classes'][it['truth']] for it in recorded['items']]
    levels = [int(pages.unpack(it['pixels'], 'u1', (64,))[0]) for it in recorded['items']]
    assert shown == ['dark & <b>', 'bright', 'dark & <b>', 'bright'] and levels == [102, 140, 110, 150]
    with pytest.raises(ValueError, match='no image of shades is classified correctly by all of none, bn'):
        pages.record(dict(none=Bright(20), bn=Bright(-20)), images(), ATTACK)


@pytest.mark.parametrize('c, side, kept', [(3, 8, 8), (1, 96, 64), (3, 96, 64)])
def test_colour_and_large_images_are_shown_and_stay_light(c, side, kept):
    wide = pages.record(dict(none=Bright(20), bn=Bright(20, at=.47)), images(c, side), replace(ATTACK, steps=2))
    assert wide['shape'] == [c, kept, kept] and wide['shrunk'] == (side > 64)
    assert len(pages.interactive_html(dict(images=wide))) < 700_000


def test_epochs_without_numbers_are_gaps(data):
    c = data['courses'][0]
    assert c['epochs'] == [1, 2, 5] and c['values']['ligs']['bn'][0] is None and c['values']['ligs']['bn'][1][0] == .8
    unwatched = frame([*history(), *(dict(r, value=None) for r in history(epochs=(3, 4)) if r['metric'] == 'ligs')])
    assert pages.epoch_curves(unwatched)[0]['epochs'] == [1, 2, 5]
    assert pages.epoch_curves(frame(history()).iloc[:0]) == []


def test_same_record_same_bytes_and_no_script_can_get_in(data):
    assert pages.interactive_html(data) == pages.interactive_html(json.loads(json.dumps(data)))
    evil = '</script><script>alert(1)</script>'
    bad = dict(data, missing=[evil], courses=[dict(c, title=evil, caption=evil) for c in data['courses']],
               images=dict(data['images'], source=evil, items=[dict(it, classes=[evil, evil]) for it in data['images']['items']]))
    html = pages.interactive_html(bad)
    assert '<script>alert' not in html and html.count('</script>') == 2 and '&lt;/script&gt;' in html


def test_each_id_of_the_fragment_occurs_once(data):
    ids = re.findall(r'\bid="([^"]+)"', pages.interactive_html(data))
    assert len(ids) == len(set(ids)) > 5 and all(id.startswith('interactive') for id in ids)


def test_the_page_needs_no_torch():
    code = 'import sys, nrf_repro.report.interactive; print("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == 'False'


def test_template_takes_its_parameters():
    from nrf_repro.experiment.notebooks import check_template
    check_template(ROOT / 'reports/notebooks/living.ipynb', dict(profile='tiny', folder='.', images=2))


# --- in a browser ---

@pytest.fixture(scope='module')
def page_url(data, tmp_path_factory):
    path = tmp_path_factory.mktemp('pages') / 'pages.html'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"     # as in a report
    path.write_text(f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
                    f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>Interactive figures</title></head><body class="nrf"><h1>Interactive figures</h1>{pages.interactive_html(data)}</body></html>', encoding='utf-8')
    return path.as_uri()


def column(page, m):
    "What the column of network m says: state, probabilities, whether it is marked as misclassified, the place of the mark."
    net = page.locator('.nrf-net').nth(m)
    return net.locator('.nrf-state').text_content(), net.locator('.nrf-number').all_text_contents(), 'nrf-wrong' in net.locator('.nrf-state').get_attribute('class'), \
        net.locator('.nrf-mark').get_attribute('d')


def expected(recorded, i, k, m):
    v = pages.net_view(recorded, i, m, k)
    return v['state'], v['p'], v['wrong'], v['mark']


def test_eps_is_dragged_by_keyboard(opened, recorded):
    page = opened()
    page.focus('.nrf-live-eps input[type=range]')
    said = set()
    page.keyboard.press('Home')
    for k, eps in enumerate(recorded['eps']):
        for m in (0, 1): assert column(page, m) == expected(recorded, 0, k, m)
        assert page.locator('.nrf-live-eps .nrf-say').text_content() == pages.sentence(recorded, 0, k)
        assert page.get_attribute('.nrf-live-eps input[type=range]', 'aria-valuetext') == f'eps {pages.short_eps(eps)}'
        said.add(column(page, 1)[0])
        page.keyboard.press('ArrowRight')
    assert {'is not attacked', 'is still correct after 10 steps'} <= said and len(said) >= 4  # and is misclassified from different steps


def test_an_image_is_picked_by_keyboard_and_painted(opened, recorded):
    page = opened()
    paint = lambda name: page.evaluate(f'''() => {{ const c = document.querySelectorAll('.nrf-net')[1].querySelector('.{name}');
        return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }}''')
    page.locator('input[type=radio]').nth(0).focus()
    page.keyboard.press('ArrowRight')
    k = recorded['start']
    for m in (0, 1): assert column(page, m) == expected(recorded, 1, k, m)
    change = pages.change_of(recorded, 1, 1, k)
    for name, a in (('nrf-adv', pages.pixels_of(recorded, 1) + change), ('nrf-change', .5 + recorded['magnify'] * change)):
        seen = np.array(paint(name)).reshape(8, 8, 4)
        assert abs(seen[..., 0] - np.clip(255 * a[0], 0, 255)).max() <= 1 and (seen[..., 3] == 255).all()
    assert page.locator('.nrf-net').nth(1).locator('canvas').nth(0).get_attribute('aria-label').startswith('bright, attacked with eps 0.5, with bn')


def test_the_epoch_is_dragged(opened, data):
    page = opened()
    root, c = page.locator('.nrf-live-epochs'), data['courses'][0]
    drawn = pages.epoch_figure(c)
    at = lambda: [float(e.get_attribute('cy')) for e in root.locator('.nrf-course').nth(0).locator('.nrf-now').all()]
    page.focus('.nrf-live-epochs input[type=range]')
    last = at()
    page.keyboard.press('ArrowLeft')
    assert root.locator('.nrf-value').text_content() == '2' and root.locator('.nrf-say').text_content() == drawn['say'][1]
    assert at() == [line['y'][1] for p in drawn['panels'] for line in p['lines']] != last
    assert root.locator('.nrf-course').nth(0).locator('td b').all_text_contents() == [cell[1][0] for r in drawn['rows'] for cell in r['cells']]
    page.keyboard.press('Home')
    assert root.locator('.nrf-course').nth(0).locator('.nrf-now[visibility=hidden]').count() == 2  # no LIGS yet
    box = root.locator('svg.nrf-panel').nth(0).bounding_box()
    page.mouse.move(box['x'] + box['width'] * .9, box['y'] + 50)
    page.mouse.down()
    assert root.locator('.nrf-value').text_content() == '5'
    page.mouse.move(box['x'] + box['width'] * .15, box['y'] + 50)
    page.mouse.up()
    assert root.locator('.nrf-value').text_content() == '1'
    root.locator('select').select_option('1')
    assert [e.is_visible() for e in root.locator('.nrf-course').all()] == [False, True]


@pytest.mark.parametrize('width', [1280, 390, 320])
def test_no_horizontal_scroll(opened, width):
    assert opened(width).evaluate('document.documentElement.scrollWidth') <= width


def test_without_script_the_same_picture_stands_still(opened, recorded):
    still, page = opened(java_script_enabled=False), opened()
    assert not still.locator('.nrf-controls').nth(0).is_visible() and page.locator('.nrf-controls').nth(0).is_visible()
    assert still.locator('.nrf-say').all_text_contents() == page.locator('.nrf-say').all_text_contents()
    for m in (0, 1): assert column(still, m) == column(page, m) == expected(recorded, 0, recorded['start'], m)
    src = still.locator('.nrf-adv').nth(1).get_attribute('src')
    assert base64.b64decode(src.split(',')[1]).startswith(b'\x89PNG') and still.locator('.nrf-adv').nth(1).evaluate('e => e.naturalWidth') == 8


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast_names_and_focus(opened, faint_of, scheme):
    page = opened(color_scheme=scheme)
    assert not faint_of(page)
    assert page.evaluate('[...document.querySelectorAll("input, select")].every(e => e.labels.length && (e.labels[0].textContent.trim() || e.labels[0].querySelector("img").alt))')
    assert page.evaluate('[...document.querySelectorAll("svg[role=img], canvas")].every(s => s.getAttribute("aria-label").length > 10)')
    page.keyboard.press('Tab')
    assert page.evaluate('getComputedStyle(document.querySelector("input[type=radio]:focus + img")).outlineStyle') == 'solid'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_no_serious_accessibility_fault(faults_of, opened, scheme): assert not faults_of(opened(color_scheme=scheme))
