"""Two sets of rows side by side: pairs, intervals, what is alone, and the page."""
import math
import subprocess
import sys
from argparse import ArgumentParser

import numpy as np
import pandas as pd
import pytest

from nrf_repro.report import comparison as c
from nrf_repro.report import differences
from nrf_repro.results import rows as results
from nrf_repro.cli import main
from nrf_repro.results.rules import load_claims
from nrf_repro.results.intervals import two_way
from nrf_repro.results.outcomes import outcome_fields
from nrf_repro.results.rows import frame, make_row, write_rows
from made_up import made_up_rows

CLAIMS = {id: claim for id, claim in load_claims().items() if id == 'C2'}


@pytest.fixture(scope='module')
def rows(): return frame(made_up_rows())


def one(value, seed=0, **more):
    given = dict(experiment='final', metric='clean_accuracy', dataset='digits', arch='vgg11', norm='bn', n=400)
    return make_row(**given | dict(value=value, seed=seed) | more)


def only_line(a, b, **more): return next(c.compare(frame(a), frame(b), **more).itertuples())


@pytest.mark.parametrize('p, n, q, m, low, high', [  # Newcombe 1998, Statistics in Medicine 17, table II, method 10, signs changed
    (56 / 70, 70, 48 / 80, 80, -.3339, -.0524), (9 / 10, 10, 3 / 10, 10, -.8090, -.1705), (10 / 10, 10, 0, 20, -1, -.6791), (0, 10, 0, 10, -.2775, .2775)])
def test_newcombe_as_printed(p, n, q, m, low, high): np.testing.assert_allclose(differences.newcombe(p, n, q, m)[1:3], (low, high), atol=1e-4)


def test_seeds_are_paired_whatever_their_order():
    luck = {0: .5, 1: .7, 2: .6}
    a, b = [one(v, s) for s, v in luck.items()], [one(v + .02 + .001 * s, s) for s, v in reversed(luck.items())]
    line = only_line(a, b)
    assert line.how == 'paired, 3 seeds' and line.low > 0 and line.moved == 'up' and math.isclose(line.difference, .021)
    assert only_line(b, a).moved == 'down'


def test_seeds_that_one_side_lacks_are_left_out_of_both_means():
    line = only_line([one(.5, 0), one(.6, 1), one(.1, 2)], [one(.51, 0), one(.63, 1)])
    assert line.how == 'paired, 2 seeds' and math.isclose(line.a, .55) and math.isclose(line.difference, .02)


def test_other_seeds_are_two_samples():
    line = only_line([one(.5, 0), one(.6, 1), one(.7, 2)], [one(.52, 5), one(.61, 6), one(.73, 7)])
    assert line.how.startswith('Welch') and line.moved == 'same' and line.low < 0 < line.high


def test_one_seed_of_what_is_no_share_has_no_interval():
    line = only_line([one(.5, metric='ligs', sigma=.1)], [one(.9, metric='ligs', sigma=.1)])
    assert math.isnan(line.low) and line.moved == 'open' and 'no interval' in line.how
    assert only_line([one(.5)], [one(.9)]).how == 'Newcombe, one seed'
    assert only_line([one(.5, n=None)], [one(.9)]).moved == 'open'


def test_a_difference_without_spread_is_not_certain():
    line = only_line([one(.5, 0), one(.6, 1)], [one(.6, 0), one(.7, 1)])
    assert math.isnan(line.low) and line.moved == 'open'


def test_settings_that_differ_are_named_and_never_averaged():
    a = [one(.5, metric='robust_accuracy', attack='pgd_l2', eps=.25, reading='any', steps=10)]
    b = [one(.4, metric='robust_accuracy', attack='pgd_l2', eps=.5, reading='any', steps=50, n=100)]
    assert only_line(a, b).settings == 'eps 0.25 against 0.5; steps 10 against 50; n 400 against 100'
    lines = c.compare(frame(a + [a[0] | dict(eps=.125)]), frame(b))
    assert sorted(lines.only) == ['A', 'A', 'B']  # which of the two would be meant?


def test_epochs_of_a_history_are_no_setting():
    def past(*epochs): return frame(one(.5, experiment='history', epoch=e) for e in epochs)
    lines = c.compare(past(1, 2), past(2, 3))
    assert sorted(zip(lines.epoch, lines.only)) == [(1, 'A'), (2, ''), (3, 'B')]


def test_undefined_values_do_not_count():
    a, b = [one(None, metric='ligs', sigma=.1)], [one(.5, metric='ligs', sigma=.1)]
    assert c.compare(frame(a), frame(b)).only.tolist() == ['B']


