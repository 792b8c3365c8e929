"""The first screen: the forest plot of the main claim, the table of claims across scales, and the README's numbers."""
import math
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from nrf_repro.report import forest as F
from nrf_repro.report import rendering as report
from nrf_repro.report.figures import CONTROL, LOOKS
from nrf_repro.report.text import SIGNS
from nrf_repro.report.verdict_table import headline_table
from nrf_repro.results.claims import decide_published, headline
from nrf_repro.results.rules import load_claims
from nrf_repro.results.outcomes import outcome_fields
from nrf_repro.results.rows import frame, make_row, paper_rows, read_published
from made_up import made_up_rows

CLAIMS, PAPER = load_claims(), paper_rows()
C2 = CLAIMS['C2']


def network(values, clean=.95, norm='bn', **fields): # one value for each seed
    common = dict(experiment='final', dataset='cifar10', arch='vgg11', width=1., regime='standard', profile='cifar', n=1000, norm=norm) | fields
    for seed, value in enumerate(values):
        yield make_row(**common, seed=seed, metric='robust_accuracy', attack='pgd_l2', eps=.25, reading='any', value=value)
        yield make_row(**common, seed=seed, metric='clean_accuracy', value=clean)


def both(bn=(.30, .28, .32), none=(.40, .41, .39), **fields): return [*network(bn, norm='bn', **fields), *network(none, norm='none', **fields)]


def texts(fig): return [t.get_text() for t in fig.axes[0].texts]


def bars(fig): return [line for line in fig.axes[0].lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]


# the numbers

def test_effects_are_paired_by_seed():
    effect, = F.headline_effects(frame(both()), C2, PAPER).itertuples()
    differences = np.array([-.10, -.13, -.07])
    half = stats.t.ppf(.975, 2) * differences.std(ddof=1) / 3**.5
    assert (effect.effect, effect.low, effect.high) == pytest.approx((-.10, -.10 - half, -.10 + half))
    assert (effect.seeds, effect.n, effect.kind) == ((0, 1, 2), 1000, 'bn') and (effect.value, effect.none) == pytest.approx((.30, .40))


def test_a_seed_without_its_pair_does_not_count():
    effect, = F.headline_effects(frame([*network((.30, .28, .32)), *network((.40, .41), norm='none')]), C2, PAPER).itertuples()
    assert effect.seeds == (0, 1) and effect.effect == pytest.approx(-.115)


def test_a_control_stands_beside_its_own_architecture():
    rows = both() + [*network((.35, .33, .37), norm='none', arch='vgg11_nf')] + [*network((.1, .1, .1), norm='none', arch='resnet18_fixup')]
    found = F.headline_effects(frame(rows), C2, PAPER).set_index('kind')
    assert set(found.index) == {'bn', 'nf'} and found.arch['nf'] == 'vgg11' and found.effect['nf'] == pytest.approx(-.05)
    control, = F.control_effects(frame(rows), C2).itertuples()
    assert (control.from_none.mean, control.from_bn.mean, control.bn_from_none.mean) == pytest.approx((-.05, .05, -.10))


def test_other_rows_do_not_count():
    extra = [r | more for r in both(bn=(.9, .9, .9)) if r['metric'] == 'robust_accuracy'
             for more in (dict(attack='cw_l2'), dict(reading='last'), dict(regime='adversarial'), dict(experiment='curve'), dict(norm='gn'))]
    one, other = (F.headline_effects(frame(rows), C2, PAPER) for rows in (both(), both() + list({str(r): r for r in extra}.values())))
    pd.testing.assert_frame_equal(one, other)


def test_an_undertrained_network_is_left_out_and_named():
    poor = [*network((.30, .28), norm='bn'), *network((.40, .41), norm='none')]
    poor = [r | dict(value=.5) if (r['metric'], r['norm'], r['seed']) == ('clean_accuracy', 'none', 1) else r for r in poor]
    effects = F.headline_effects(frame(poor), C2, PAPER)
    assert effects.seeds[0] == (0,) and effects.left_out[0] == (1,) and math.isnan(effects.low[0])
    assert 'Left out, as one of the two networks is undertrained, learned nothing or has no clean accuracy: VGG11 BN seed 1 (cifar).' in F.headline_caption(effects, C2)
    nothing = F.headline_effects(frame(r | dict(value=.5) if r['metric'] == 'clean_accuracy' else r for r in poor), C2, PAPER)
    assert texts(F.draw_headline(nothing, C2))[1] == 'VGG11 (left out)'


