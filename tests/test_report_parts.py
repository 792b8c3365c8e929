"""The parts of the report on made-up rows whose answers were worked out by hand."""
import io
import math
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from made_up import made_up_rows
from nrf_repro.report import checks, curves, forest, rendering, tables
from nrf_repro.report.figures import LOOKS, caption, inline_figure, inline_svg, kind_name, notebook_svg, svg_text, MARKS
from nrf_repro.report.html import download, fragment, glossary, jsonl, mark_terms, source, stylesheet, to_latex, to_markdown
from nrf_repro.report.readings import _AS_MUCH, _in_words, control_answers, control_lines, control_table, moves, reading_1, reading_2, reading_3, reading_cells, reading_controls
from nrf_repro.report.sensitivity import needed
from nrf_repro.report.text import NETWORK, COLUMNS, amount, duration, eps_text, number, plain
from nrf_repro.report.verdict_table import headline_table, rule_text, shown_part, verdict_lines, verdict_table
from nrf_repro.results.claims import conclude, decide, decide_parts, decide_published
from nrf_repro.results.rules import load_claims
from nrf_repro.results.rows import NAMED_NORMS, frame, make_row, paper_rows, printed_note, read_published, resolve_repo_path, source_hash, write_rows

CLAIMS, PAPER = load_claims(), paper_rows()
RULE = CLAIMS['C1']
ROWS = frame(made_up_rows())
WEAKER = frame(made_up_rows(norms=['bn'], seeds=[0])).query('attack == "pgd_l2"').assign(eps=.25, value=.95)
BAD = pd.concat([ROWS[~((ROWS.norm == 'gn') & (ROWS.attack == 'cw_linf'))], WEAKER])      # a second eps, and a missing attack
CIFAR = frame(made_up_rows(['none', 'bn'], dataset='cifar10', width=1.)).assign(eps=lambda d: d.eps.replace(1., .25).where(d.attack == 'pgd_l2', d.eps))


def history(regimes=('standard', 'adversarial'), epochs=(1, 4, 8), **fields):
    for norm, fall in dict(none=.2, bn=.4).items():
        for regime in regimes:
            scale = dict(standard=1, adversarial=.1)[regime]
            for seed in range(3):
                for e in epochs:
                    one = dict(experiment='history', dataset='digits', arch='vgg11', width=.125, profile='made-up', n=100, norm=norm, regime=regime, seed=seed, epoch=e) | fields
                    yield make_row(**one, metric='clean_accuracy', value=.97 - .3 / e + .01 * seed)
                    yield make_row(**one, metric='robust_accuracy', value=.9 - scale * fall - .3 / e + .01 * seed, attack='pgd_l2', eps=1., steps=10, step_size=.25, reading='any')
                    yield make_row(**one, metric='ligs', value=1 - scale * fall * e / 8 - .004 * seed, sigma=.05)


HISTORY = frame(history())


# text

def test_numbers_in_words():
    assert [number(.98765, 'clean'), number(.5, 'ligs'), number(None, 'clean')] == ['98.8', '0.500', 'missing']
    assert [number(-.0001, 'clean', True), number(-.24, 'clean', True)] == ['+0.0', '−24.0']
    assert [eps_text(e) for e in (1 / 255, 8 / 255, .25, 1., .5)] == ['1/255', '8/255', '0.25', '1', '0.5']
    assert [amount(-.24, 'robust_accuracy'), amount(.02, 'ligs'), amount(math.nan, 'ligs')] == ['−24.0 points', '+0.020 LIGS', 'not available']
    assert [duration(s) for s in (5, 200, 9000)] == ['5 s', '3 min', '2.5 h']


# tables

def test_one_setting_never_mixes_two_eps():
    kept = tables.one_setting(tables.named(BAD))
    assert len(kept) == len(BAD) - 1 and list(kept[kept.attack == 'pgd_l2'].eps.unique()) == [1.]
    with pytest.raises(ValueError, match='two values for one seed'): tables.summary(tables.named(BAD), [*NETWORK, 'norm', 'column'])


def test_means_have_t_intervals():
    cells = tables.summary(tables.one_setting(tables.named(BAD)), [*NETWORK, 'norm', 'column'])
    bn = cells[(cells.norm == 'bn') & (cells.column == 'pgd_l2')].iloc[0]
    assert (bn.value, bn.low) == pytest.approx((.58, .58 - 4.302653 * .016 / 3**.5)) and (bn.seeds, bn.n) == ((0, 1, 2), 400)
    one = tables.summary(tables.one_setting(tables.named(BAD[BAD.seed == 0])), [*NETWORK, 'norm', 'column']).query("norm == 'none' and column == 'pgd_l2'").iloc[0]
    assert one.low < one.value < one.high                                      # Wilson over the images