def test_every_measurement_of_either_side_is_in_one_line(rows):
    other = rows[rows.norm != 'gn'].assign(eps=lambda d: d.eps.where(d.norm != 'in', 2.))
    lines = c.compare(rows, other)
    assert lines.seeds_a.map(len).sum() == len(rows) and lines.seeds_b.map(len).sum() == len(other)


def test_ignoring_a_field_that_tells_measurements_apart_is_refused(rows):
    with pytest.raises(ValueError, match='two values for one seed'): c.compare(rows, rows, ignore=['norm'])
    with pytest.raises(ValueError, match="cannot ignore 'seed'"): c.compare(rows, rows, ignore=['seed'])


def test_a_profile_is_found_by_name_and_a_folder_by_its_rows(rows, tmp_path, monkeypatch):
    write_rows(tmp_path / 'reports/published/mine/rows.jsonl', rows)
    write_rows(tmp_path / 'reports/published/mine/runs/x/final.jsonl', rows.assign(seed=9).drop_duplicates(['metric', 'attack', 'norm']))
    monkeypatch.chdir(tmp_path)
    found = c.side('mine')
    assert found.name == 'mine' and len(found.rows) == len(rows)  # rows.jsonl alone, not every file below
    with pytest.raises(FileNotFoundError, match="'yours' is no file"): c.side('yours')


def test_a_claim_that_turns_is_marked(rows):
    robust_bn = rows.assign(value=rows.value + .3 * ((rows.norm == 'bn') & (rows.metric == 'robust_accuracy')))
    found = c.compare_verdicts(rows, robust_bn, CLAIMS).iloc[0]
    assert found.changed and (found.verdict_a, found.verdict_b) == ('reproduced', 'not reproduced')


def test_the_page_holds_both_sides_escaped(rows, tmp_path):
    b = rows.assign(value=(rows.value + .01).clip(0, 1), source_hash='<b>')
    html = c.render_compare(rows, b, tmp_path / 'new/page.html', claims=CLAIMS, names=('x', '<y>')).read_text()
    assert '&lt;y&gt;' in html and '<y>' not in html and '&lt;b&gt;' in html and 'src="http' not in html
    for text in ('id="verdicts"', 'id="differences"', 'id="origins"', 'comparison.csv'): assert text in html


def test_sides_with_nothing_in_common_say_what_keeps_them_apart(rows, tmp_path):
    html = c.render_compare(rows, rows.assign(dataset='cifar10'), tmp_path / 'page.html', claims={}).read_text()
    assert 'No measurement is in both.' in html and 'ignore dataset' in html


def test_words_are_whole_and_hashes_short(rows):
    a, b = (c.side(rows.assign(arch=f'digits-vgg11-{k}', experiment=f'regularization-{k}', git_commit=k * 40, source_hash=k * 20)) for k in 'ab')
    said = c.nothing_in_common(a, b)
    assert 'arch is digits-vgg11-a in A and digits-vgg11-b in B' in said and 'regularization-b in B' in said
    told = c.origins(a, b).set_index('What differs').B
    assert told['commit'] == told['code (hash)'] == 'b' * 12


@pytest.mark.parametrize('text, sentence', [
    ('', 'other.jsonl holds no rows: '), ('# A title\n', 'other.jsonl is not a file of rows (JSON lines): line 1 is not JSON.'),
    ('\n', 'other.jsonl holds no rows: '), ('[1, 2]', 'other.jsonl line 1: a row is a JSON object'),
    (b'\x89PNG', 'other.jsonl is not a file of rows (JSON lines): line 1 is not JSON.')])
def test_a_file_without_rows_is_an_error_in_one_line(rows, tmp_path, capsys, text, sentence):
    write_rows(tmp_path / 'a.jsonl', rows)
    (tmp_path / 'other.jsonl').write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(['compare', str(tmp_path / 'a.jsonl'), str(tmp_path / 'other.jsonl')]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count('\n') == 1


def test_a_line_that_is_damaged_is_named(rows, tmp_path):
    file = write_rows(tmp_path / 'a.jsonl', rows)
    lines = file.read_text().splitlines()
    file.write_text('\n'.join([*lines[:3], lines[3][:40]]))
    with pytest.raises(ValueError, match=r'a\.jsonl is not a file of rows .*: line 4 is not JSON'): c.side(file)


@pytest.mark.parametrize('more', [[], ['--ignore', 'arch']])
def test_outside_a_checkout_verdicts_are_left_out_and_it_says_so(rows, tmp_path, monkeypatch, capsys, more):
    for name in 'ab': write_rows(tmp_path / f'{name}.jsonl', [one(.5, experiment='measure', arch='net')])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, 'CHECKOUT', tmp_path / 'site')
    assert main(['compare', 'a.jsonl', 'b.jsonl', '--out', 'page.html', *more]) == 0
    said, html = capsys.readouterr().out, (tmp_path / 'page.html').read_text()
    assert 'id="differences"' in html and 'id="verdicts"' not in html
    assert (c.NO_RULES in said) == (c.NO_RULES in html) == (not more)   # parts of one run have no verdicts anywhere