@pytest.mark.parametrize('arch, eps, dataset, value, source', [
    ('vgg11', .25, 'cifar10', .3931 - .5130, 'table 1'), ('vgg16', .25, 'cifar10', .2861 - .3401, 'table 1'),
    ('resnet18', .25, 'cifar10', .10 - .40, 'figure 3, read by eye'), ('resnet18', .5, 'cifar10', None, ''), ('vgg11', .5, 'cifar10', None, ''),
    ('resnet18', .25, 'digits', None, '')])
def test_the_papers_value_belongs_to_its_own_network(arch, eps, dataset, value, source):
    rows = [r | dict(eps=eps if r['eps'] else None, arch=arch, dataset=dataset) for r in both()]
    effect, = F.headline_effects(frame(rows), C2, PAPER).itertuples()
    assert effect.source == source and (math.isnan(effect.paper) if value is None else effect.paper == pytest.approx(value))


def test_two_settings_are_not_averaged():
    rows = both() + [r | dict(steps=20) for r in both() if r['metric'] == 'robust_accuracy']
    with pytest.raises(ValueError, match='two values for one seed of cifar cifar10 vgg11'): F.headline_effects(frame(rows), C2, PAPER)


# the plot

def scaled():
    return frame([*both(), *both(bn=(.20,), none=(.25,), profile='demo', dataset='digits', width=.125),
                  *both(bn=(.4, .5, .41), none=(.4, .41, .39), profile='cifar-small', width=.25),
                  *network((.35, .33, .37), norm='none', arch='vgg11_nf', profile='cifar-small', width=.25)])


def test_the_largest_scale_stands_first_and_one_seed_has_no_bar():
    effects = F.headline_effects(scaled().sample(frac=1, random_state=0), C2, PAPER)
    fig = F.draw_headline(effects, C2)
    headings = [t for t in texts(fig) if t.endswith(('(cifar)', '(cifar-small)', '(demo)'))]
    assert headings == ['CIFAR-10, full width, all images (cifar)', 'CIFAR-10, width 1/4, 10,000 training images (cifar-small)', 'Digits, width 1/8, all images (demo)']
    assert len(bars(fig)) == 3 and '−5.0 (no interval)' in texts(fig) and 'VGG11 NF, control (3 seeds)' in texts(fig)
    top = effects[effects.profile == 'cifar'].iloc[0]
    assert list(bars(fig)[0].get_xdata()) == pytest.approx([100 * top.low, 100 * top.high])
    crosses = [line.get_xdata()[0] for line in fig.axes[0].lines if line.get_marker() == 'x']
    assert crosses == pytest.approx([100 * (.3931 - .5130)] * 2)       # not for the digits, not for the control
    assert fig.dpi >= 110 and any('control without normalisation' in t.get_text() for t in fig.legends[0].get_texts())


def test_the_band_is_the_smallest_effect_of_the_rules():
    band, = F.draw_headline(F.headline_effects(frame(both()), C2, PAPER), C2).axes[0].patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-3, 3))


def test_a_control_has_an_open_mark_in_its_own_colour():
    fig = F.draw_headline(F.headline_effects(scaled(), C2, PAPER), C2)
    marks = {line.get_marker(): (line.get_color(), line.get_markerfacecolor()) for line in fig.axes[0].lines if line.get_marker() in 'sP'}
    assert marks['s'] == (LOOKS['bn']['color'],) * 2 and marks['P'] == (CONTROL, 'white') and CONTROL not in {look['color'] for look in LOOKS.values()}


@pytest.mark.parametrize('bn, said', [((.30, .28, .32), '1 of 1'), ((.39, .40, .38), '0 of 1'), ((.50, .52, .48), '0 of 1')])
def test_the_sentence_follows_from_the_interval(bn, said):
    effects = F.headline_effects(frame(both(bn=bn, none=(.40, .42, .40))), C2, PAPER)
    text = F.headline_finding(effects, C2)
    assert f'by more than 3 points in {said} architecture (the whole 95 % interval lies beyond): VGG11 {F.effect_text(effects.iloc[0])} points.' in text


def test_without_a_pair_there_is_no_plot():
    with pytest.raises(ValueError, match='needs BN and none of the same network and seed'):
        F.draw_headline(F.headline_effects(frame(network((.3,))), C2, PAPER), C2)


# the table

def test_the_table_across_scales():
    found = {'demo': frame(made_up_rows()), 'cifar': frame(made_up_rows()).query("attack != 'cw_linf'")}
    decided, parts = decide_published(CLAIMS, found, PAPER)
    lines = headline_table(decided, parts, CLAIMS).set_index('Claim (effect shown)')
    c2 = lines.loc['C2 BN lowers robust accuracy (PGD ℓ2, points)']
    assert list(lines) == ['Headline verdict', '`cifar`', '`demo`'] and c2['Headline verdict'] == '✓ reproduced (`demo`)'
    assert c2['`demo`'] == '✓ −24.0 [−26.0, −22.0]' and c2['`cifar`'].endswith('(parts are missing)')
    assert set(lines.loc[[i for i in lines.index if i.startswith('C9')]].iloc[0]) == {'– not run', '–'}