def test_printed_values_stand_only_beside_their_own_cell():
    printed = tables.table_1(CIFAR, PAPER, RULE).dropna(subset='printed')
    assert printed.printed.tolist() == ['90.06', '51.30', '92.48', '39.31', '+2.42', '−11.99']
    assert tables.table_1(CIFAR.assign(eps=CIFAR.eps * 4), PAPER).dropna(subset='printed').column.unique().tolist() == ['clean']
    assert tables.table_1(ROWS, PAPER).printed.isna().all()                     # the paper has no digits
    strict = tables.table_1(CIFAR, PAPER, replace(RULE, undertrained=dict(cifar10=.98)))
    assert strict.groupby('norm').flag.first().to_dict() == dict(bn='', none='undertrained: 2 of 3 seeds')


def test_every_cell_exists_and_a_control_lacks_no_norm():
    t = tables.table(BAD, NAMED_NORMS, tables.TABLE_1, paper=PAPER, rule=RULE)
    hole = t[(t.norm == 'gn') & (t.column == 'cw_linf')]
    assert len(t) == 9 * 5 and hole.value.isna().all() and (hole.seeds == ()).all() and len(hole) == 2 and set(t.flag) == {''}
    assert len(tables.table(ROWS.iloc[:0], NAMED_NORMS, tables.TABLE_1)) == 0
    control = tables.table(ROWS[ROWS.norm == 'none'].assign(arch='vgg11_nf'), NAMED_NORMS, ('clean', 'cw_linf'))
    assert control[['norm', 'column']].values.tolist() == [['none', 'clean'], ['none', 'cw_linf']]


def test_a_weak_attack_is_marked_in_its_cell_and_in_differences():
    same = {k: ROWS[k].iloc[0] for k in (*NETWORK, 'profile')}
    weak = frame([make_row(experiment='adequacy', metric='missed', source='more steps', target='cw_linf', attack='cw_linf', steps=50, norm=norm, seed=0, value=value, n=100, **same)
                  for norm, value in dict(bn=.08, none=.01).items()])
    marked = tables.table_1(pd.concat([BAD, weak]), PAPER, RULE)
    assert tables.notes_text(marked) == '⚠1 50 steps fool 8.0 % of the images more.'
    assert [line.split()[-1] for line in tables.wide(marked)['CW ℓ∞ 8/255']][::2] == ['75.0]', '⚠1', '⚠1']
    html = str(tables.to_html(marked, 'A mark'))
    assert (html.count('⚠1'), html.count('50 steps fool')) == (3, 1)            # BN, BN - None, and the text once


def test_missing_and_planned():
    fewer = BAD[~((BAD.norm == 'bn') & (BAD.seed == 2) & (BAD.attack == 'pgd_linf'))]
    holes = tables.missing(tables.table(fewer, NAMED_NORMS, tables.TABLE_1))
    assert holes.drop(columns='network').values.tolist() == [['BN', 'PGD ℓ∞', 'seed 2'], ['GN', 'CW ℓ∞', 'all seeds']]
    plan = [dict(dataset='digits', arch='vgg11', width=.125, norm=m, regime='standard', seed=s, attacks=['pgd_l2']) for m in ('bn', 'gn') for s in (2, 3)]
    assert tables.not_run(fewer, plan)[['norm', 'seed', 'column']].values.tolist() == [['bn', 3, 'clean'], ['bn', 3, 'pgd_l2'], ['gn', 3, 'clean'], ['gn', 3, 'pgd_l2']]


def test_wide_text_and_footnotes():
    text = tables.wide(tables.table_2(CIFAR, PAPER, RULE))
    assert text.Norm.tolist().count('BN, paper') == 1 and 'GN − None' not in set(text.Norm)
    assert 'missing' in text[text.Norm == 'GN'].values and '42.41' in text.values
    resnet = frame(made_up_rows(['none', 'bn'], dataset='cifar10', arch='resnet50', width=1.))
    resnet['eps'] = resnet.eps.map({1.: .25, 8 / 255: 1 / 255})
    shown = tables.layout(tables.table_1(resnet, PAPER, RULE))
    assert shown['notes'] == [('a', printed_note('cifar10', 'resnet50', 'none', 'cw_l2'))]
    assert [c['mark'] for c in shown['groups'][0]['lines'][0]['cells']] == ['', 'a', '', 'a', '', '']
    both = tables.layout(pd.concat([tables.table_1(CIFAR), tables.table_1(ROWS)], ignore_index=True))
    assert {g['name']: g['eps'] for g in both['groups']} == {'cifar10 · VGG11': 'PGD ℓ2 0.25', 'digits · VGG11 × 0.125': 'PGD ℓ2 1'}