def test_rows_of_no_claim_show_no_verdicts(tmp_path):
    a, b = ([one(v, experiment='measure', arch='my net')] for v in (.5, .6))
    html = c.render_compare(frame(a), frame(b), tmp_path / 'page.html').read_text()
    assert 'id="verdicts"' not in html and 'Newcombe, one seed' in html


def test_command_line(rows, tmp_path, capsys):
    write_rows(tmp_path / 'a.jsonl', rows)
    write_rows(tmp_path / 'b.jsonl', rows.assign(value=(rows.value - .1 - .001 * rows.seed.astype(float)).clip(0, 1)))
    words = [str(tmp_path / 'a.jsonl'), str(tmp_path / 'b.jsonl'), '--ignore', 'lam', '--out', str(tmp_path / 'page.html'), '--names', 'old', 'new']
    assert c.run(c.add_arguments(ArgumentParser()).parse_args(words)) == 0
    said = capsys.readouterr().out
    assert 'A: old, B: new. 30 measurements are in both: 30 clearly lower in B.' in said and (tmp_path / 'page.html').is_file()


def test_comparing_needs_no_torch():
    code = 'import sys, nrf_repro.report.comparison; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_measurements_compare_by_their_rows():
    class Measured: name, rows = 'net', frame([one(.5)])
    assert c.side(Measured()).name == 'net' and isinstance(c.compare(Measured(), Measured()), pd.DataFrame)


# --- in a browser ---

@pytest.fixture(scope='module')
def page_url(rows, tmp_path_factory):
    "Verdicts that changed, differences with and without an interval, measurements on one side alone."
    worse = rows.assign(value=(rows.value - .1 - .001 * rows.seed.astype(float)).clip(0, 1), source_hash='b')
    b = worse[~((worse.norm == 'gn') & (worse.metric == 'ligs'))]
    return c.render_compare(rows, b, tmp_path_factory.mktemp('compare') / 'page.html', claims=CLAIMS, names=('old', 'new')).as_uri()


@pytest.mark.parametrize('width', [1280, 390, 320])
def test_page_fits(opened, width): assert opened(width).evaluate('document.documentElement.scrollWidth') <= width


@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (1280, 'dark'), (390, 'light')])
def test_page_is_legible(opened, faint_of, width, scheme): assert not faint_of(opened(width, color_scheme=scheme))


@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (1280, 'dark'), (390, 'dark')])
def test_no_serious_accessibility_fault(faults_of, opened, width, scheme): assert not faults_of(opened(width, color_scheme=scheme))


# outcomes of single images, and the number of comparisons

def answers(skill, seeds, seed=0, n=500):
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(size=n)                       # the same for all networks
    return (hard + .3 * rng.normal(size=(seeds, n)) < skill).astype(float)

def rows_with(values, images='abc', start=0, **more):
    return [one(v.mean(), start + s, **outcome_fields(v, images) | more) for s, v in enumerate(values)]

def test_outcomes_of_the_same_images_give_a_shorter_interval_for_one_seed():
    a, b = answers(.5, 1), answers(.6, 1, 1)
    line, blind = only_line(rows_with(a), rows_with(b)), only_line(rows_with(a), rows_with(b, images='other'))
    assert line.how == 'one seed, the same 500 images' and blind.how == 'Newcombe, one seed'
    assert line.high - line.low < .7 * (blind.high - blind.low) and math.isclose(line.difference, b.mean() - a.mean(), abs_tol=1e-9)

def test_seeds_and_images_are_both_samples():
    a, b = answers(.5, 3), answers(.6, 3, 1)
    line = only_line(rows_with(a), rows_with(b))
    low, high = two_way([b - a])[1:3]
    assert line.how == 'paired, 3 seeds and 500 images' and math.isclose(line.low, low) and math.isclose(line.high, high)