# the README

@pytest.mark.parametrize('id', ['C1', 'C2', 'C5'])
def test_the_readme_says_what_the_published_rows_say(id):
    text, found = (ROOT / 'README.md').read_text(encoding='utf-8'), read_published()
    named = {name for name in found if f'| `{name}` |' in next(line for line in text.splitlines() if line.startswith('| Claim (effect shown)'))}
    assert {'demo', 'cifar-small'} <= named
    decided, _ = decide_published({id: CLAIMS[id]}, {name: found[name] for name in named}, PAPER)
    line = next(line for line in text.splitlines() if line.startswith(f'| {id} '))
    for name in named: assert SIGNS[decided[decided.profile == name].verdict.iloc[0]] in line
    if len(named) < len(set(re.findall(r'`([\w-]+)` \(\[rows\]', text))): return       # the README names a profile that is not here
    top = headline(decided, CLAIMS).iloc[0]
    effects = F.headline_effects(found[top.profile], CLAIMS[id], PAPER)
    for c in effects[effects.kind == 'bn'].itertuples(): assert F.effect_text(c) in text


def test_the_readme_shows_the_plot_and_it_is_there():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert text.index('docs/figures/headline.svg') < text.index('## Nine claims of the paper') < text.index('## Two commands')
    assert len(text.splitlines()) <= 130
    svg = (ROOT / 'docs/figures/headline.svg').read_text(encoding='utf-8')
    assert '(cifar-small)' in svg and '(demo)' in svg and 'control without normalisation' in svg


# the report

def test_a_report_leads_with_its_own_lines_and_the_published_larger_ones(tmp_path):
    from nrf_repro.results.rows import write_rows
    own = frame([*made_up_rows(profile='cifar-small', dataset='cifar10', width=.25)])
    for name in ('demo', 'cifar'): write_rows(tmp_path / 'published' / name / 'rows.jsonl', frame([*both(profile=name)]))
    for folder, larger in ((tmp_path / 'published', True), (tmp_path / 'nowhere', False)):
        html = report.render_report(own, CLAIMS, tmp_path / 'report.html', profile='cifar-small', published=folder).read_text(encoding='utf-8')
        assert html.index('In this profile') < html.index('id="verdicts"') < html.index('id="headline"') and html.count('<h3 id="headline"') == 1
        assert ('all images (cifar, published)' in html) == ('At the largest published scale (cifar: ' in html) == larger
        assert '(demo' not in html
        assert 'In this profile (cifar-small: CIFAR-10, width 1/4, 10,000 training images) BN ' in html


def test_a_damaged_published_file_is_named(tmp_path):
    (tmp_path / 'cifar').mkdir()
    (tmp_path / 'cifar' / 'rows.jsonl').write_text('{"experiment": "final"\n')
    with pytest.raises(ValueError, match='cifar/rows.jsonl line 1'):
        report.render_report(frame(made_up_rows(profile='demo')), CLAIMS, tmp_path / 'report.html', profile='demo', published=tmp_path)
    assert not (tmp_path / 'report.html').exists()


def test_a_report_without_a_pair_has_no_headline(tmp_path):
    html = report.render_report(frame(made_up_rows(['none'])), CLAIMS, tmp_path / 'report.html', profile='made-up').read_text(encoding='utf-8')
    assert 'id="headline"' not in html and 'id="verdicts"' in html


def test_with_outcomes_a_control_is_compared_with_none_and_with_bn():
    "The difference from BN uses the outcomes of the network with BN."
    values, rows = {'none': .6, 'bn': .3, 'vgg11_nf': .45}, []
    for seed in range(3):
        for name, value in values.items():
            arch, norm = ('vgg11_nf', 'none') if name == 'vgg11_nf' else ('vgg11', name)
            common = dict(experiment='final', dataset='digits', arch=arch, norm=norm, width=1., regime='standard', epoch=8, seed=seed, profile='demo')
            right = np.arange(400) < 400 * value + seed
            rows.append(make_row(metric='clean_accuracy', value=.99, n=400, **common))
            rows.append(make_row(metric='robust_accuracy', value=right.mean(), attack='pgd_l2', eps=1., steps=10, step_size=.25, reading='any',
                                 **outcome_fields(right, 'digits, 400'), **common))
    line, = F.control_effects(frame(rows), load_claims()['C2']).itertuples()
    assert math.isclose(line.from_none.mean, -.15) and math.isclose(line.from_bn.mean, .15) and line.from_bn.low > 0 > line.from_none.high