def test_small_tables():
    s = tables.settings(BAD)
    assert s[s.measurement == 'PGD ℓ2'].eps.tolist() == ['0.25, 1'] and s.rows.astype(int).sum() == len(BAD)
    plain = ROWS[ROWS.metric == 'ligs'].assign(metric='vanished', value=.25)
    assert tables.gradients(pd.concat([ROWS, plain])).values[0].tolist()[1:] == ['BN', '0.600', 'missing', '25.0 %']
    p = tables.printed_table(PAPER)
    line = p[(p.Data == 'cifar10') & (p.Network == 'ResNet50')].iloc[0]
    assert line.tolist() == ['cifar10', 'ResNet50', 'None', '92.15', '29.24 *', '49.33', '17.09 *', '49.24'] and p.loc[line.name + 2, 'PGD ℓ2'] == '▼ −20.09'


def test_markdown_latex_and_downloads():
    assert to_markdown(pd.DataFrame({'a': ['x|y'], 'b': ['1']})) == '| a | b |\n| --- | --- |\n| x\\|y | 1 |\n'
    tex = to_latex(tables.wide(tables.table_1(ROWS)), 'Made-up rows: 100 % invented', 'tab:made-up')
    assert r'$\downarrow$ $-$24.0' in tex and r'PGD $\ell_\infty$ 8/255' in tex and r'100 \% invented' in tex and tex.isascii()
    small, large = download('a.csv', 'x' * 10, 'text/csv'), download('a.csv', 'x' * 10**6 + 'y', 'text/csv')
    assert (small['name'], large['name']) == ('a.csv', 'a.csv.gz') and len(large['href']) < 3000 and small['href'].startswith('data:text/csv;base64,')
    assert '.nrf-table' in stylesheet() and jsonl(ROWS.head(2)).count('"norm": "none"') == 2


# verdicts

def lines_of(rows):
    parts = decide_parts(CLAIMS, rows, PAPER)
    return list(verdict_lines(conclude(CLAIMS, parts), parts, CLAIMS))


def test_verdict_tables():
    lines = lines_of(ROWS)
    v = verdict_table(lines).set_index('Claim')
    robust = next(line for name, line in v.iterrows() if name.startswith('C2'))
    assert len(v) == 10 and robust.Verdict == '✓ reproduced' and robust.Ours == 'PGD ℓ2: −24.0 points [−26.0, −22.0]' and v.Verdict.iloc[-1] == '– not run'
    assert [shown_part(CLAIMS[id]) for id in ('C1', 'C2', 'C3', 'C4', 'C6')] == ['points', 'PGD ℓ2, points', 'IN, points', 'LIGS without normalisation', 'without normalisation, LIGS minus 0.9']
    html = str(fragment('verdicts', lines, 'Verdicts', 'verdicts', ''))
    assert html.count('<tbody class="nrf-') == 10 and 'nrf-badge-not-run' in html and re.findall(r'<tbody class="nrf-verdict" id="(C\d+)"', html) == list(CLAIMS)
    assert '✓ PGD ℓ∞</summary>' in html and not re.search(r'pgd_l|cw_l|vgg11|bn minus', html)


def test_a_line_shows_the_effect_of_its_title_and_the_part_that_decided():
    raised = ROWS.assign(value=ROWS.value.mask((ROWS.norm == 'ln') & (ROWS.attack == 'pgd_l2'), .85 + .01 * ROWS.seed.astype(float)))
    c3, = (line for line in lines_of(raised) if line['id'] == 'C3')
    assert [(e['name'], e['decided']) for e in c3['effects']] == [('IN', False), ('LN', True)] and c3['ours'].startswith('IN: −10.0')
    one = dict(experiment='regularization', dataset='digits', arch='vgg11', norm='bn', profile='made-up', n=400)
    gain = frame([make_row(**one, seed=seed, lam=lam, **kind, value=value + .001 * seed * lam) for seed in range(3) for lam in (0., 3.)
                  for kind, value in ((dict(metric='clean_accuracy'), .95 - .01 * lam / 3),
                                      (dict(metric='robust_accuracy', attack='pgd_l2', eps=1., steps=10, reading='any'), .2 + .3 * lam / 3))])
    c8, = (line for line in lines_of(gain) if line['id'] == 'C8')
    assert [e['name'] for e in c8['effects']] == ['robust accuracy', 'clean accuracy']     # the gain beside its cost