def test_other_seeds_on_the_same_images_share_the_images():
    a, b = answers(.5, 3), answers(.6, 4, 1)
    line = only_line(rows_with(a), rows_with(b, start=10))
    assert line.how == '3 and 4 seeds, the same 500 images' and math.isclose(line.difference, b.mean() - a.mean(), abs_tol=1e-9)
    assert line.low < line.difference < line.high

def test_ligs_without_a_value_leaves_the_image_out():
    a, b = np.linspace(-.5, .9, 50), np.linspace(-.4, .95, 50)
    b[7] = math.nan
    line = only_line(rows_with([a], metric='ligs', sigma=.1), [one(float(np.nanmean(b)), metric='ligs', sigma=.1) | outcome_fields(b, 'abc')])
    d = np.delete(b - a, 7)
    assert math.isclose((line.low + line.high) / 2, d.mean(), abs_tol=1e-3)

def test_holm_as_in_a_worked_example():   # by hand: 4, 3, 2 and 1 times, never falling
    np.testing.assert_allclose(differences.holm([.01, .04, math.nan, .03, .005]), [.03, .06, math.nan, .06, .02])

def test_many_comparisons_without_a_difference_are_rarely_called_clear():
    "Under the hypothesis that nothing differs, the chance that any of 20 is called clear stays near 5 %; without the correction it is 64 %."
    rng, clear, plain = np.random.default_rng(5), 0, 0
    for _ in range(150):
        p = rng.uniform(size=20)
        clear, plain = clear + (differences.holm(p) < .05).any(), plain + (p < .05).any()
    assert clear / 150 < .12 and plain / 150 > .5

def test_the_summary_states_the_correction():
    a = [one(.5, s, metric='robust_accuracy', attack=x, eps=1., steps=1, step_size=1., reading='any') for x in 'pqr' for s in range(3)]
    b = [r | dict(value=r['value'] + .1 + .001 * i) for i, r in enumerate(a)]
    assert 'Holm for 3 comparisons' in c.conclusion(c.compare(frame(a), frame(b)))


# the axes

def test_each_unit_has_an_axis_and_a_count_has_none():
    a = [one(.5, s) for s in range(3)] + [one(.7, s, metric='ligs', sigma=.1) for s in range(3)] + [one(3000. + s, s, metric='steps_per_second') for s in range(3)]
    b = [r | dict(value=r['value'] * 1.1 + .001 * r['seed']) for r in a]
    lines = c.compare(frame(a), frame(b))
    reach = c._reach(lines)
    assert set(reach) == {'points', 'LIGS'} and max(reach.values()) <= .2
    assert {t['unit'] for g in c._grouped(lines) for t in g['lines']} == {'points', 'LIGS', None}


def test_a_line_names_the_seeds_that_were_used_and_its_eps():
    robust = dict(metric='robust_accuracy', attack='pgd_l2', eps=1., reading='any', step_size=.25)
    line = only_line([one(.5, 0, steps=10, **robust), one(.6, 1, steps=10, **robust), one(.1, 2, steps=10, **robust)],
                     [one(.51, 0, steps=20, **robust), one(.63, 1, steps=20, **robust)])
    assert line.seeds_a == line.seeds_b == (0, 1) and line.settings.startswith('steps') and c._note(line) == 'eps 1'


def test_images_without_a_value_are_left_out_of_a_difference():
    def row(values): return one(float(np.nanmean(values)), metric='ligs', sigma=.1, **outcome_fields(np.array(values), 'h') | dict(images='h'))
    assert only_line([row([.2, .4, .9, np.nan])], [row([.3, .5, np.nan, np.nan])]).how == 'one seed, the same 2 images'
    assert math.isnan(only_line([row([.2, .4, np.nan, np.nan])], [row([np.nan, np.nan, .3, .5])]).low)


def test_a_balanced_accuracy_is_no_share_of_images():
    assert math.isnan(only_line([one(.95, metric='balanced_accuracy')], [one(.9, metric='balanced_accuracy')]).low)


def test_what_differs_besides_numbers_is_named_and_missing_values_agree():
    a, b = frame([one(.5)]), frame([one(.5)])
    assert set(c.origins(c.side(a.assign(precision='tf32', images='x')), c.side(b.assign(precision='float32', images='y')))['What differs']) >= {'precision of convolutions', 'test images (hash)'}
    lost = pd.concat([frame([one(.5, norm=None)]), a]), pd.concat([frame([one(.5, norm=None)]), b.assign(norm='none')])
    assert c.nothing_in_common(*map(c.side, lost)) == ''


def test_rows_without_a_column_are_an_error():
    with pytest.raises(ValueError, match='the rows lack the columns images'): c.side(frame([one(.5)]).drop(columns='images'))