def test_rules_in_words():
    assert [rule_text(CLAIMS[id].parts[i], CLAIMS[id]) for id, i in (('C2', 1), ('C6', 0), ('C8', 1))] == [
        'robust accuracy, BN minus no normalisation (PGD ℓ∞): the 95 % interval must lie below −3.0 points.',
        'LIGS minus 0.9: the 90 % interval must lie above zero.', 'clean accuracy, lambda 3 minus lambda 0: the 95 % interval must lie above −3.0 points.']
    assert plain('pgd_linf: none minus bn -0.2 on vgg11_nf, the nrf label') == "PGD ℓ∞: no normalisation minus BN −0.2 on VGG11 NF, the non-robust feature's label"


def test_the_part_that_decided_is_named_across_scales():
    few = {id: CLAIMS[id] for id in ('C1', 'C2', 'C3')}
    raised = ROWS.assign(value=ROWS.value.mask((ROWS.norm == 'ln') & (ROWS.attack == 'pgd_l2'), .85 + .01 * ROWS.seed.astype(float)))
    cell = headline_table(*decide_published(few, {'demo': raised}, PAPER), few)['`demo`'][2]
    assert cell.startswith('✗ −10.0') and '(decided by LN: +' in cell


# figures

def test_looks_differ_in_line_and_marker_and_are_dark_enough():
    import matplotlib as mpl
    def luminance(color): # of WCAG
        linear = [c / 12.92 if c <= .04045 else ((c + .055) / 1.055)**2.4 for c in mpl.colors.to_rgb(color)]
        return float(np.dot((.2126, .7152, .0722), linear))
    assert len({str(look['linestyle']) for look in LOOKS.values()}) == len({look['marker'] for look in LOOKS.values()}) == 5
    assert all(1.05 / (luminance(look['color']) + .05) > 4.5 for look in LOOKS.values())
    assert [kind_name(k) for k in MARKS] == ['Without normalisation', 'BN', 'IN', 'LN', 'GN', 'Fixup', 'NF']


def test_figure_3():
    fig = curves.figure_3(HISTORY)
    assert [[line.get_linestyle() for line in ax.lines] for ax in fig.axes] == [['-', '--']] * 6
    half = HISTORY[(HISTORY.regime == 'standard') & (HISTORY.metric != 'ligs')]
    assert [t.get_text() for ax in curves.figure_3(half).axes for t in ax.texts] == ['not measured']
    for arch, more in dict(vgg11=set(), resnet18={'Without normalisation, paper (ResNet18)', 'BN, paper (ResNet18)'}).items():   # a VGG11 is not in the paper's figure 3
        fig = curves.figure_3(frame(history(dataset='cifar10', arch=arch, regimes=['standard'])))
        assert {t.get_text() for t in fig.legends[0].get_texts()} == {'Without normalisation', 'BN'} | more
    with pytest.raises(ValueError, match='figure 3 needs rows'): curves.figure_3(ROWS)


def test_a_caption_states_n_seeds_interval_and_attack():
    one = HISTORY[(HISTORY.seed == 1) & (HISTORY.metric != 'ligs')]
    assert caption(one) == 'n = 100 images; seed 1; one seed, no interval over seeds; PGD ℓ2 with eps 1 in 10 steps.'
    assert 'seeds 0, 1 and 2; mean and 95 % t interval over seeds' in caption(HISTORY)


def test_the_forest_has_a_line_for_each_difference():
    fig = forest.forest(tables.table(ROWS, ('none', 'bn', 'gn'), ('clean', 'pgd_l2', 'ligs')))
    assert [[t.get_text() for t in ax.get_yticklabels()] for ax in fig.axes[:2]] == [
        ['Clean: BN − None', 'PGD ℓ2: BN − None', 'Clean: GN − None', 'PGD ℓ2: GN − None'], ['LIGS: BN − None', 'LIGS: GN − None']]
    assert [t.get_text() for t in fig.axes[2].get_yticklabels()][1] == '> .999' and svg_text(fig) == svg_text(fig)
    with pytest.raises(ValueError, match='differences between two norms'): forest.forest(tables.table(ROWS, ('none',), ('clean',)))


def test_eps_curves_begin_at_the_clean_accuracy():
    base = ROWS[ROWS.norm.isin(['none', 'bn'])]
    pgd = base[base.attack == 'pgd_l2']
    many = pd.concat([base, *(pgd.assign(eps=e, attack=f'pgd_l2_{e:g}', value=pgd.value**(e * 1.2)) for e in (.25, .5, 2.))])
    assert curves.eps_rows(many).groupby('family').eps.unique().map(sorted).to_dict() == dict(pgd_l2=[0, .25, .5, 1, 2])
    assert curves.eps_curves(base) is None and len(curves.eps_rows(many.assign(experiment='adequacy', source='more steps'))) == 0
    assert len(curves.eps_curves(many.assign(experiment='adequacy', source='eps'), mark=dict(pgd_l2=1.)).axes[0].lines) == 3


def test_clean_against_robust():
    ax, = curves.clean_robust(HISTORY).axes
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(100 * (.9 - .2 - .3 / 8 + .01)) and curves.clean_robust(HISTORY[HISTORY.metric == 'ligs']) is None
    assert curves.plane(ROWS[ROWS.metric == 'ligs']) is None and len(curves.final_accuracies(ROWS)) == 15


def test_ids_in_a_page_are_unique_and_colours_follow_the_theme():
    element = inline_svg(curves.figure_3(HISTORY), 'BN against "None" <made up>', 'f3')
    ids, used = re.findall(r'\bid="([^"]+)"', element), re.findall(r'(?:href="|url\()#([^")]+)', element)
    assert len(ids) == len(set(ids)) and all(i.startswith('f3-') for i in ids) and used and set(used) <= set(ids)
    assert 'var(--nrf-bn, #c44601)' in element and 'aria-label="BN against &quot;None&quot; &lt;made up>"' in element


# readings

def test_readings():
    t1, t2 = tables.table_1(ROWS, PAPER, RULE), tables.table_2(ROWS, PAPER, RULE)
    changes = {c.column: c for c in t1[t1.base.notna()].itertuples()}
    assert moves(changes['pgd_l2']) == 'falls by 24.0 points' and moves(changes['clean']._replace(low=-.1)) == 'does not clearly change (+1.3)'
    assert moves(changes['clean']._replace(low=math.nan)) == 'moves by +1.3 on one seed, without an interval'
    assert list(reading_1(t1)) == ['digits · VGG11 × 0.125: with BN clean accuracy rises by 1.3 points; under attack accuracy is clearly lower in 4 of 4 attacks, by 24.0 points; LIGS falls by 0.200.']
    assert '4 of 4 norms (BN, IN, LN, GN); it is lowest with BN and highest with None.' in next(reading_2(t2))
    assert next(reading_cells(t1)) == 'Of 6 differences 5 lie clearly below zero, 1 above, 0 across it.'
    first = next(reading_3(HISTORY))
    assert first.startswith('Standard training: LIGS goes from 0.971 to 0.796 without norm, from 0.946 to 0.596 with BN') and '41.0 to 67.2 % without norm' in first


@pytest.mark.parametrize('drop, said', [(.12, ('1 of 1 controls are clearly less', '1 of 1 are clearly more')), (0., ('0 of 1 controls are clearly less', '1 of 1 are clearly more')),
                                        (.24, ('1 of 1 controls are clearly less', '0 of 1 are clearly more'))])
def test_controls(drop, said):
    few = ROWS[ROWS.norm.isin(['none', 'bn'])]
    lower = lambda d: d.value - drop * (d.metric == 'robust_accuracy') * (.9 + .1 * d.seed.astype(float))
    rows = pd.concat([few, few[few.norm == 'none'].assign(arch='vgg11_nf', value=lower)])
    text, = reading_controls(rows, CLAIMS)
    assert all(words in text for words in said) and (reading_controls(ROWS, CLAIMS), len(control_table(ROWS, CLAIMS))) == ([], 0)
    if drop == .12: assert control_table(rows, CLAIMS).iloc[0].tolist()[:7] == [
        'Digits, width 1/8 (made-up)', 'VGG11 NF', '3', '97.5, 97.5, 98.8', '82.0, 70.0, 58.0', '−12.0 [−15.0, −9.0]', '+12.0 [+7.0, +17.0]']


# how much of BN's loss a network without a normalisation layer has

def controls_rows(drop, clean=0.): # BN loses 24 points and 0.1 of LIGS; the control `drop`, and `clean` of clean accuracy
    few = ROWS[ROWS.norm.isin(['none', 'bn'])]
    less = lambda d: d.value - (drop + .002 * d.seed.astype(float)) * (d.metric == 'robust_accuracy') - clean * (d.metric == 'clean_accuracy')
    return pd.concat([few, few[few.norm == 'none'].assign(arch='vgg11_nf', value=less)])


@pytest.mark.parametrize('drop, answer', [(0., 'none of it'), (.12, 'a part'), (.24, 'all of it'), (.5, 'all of it')])
def test_the_answer_follows_the_loss_of_the_control(drop, answer):
    found = control_answers(controls_rows(drop), CLAIMS, 'C2')
    assert (found.answer.tolist(), found.same.tolist()) == ([answer], [4]) and control_table(controls_rows(drop), CLAIMS).iloc[0, -2] == _AS_MUCH[answer]
    question, line, *more = control_lines(controls_rows(drop), CLAIMS)
    assert question.endswith('(Rule of 2026-11-29, written after the rows were seen.)')
    assert f'{_in_words(answer)}: VGG11 NF, made-up (control − none' in line and any('contradicts' in m for m in more) == (answer == 'all of it')


def test_a_control_that_is_less_accurate_has_no_answer():
    found = control_answers(controls_rows(.24, clean=.05), CLAIMS, 'C2')
    assert (found.answer.item(), found.why.item()) == ('no answer', '6.3 points less accurate than BN')


def test_without_a_loss_of_bn_there_is_no_answer():
    rows = controls_rows(.24)
    rows = rows.assign(value=rows.value.mask((rows.norm == 'bn') & (rows.metric == 'robust_accuracy'), .9))
    found = control_answers(rows, CLAIMS, 'C2')
    assert (found.answer.item(), found.why.item()) == ('no answer', 'no clear loss with BN')


def test_without_controls_there_are_no_lines(): assert control_lines(ROWS, CLAIMS) == [] and control_answers(ROWS, CLAIMS, 'C2').empty


# the page

def test_facts():
    data = [dict(name='digits', train=1297, test=400, fingerprint='f00d', note='made up')]
    meta = rendering.check_meta(dict(machine='an abacus', data=data, seconds=200, settings='5e77', lock='10c4, installed as it says'))
    f = rendering.facts(ROWS.assign(device='cpu', threads=1), 'made-up', meta)
    assert (f['Norms'], f['Seeds'], f['Images behind a number'], f['Networks']) == ('None, BN, IN, LN, GN', '0, 1, 2', '400', 'VGG11 at width 0.125')
    assert (f['Time'], f['Machine'], f['Data']) == ('3 min wall time', 'an abacus, cpu, 1 thread a job', 'digits (1297 training images; 400 test images; fingerprint f00d; made up)')
    assert f['Settings'].startswith('profile 5e77, ') and f['Lock file'] == '10c4, installed as it says'
    assert rendering.facts(HISTORY.assign(seconds=2.), 'made-up', rendering.check_meta({}))['Time'] == '72 s of training epochs and of those measurements whose rows state their time'
    assert rendering.facts(ROWS.assign(source_hash='ada51fa96dc0'), 'made-up', meta)['Source hash'] == f'ada51fa96dc0 ({len(ROWS)} rows), the code that rendered this report has {source_hash()}'


def test_missing_texts():
    holed = tables.table_1(ROWS[~((ROWS.norm == 'bn') & (ROWS.attack == 'cw_l2'))], PAPER)
    plan = [dict(dataset='digits', arch='vgg11', width=.125, norm='bn', regime='adversarial', seed=s, attacks=['pgd_l2']) for s in (0, 1)]
    listed = rendering.missing_texts(ROWS, [holed], decide(CLAIMS, ROWS, PAPER), rendering.check_meta(dict(plan=plan)))
    assert listed[:2] == ['digits · VGG11 × 0.125, BN: CW ℓ2 (all seeds)', 'planned and not run: digits · VGG11 × 0.125 · adversarial, BN: Clean, PGD ℓ2 (seed 0, 1)']
    assert listed[-1].startswith('claims without rows:') and 'C10' in listed[-1]


def test_larger_published_scales_are_found(tmp_path):
    for name in ('tiny', 'cifar', 'mine'): write_rows(tmp_path / name / 'rows.jsonl', ROWS.assign(profile=name))
    claim = CLAIMS['C2']
    others = forest.other_scales('demo', claim, tmp_path)
    assert list(others) == ['cifar', 'tiny'] and list(forest.larger_than('demo', claim, others)) == ['cifar']
    assert list(forest.other_scales('cifar', claim, tmp_path)) == ['tiny'] and forest.larger_than('cifar', claim, {'tiny': ROWS}) == {}
    assert forest.larger_than('made-up', claim, others) == forest.other_scales('demo', claim, tmp_path / 'nowhere') == {}


def test_the_first_figure_shows_every_scale_that_has_a_history():
    plain = HISTORY[HISTORY.regime == 'standard'].assign(profile='mine', arch='vgg11')
    part = rendering.answer_part(plain, 'mine', CLAIMS, {'cifar': plain.assign(profile='cifar'), 'demo': ROWS})
    assert [ax.get_title(loc='left').split(',')[0] for ax in part['fig'].axes] == ['mine', 'cifar'] and part['id'] == 'paths'
    assert f'mine: {plain.n.max():,.0f} images, {plain.seed.nunique()} seeds; cifar' in part['caption'] and 'demo' not in part['caption']
    other = rendering.answer_part(plain.assign(arch='resnet18'), 'mine', CLAIMS, {'cifar': plain})       # the profile is always among its scales
    assert [ax.get_title(loc='left').split(',')[0] for ax in other['fig'].axes] == ['mine'] and len(other['rows']) and 'ResNet18' in other['caption']
    assert rendering.answer_part(ROWS, 'mine', CLAIMS, {}) is None and rendering.answer_part(plain, 'mine', {}, {}) is None


def test_claims_for_which_a_profile_is_too_small():
    made = pd.DataFrame(dict(id=['C1', 'C2', 'C3'], verdict=['inconclusive', 'reproduced', 'not run'], reason='r.'))
    powers = pd.DataFrame([dict(profile='mine', id=id, rule='all seeds', power=p) for id, p in dict(C1=.2, C2=.8, C3=.1).items()])
    assert rendering.too_small_for(made, 'mine', powers) == dict(
        C1='This profile is too small to decide the claim if the effect is only twice the smallest one (power 20 %).')
    assert rendering.too_small_for(made, 'other', powers) == {}


def test_studies_that_are_not_shown_are_listed(tmp_path):
    rows = pd.concat([ROWS, ROWS.head(3).assign(experiment='transfer')], ignore_index=True)
    html = rendering.render_report(rows, {'C2': CLAIMS['C2']}, tmp_path / 'report.html', profile='made-up').read_text()
    assert 'the rows of the study transfer are not shown' in html


# provenance and glossary

def test_a_part_names_its_rows_its_function_and_a_command():
    s = source([7, 3, 4, 5, 5], 'report.tables.table_1', 'make it')
    assert s == dict(lines='3-5,7', count=4, code='report.tables.table_1', chapter='5_how_it_works/64_tables', command='make it')


def test_the_named_rows_make_the_table_and_the_verdict_again():
    more = pd.concat([ROWS, HISTORY, frame(made_up_rows(regime='adversarial'))], ignore_index=True)
    used = tables.table_rows(more, ('none', 'bn'), ('clean', 'pgd_l2'), 'standard')
    few = more.loc[used.index]
    again, once = (tables.table(r, ('none', 'bn'), ('clean', 'pgd_l2')) for r in (few, more))
    pd.testing.assert_frame_equal(again, once)
    assert len(few) == 2 * 3 * 2
    for id, claim in CLAIMS.items():
        few = more.loc[needed(claim, more)]
        a, b = (decide({id: claim}, r.reset_index(drop=True), PAPER) for r in (few, more))
        pd.testing.assert_frame_equal(a, b)
        assert (len(few) < len(more)) and (id != 'C2' or len(few) == 2 * 3 * 5)


def test_the_glossary_is_complete_and_marks_first_uses_only():
    terms, book = glossary(), resolve_repo_path('nbs')
    assert len(terms) >= 40 and [t['name'].lower() for t in terms.values()] == sorted(t['name'].lower() for t in terms.values())
    for id, t in terms.items():
        assert set(t) <= {'name', 'long', 'text', 'match', 'chapter'} and (book / f'{t["chapter"]}.ipynb').is_file(), id
        assert all(len(sentence.split()) <= 25 for sentence in re.split(r'(?<=[.:]) ', t['text'])), id
    page = mark_terms('<h2>LIGS</h2><svg aria-label="a > b"><text>LIGS</text></svg><p title="LIGS">LIGS and LIGS, d_rand, <a href="#x">PGD</a></p>')
    assert page.count('#term-ligs') == page.count('<a class="nrf-term"') == 1 and '<p title="LIGS"><a' in page


def test_panels_become_svgs_of_their_own_with_one_name():
    html = inline_figure(curves.figure_3(HISTORY), 'Six panels', 'f')
    assert html.count('<svg') == 7 and html.count('aria-hidden="true"') == 7 and html.count('role="img" aria-label="Six panels"') == 1
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) and html.count('Clean accuracy, %') >= 2
    assert inline_figure(forest.forest(tables.table(ROWS, ('none', 'bn'), ('clean',))), 'One panel', 'g').startswith('<svg role="img" aria-label="One panel"')


def test_a_table_of_two_profiles_and_a_seed_that_failed_are_named():
    rows, claim = read_published()['cifar'], load_claims()['C2']
    with pytest.raises(ValueError, match='a table shows one profile'): tables.table_1(pd.concat([rows, rows.assign(profile='mine')]))
    failed = rows.assign(value=rows.value.mask((rows.experiment == 'final') & (rows.metric == 'clean_accuracy') & (rows.arch == 'resnet18') & (rows.norm == 'bn') & (rows.seed == 0), .6))
    cells = tables.table_1(failed, rule=claim)
    assert set(cells[(cells.arch == 'resnet18') & (cells.norm == 'bn')].flag) == {'undertrained: 1 of 3 seeds'}


def test_a_flag_needs_no_column_of_clean_accuracy():
    cells = tables.table(read_published()['demo'], ('none', 'bn'), ('pgd_l2',), rule=load_claims()['C1'])
    assert 'no clean accuracy' not in set(cells.flag)


def test_checks_of_two_profiles_are_not_averaged():
    rows = read_published()['demo']
    with pytest.raises(ValueError, match='several profiles'): checks.judged(pd.concat([rows, rows.assign(profile='mine')]))


def test_a_figure_that_was_displayed_can_be_saved_as_before():
    def made():
        fig, axes = plt.subplots(2, 2, figsize=(5, 4), sharex=True, sharey=True)
        for ax in axes.flat: ax.plot([0, 1], [1, 3])
        axes[0, 0].set_title('left'), axes[0, 1].set_title('right'), axes[0, 0].set_ylabel('y')
        return fig
    def png(fig):
        out = io.BytesIO()
        fig.savefig(out, format='png', dpi=50, metadata=dict(Software=None))
        return out.getvalue()
    shown = made()
    svg = notebook_svg(shown)
    assert svg == notebook_svg(shown) and png(shown) == png(made())


def test_a_hidden_panel_is_no_obstacle():
    fig, axes = plt.subplots(1, 2)
    axes[0].plot([1, 2]), axes[1].set_visible(False)
    assert notebook_svg(fig) and inline_figure(fig, 'text', 'a')


def test_a_caption_names_an_interval_only_where_one_is_drawn():
    rows = read_published()['demo'].query("experiment == 'final' and metric == 'clean_accuracy'")
    assert '95 % t interval' in caption(rows) and 'without interval' in caption(rows, interval=False)


def test_a_figure_of_the_papers_crosses_has_its_attack():
    rows = read_published()['cifar-small'].query("experiment == 'history' and arch == 'resnet18'")
    other = rows.assign(attack=rows.attack.where(rows.attack.isna(), 'pgd_linf'), eps=rows.eps.where(rows.eps.isna(), 4 / 255))
    def crosses(rows): return [line for ax in curves.figure_3(rows).axes for line in ax.get_lines() if 'paper' in line.get_label()]
    assert len(crosses(rows)) == len(crosses(other)) + 2


def test_two_parts_of_one_name_are_an_error(tmp_path):
    file = tmp_path / 'claims.yaml'
    file.write_text(resolve_repo_path('reports/claims.yaml').read_text().replace('- name: clean\n    metric: clean_accuracy', '- name: robust\n    metric: clean_accuracy'))
    with pytest.raises(ValueError, match="two parts are called 'robust'"): load_claims(file)
