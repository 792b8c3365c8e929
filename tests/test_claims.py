"""Verdicts on rows for which the right verdict is known."""
import dataclasses
import datetime
import random

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from scipy import stats

from nrf_repro.results import claims as C
from nrf_repro.results import paired as E
from nrf_repro.results import rows as R
from nrf_repro.results import rules as U
from nrf_repro.results.intervals import t_interval, two_way
from nrf_repro.results.outcomes import outcome_fields, unpack_outcomes

CLAIMS, PAPER = U.load_claims(), R.paper_rows()
ATTACKS = ('pgd_l2', 'pgd_linf', 'cw_l2', 'cw_linf')
BASE = dict(experiment='final', dataset='digits', arch='vgg11', regime='standard', n=400, profile='test')


def clean(value=.97, **fields): return R.make_row(**BASE | dict(metric='clean_accuracy', value=value) | fields)
def robust(value, **fields):
    return R.make_row(**BASE | dict(metric='robust_accuracy', attack='pgd_l2', eps=1., reading='any', value=value) | fields)
def ligs(value, **fields): return R.make_row(**BASE | dict(metric='ligs', sigma=.05, value=value) | fields)


def matrix(make, treated, control, norm='bn', other='none', **fields):
    "One row per seed and side, and a good clean accuracy for each network."
    return [row for name, values in ((norm, treated), (other, control)) for seed, value in enumerate(values)
            for row in (make(value, norm=name, seed=seed, **fields), *([] if make is clean else [
                clean(norm=name, seed=seed, **{k: v for k, v in fields.items() if k in ('arch', 'dataset', 'regime', 'profile', 'epoch')})]))]


def unique(rows): # clean rows of a network come along with each of its measurements
    return list({tuple(r[k] for k in R.IDENTITY): r for r in rows}.values())


def decide(id, rows): return C.decide({id: CLAIMS[id]}, R.frame(unique(rows)), PAPER).iloc[0]


def c2(treated=(.60, .58, .62), control=(.80, .81, .79), attacks=ATTACKS, **fields):
    return [r for attack in attacks for r in matrix(robust, treated, control, attack=attack, **fields)]


def measured(**fields): return R.make_row(**BASE | dict(metric='clean_accuracy', norm='bn', seed=0, value=.5) | fields)


# pairs

def test_pairs_match_everything_but_the_field():
    rows = R.frame([measured(norm=m, seed=s, epoch=e, value=v) for m, s, e, v in (
        ('bn', 0, 1, .5), ('none', 0, 1, .6), ('bn', 0, 2, .7), ('none', 1, 1, .9), ('in', 0, 2, .1))])
    got = E.pairs(rows, 'norm', 'bn', 'none')
    assert got[['seed', 'epoch', 'value', 'value_control']].values.tolist() == [[0, 1, .5, .6]]
    assert E.pairs(rows, 'norm', 'bn', 'gn').empty


def test_first_and_last_are_of_each_run():
    rows = R.frame([measured(seed=s, epoch=e, value=v) for s, e, v in ((0, 3, .9), (0, 1, .2), (1, 2, .5), (1, 7, .4), (2, 1, .3))])
    assert E.pairs(rows, 'epoch', 'last', 'first').difference.tolist() == pytest.approx([.7, -.1])  # seed 2 has one epoch


def test_each_cell_has_its_own_seeds():
    rows = R.frame([measured(norm=m, arch=a, seed=s, value=v) for a, s, bn, none in (
        ('vgg11', 0, .9, .8), ('vgg11', 1, .8, .8), ('vgg11', 2, .7, .2), ('vgg16', 0, .6, .7), ('vgg16', 1, .8, .6))
        for m, v in (('bn', bn), ('none', none))])
    got = E.paired_effect(rows)         # vgg11: .1 0 .5, mean .2; vgg16: -.1 .2, mean .05
    assert got.mean == pytest.approx(.125) and got.seeds == (3, 2)
    terms = .25 * np.var([.1, 0, .5], ddof=1) / 3, .25 * .045 / 2
    df = sum(terms)**2 / (terms[0]**2 / 2 + terms[1]**2)
    assert got.high - got.mean == pytest.approx(stats.t.ppf(.975, df) * sum(terms)**.5)


def test_select_lists_and_nulls():
    rows = R.frame([measured(epoch=e, seed=s) for e in (None, 1, 2) for s in (0, 1)])
    assert len(E.select(rows, dict(epoch=1))) == 2 and len(E.select(rows, dict(epoch=[None, 1], seed=0))) == 2
    assert len(E.select(rows, dict(epoch=None))) == 2 and len(E.select(rows, {})) == 6


def test_rows_that_are_given_twice_are_an_error():
    rows = R.frame(unique(c2()))
    with pytest.raises(ValueError, match='two values for one seed: experiment final, metric robust_accuracy'):
        C.decide({'C2': CLAIMS['C2']}, pd.concat([rows, rows]), PAPER)
    with pytest.raises(ValueError, match='two values for one seed'): E.effects(CLAIMS['C2'], pd.concat([rows, rows]))
    with pytest.raises(ValueError, match='lack the columns norm'): E.effects(CLAIMS['C2'], rows.drop(columns='norm'))


def test_two_last_epochs_of_one_network_are_an_error():
    more = [r | dict(epoch=4) for r in c6((.96, .97, .95)) if r['regime'] == 'standard']
    with pytest.raises(ValueError, match='one last epoch of each network'): decide('C6', c6((.96, .97, .95)) + more)


def test_metrics_are_not_averaged():
    with pytest.raises(ValueError, match='clean_accuracy, robust_accuracy. Select one'): E.paired_effect(R.frame(unique(c2())))


# C1: one comparison

# differences .03 .05 .04: mean .04, sd .01, half width 4.302653 * .01 / sqrt(3) = .02484
@pytest.mark.parametrize('bn, none, verdict, effect', [
    ((.93, .95, .94), (.90, .90, .90), 'reproduced', .04),
    ((.91, .93, .92), (.90, .90, .90), 'inconclusive', .02),        # -.005 to .045 crosses .01
    ((.902, .904, .903), (.90, .90, .90), 'not reproduced', .003),  # .0005 to .0055: sure, but smaller than .01
    ((.90, .90, .90), (.93, .95, .94), 'not reproduced', -.04)])
def test_c1(bn, none, verdict, effect):
    got = decide('C1', matrix(clean, bn, none))
    assert (got.verdict, got.n_seeds, got.archs) == (verdict, 3, 'vgg11') and got.effect == pytest.approx(effect)
    half = 4.302653 * np.std(np.subtract(bn, none), ddof=1) / 3**.5
    assert (got.low, got.high) == pytest.approx((effect - half, effect + half), abs=1e-6)


def test_a_ceiling_is_named_and_leaves_out_no_cell():
    full = (.996, .995, .9965), (.99, .9875, .991)
    got = decide('C1', matrix(clean, *full))
    assert got.verdict == 'not reproduced' and 'at most 1.0 points above the control is possible: a ceiling works against the claim' in got.reason
    both = decide('C1', matrix(clean, *full, arch='vgg16') + matrix(clean, (.93, .95, .94), (.90, .90, .90)))
    assert both.archs == 'vgg11, vgg16' and both.effect == pytest.approx((.04 + np.mean(full[0]) - np.mean(full[1])) / 2)


@pytest.mark.parametrize('none', [(.89, .891, .892, .893, .894), (.85, .87, .89, .905, .91), (.15, .89, .98, .97, .98)])
@pytest.mark.parametrize('id, metric', [('C1', 'clean_accuracy'), ('C10', 'balanced_accuracy')])
def test_no_network_is_left_out_by_the_accuracy_that_is_compared(id, metric, none):
    fields = dict(experiment='medical', dataset='pneumoniamnist', batch_size=64) if id == 'C10' else {}
    limit = .65 if id == 'C10' else .90
    rows = [R.make_row(**BASE | dict(metric=metric, norm=n, seed=s, value=v) | fields) for n, values in (('none', none), ('bn', 5 * [.98])) for s, v in enumerate(values)]
    got = C.decide_part(CLAIMS[id], CLAIMS[id].parts[0], R.frame(rows), PAPER)
    assert got['seeds'] == '5 seeds' and got['effect'] == pytest.approx(.98 - np.mean(none)) and 'Not screened' in got['reason']
    low = [s for s, v in enumerate(none) if v < limit]
    assert ('a control that fails to train favours the claim' in got['reason']) == bool(low)
    assert all(f'seed {s} (' in got['reason'] for s in low[:4]) and 'Left out' not in got['reason']


def test_room_does_not_depend_on_the_difference():
    # the same two cells with the sides exchanged are left out alike: the rule cannot select by the sign of the difference
    part = CLAIMS['C2'].parts[0]
    for one, other in (((.001, .002, .003), (.04, .03, .035)), ((.001, .002, .003), (.06, .07, .05)), ((.02, .03, .01), (.03, .03, .04))):
        found = [E.effects(CLAIMS['C2'], R.frame(unique(c2(a, b, attacks=['pgd_l2'])))).room.tolist() for a, b in ((one, other), (other, one))]
        assert found[0] == found[1] == [np.mean([*one, *other]) >= part.room[0]]


def test_floor():
    got = decide('C2', c2((.001, .002, .003), (.04, .03, .035)))
    assert got.verdict == 'inconclusive' and 'floor' in got.reason


# C2: every part must hold

def test_c2_holds_and_names_the_weakest():
    got = decide('C2', c2(attacks=ATTACKS[:3]) + c2((.71, .70, .69), (.80, .79, .78), attacks=['cw_linf'])
                 + [robust(.1, norm='in', seed=0)])
    assert got.verdict == 'inconclusive' and 'without spread there is no t interval' in got.reason  # the same difference on each seed: no spread
    got = decide('C2', c2(attacks=ATTACKS[:3]) + c2((.72, .70, .69), (.80, .79, .78), attacks=['cw_linf']))
    assert got.verdict == 'reproduced' and got.part == 'cw_linf' and got.effect == pytest.approx(-.26 / 3)
    assert got.reason.startswith('All 4 parts hold; the weakest, cw_linf')


@pytest.mark.parametrize('last, verdict', [
    ((.80, .81, .80), 'not reproduced'),   # 0, 0, +.01
    ((.60, .81, .70), 'inconclusive'),
    (None, 'not run')])
def test_one_part_decides(last, verdict):
    rows = c2(attacks=ATTACKS[:3]) + (c2(last, attacks=['cw_linf']) if last else [])
    got = decide('C2', rows)
    assert got.verdict == verdict and got.reason.startswith(f'{verdict}: cw_linf; reproduced: pgd_l2, pgd_linf, cw_l2')


def test_a_refuted_part_decides_before_a_missing_one():
    assert decide('C2', c2((.80, .81, .80), attacks=['pgd_l2'])).verdict == 'not reproduced'


def test_exchanging_the_norms_reverses_the_verdict():
    turned = [r | dict(norm={'bn': 'none', 'none': 'bn'}[r['norm']]) for r in c2()]
    assert decide('C2', c2()).verdict == 'reproduced' and decide('C2', turned).verdict == 'not reproduced'


def test_the_order_of_rows_does_not_matter():
    rows = unique(c2() + c2((.7, .6, .65), (.8, .8, .83), arch='resnet18'))
    first = C.decide(CLAIMS, R.frame(rows), PAPER)
    random.Random(0).shuffle(rows)
    assert C.decide(CLAIMS, R.frame(rows), PAPER).round(12).equals(first.round(12))


def test_architectures_are_combined_with_equal_weights():
    # vgg11: -.20 -.23 -.17, resnet18: -.04 -.09 -.05: the mean of -.20 and -.06, with Welch's interval
    rows = c2() + c2((.70, .66, .71), (.74, .75, .76), arch='resnet18')
    got = decide('C2', rows)
    assert got.verdict == 'reproduced' and got.archs == 'resnet18, vgg11' and got.effect == pytest.approx(-.13)
    welch = stats.ttest_ind([-.20, -.23, -.17], [.04, .09, .05], equal_var=False).confidence_interval()
    assert (got.low, got.high) == pytest.approx((welch.low / 2, welch.high / 2))


def test_one_architecture_does_not_decide_for_another():
    rows = c2((.30, .31, .29), (.80, .81, .80)) + c2((.81, .80, .80), (.80, .79, .80), arch='resnet18')
    got = decide('C2', rows)
    assert got.verdict == 'inconclusive' and 'the architectures disagree, against it: resnet18 +0.7 points' in got.reason
    looser = dataclasses.replace(CLAIMS['C2'], agree=.5)
    assert C.decide({'C2': looser}, R.frame(unique(rows)), PAPER).verdict[0] == 'reproduced'


def test_rows_that_are_not_asked_for_do_not_count():
    noise = [robust(.99, norm=m, seed=s, attack='pgd_l2', **more) for m in ('bn', 'none') for s in range(3) for more in (
        dict(reading='last'), dict(experiment='curve'), dict(regime='adversarial'))]
    a, b = decide('C2', c2()), decide('C2', c2() + noise)
    assert a.reason == b.reason and a.effect == b.effect


# seeds

@pytest.mark.parametrize('seeds, words', [(1, '1 seed, too few'), (2, 'interval')])
def test_few_seeds(seeds, words):
    got = decide('C2', c2((.60, .58)[:seeds], (.80, .81)[:seeds]))
    assert got.verdict == 'inconclusive' and words in got.reason and got.n_seeds == seeds


def test_without_outcomes_the_reason_says_so():
    for values in ((.60, .58, .62), (.60, .58, .62, .61, .59)):
        got = decide('C2', c2(values, (.80, .81, .79, .80, .82)[:len(values)]))
        assert got.interval == 't over seeds' and f't over {len(values)} seeds; no outcomes of single images are stored' in got.reason


def effects_of(spec): # (arch, norm, seed, robust accuracy) -> rows of C2
    return unique(row for arch, norm, seed, value in spec for attack in ATTACKS for row in (
        robust(value, arch=arch, norm=norm, seed=seed, attack=attack), clean(.98, arch=arch, norm=norm, seed=seed)))


EIGHT = [('vgg11', n, s, (.6 if n == 'none' else .45) + .01 * ((s * 7) % 5 - 2) * (1 if n == 'bn' else -1)) for n in ('none', 'bn') for s in range(8)]


@pytest.mark.parametrize('seeds, words', [((0, 1), '8 and 2 seeds'), ((8, 9, 10), '8 and 3 seeds'), ((0,), '8 and 1 seeds')])
def test_an_architecture_with_the_same_effect_does_not_weaken_the_verdict(seeds, words):
    more = [('resnet18', n, s, (.6 if n == 'none' else .44) + .01 * (s - seeds[0]) * (n == 'bn')) for n in ('none', 'bn') for s in seeds]
    assert decide('C2', effects_of(EIGHT)).verdict == 'reproduced'
    got = decide('C2', effects_of(EIGHT + more))
    assert got.verdict == 'reproduced' and got.seeds == words and words in got.reason and got.archs == 'resnet18, vgg11'
    assert got.effect == pytest.approx((-.15 - .16 + .005 * (len(seeds) - 1)) / 2) and got.n_seeds == len(seeds)


def test_two_opposed_architectures_are_inconclusive_on_both_sides():
    opposed = [('vgg11', n, s, (.6 if n == 'none' else .3) + .005 * s) for n in ('none', 'bn') for s in range(5)]
    opposed += [('resnet18', n, s, (.5 if n == 'none' else .8) - .004 * s * (n == 'bn')) for n in ('none', 'bn') for s in range(5)]
    got = decide('C2', effects_of(opposed))
    assert got.verdict == 'inconclusive' and 'the architectures disagree, against it: vgg11 -30.0 points' in got.reason
    assert decide('C2', effects_of([(a, n, s, v + .3 * (a == 'vgg11' and n == 'bn')) for a, n, s, v in opposed])).verdict == 'not reproduced'


# outcomes of single images

def stored(rows, n=400, images='digits', rng=None, shared=True, missing=0.):
    "The rows with outcomes of n images that have about their values. `shared`: the same images are hard for all networks."
    rng, kept = rng or np.random.default_rng(0), []
    for r in rows:
        right = (np.arange(n) < round(n * r['value'])).astype(float)
        right = right if shared else rng.permutation(right)
        values = np.where(rng.random(n) < missing, np.nan, right)
        kept.append(r | dict(value=float(np.nanmean(values))) | outcome_fields(values, images))
    return R.frame(kept)


def bare(rows): return rows.assign(outcomes=None, images=None)


def decide_rows(id, rows): return C.decide({id: CLAIMS[id]}, rows, PAPER).iloc[0]


def test_with_outcomes_the_interval_counts_seeds_and_images():
    rows = stored(unique(c2()), shared=False)
    got, plain = decide_rows('C2', rows), decide_rows('C2', bare(rows))
    assert got.interval == 'seeds and images' and 'over 3 seeds and 400 images' in got.reason and 'no outcomes' not in got.reason
    assert got.effect == pytest.approx(plain.effect) and got.low != plain.low
    part = C.decide_parts({'C2': CLAIMS['C2']}, rows, PAPER).iloc[0]
    def of(norm, seed):
        row = rows[(rows.metric == 'robust_accuracy') & (rows.attack == 'pgd_l2') & (rows.norm == norm) & (rows.seed == seed)].iloc[0]
        return unpack_outcomes(row.outcomes, row.n)
    D = [of('bn', s) - of('none', s) for s in range(3)]
    assert (part.low, part.high) == pytest.approx(two_way([D])[1:3], abs=1e-12)
    cells = E.effects(CLAIMS['C2'], rows)
    assert set(cells.interval) == {'seeds and images'} and cells.low.iloc[0] == pytest.approx(part.low)


@pytest.mark.parametrize('seeds', [2, 4, 5])
def test_seeds_that_agree_exactly_have_an_interval_over_images(seeds):
    spec = [('vgg11', n, s, 1. if n == 'none' else .2) for n in ('none', 'bn') for s in range(seeds)]
    rows = stored(effects_of(spec))
    got = decide_rows('C2', rows)
    half = stats.t.ppf(.975, 399) * (.16 * 400 / 399 / 400)**.5
    assert got.verdict == 'reproduced' and (got.low, got.high) == pytest.approx((-.8 - half, -.8 + half), abs=1e-6)
    assert decide_rows('C2', bare(rows)).interval == 'no spread'
    one_image = effects_of([(a, n, s, v + (n == 'bn' and s == 0) / 400) for a, n, s, v in spec])
    assert decide_rows('C2', stored(one_image)).verdict == 'reproduced'


def test_two_seeds_that_agree_by_chance_are_inconclusive():
    spec = [('vgg11', 'none', 0, .6), ('vgg11', 'bn', 0, .5525), ('vgg11', 'none', 1, .6), ('vgg11', 'bn', 1, .55)]
    rows = stored(effects_of(spec), shared=False)
    assert decide_rows('C2', bare(rows)).verdict == 'reproduced'      # t over two seeds that differ by one image
    assert decide_rows('C2', rows).verdict == 'inconclusive'


def test_more_seeds_of_the_same_effect_never_weaken_a_verdict():
    rng = np.random.default_rng(3)
    values = {(a, n): np.clip(.7 - .2 * (n == 'bn') + rng.normal(0, .02, 10), 0, 1) for a in ('vgg11', 'resnet18') for n in ('none', 'bn')}
    rank = {v: i for i, v in enumerate(('not reproduced', 'inconclusive', 'reproduced'))}
    for given in (False, True):
        last = 0
        for vgg, res in ((3, 0), (5, 0), (8, 0), (8, 3), (8, 5), (10, 10)):
            spec = [(a, n, s, values[a, n][s]) for (a, n) in values for s in range(dict(vgg11=vgg, resnet18=res)[a])]
            rows = stored(effects_of(spec))
            verdict = decide_rows('C2', rows if given else bare(rows)).verdict
            assert rank[verdict] >= last
            last = rank[verdict]
        assert verdict == 'reproduced'


def test_other_images_or_a_missing_outcome_mean_t():
    rows = stored(unique(c2()))
    lacking = rows.assign(outcomes=[None if i == rows.index[rows.metric == 'robust_accuracy'][0] else o for i, o in rows.outcomes.items()])
    assert 't over seeds' in set(C.decide_parts({'C2': CLAIMS['C2']}, lacking, PAPER).interval)
    assert set(C.decide_parts({'C2': CLAIMS['C2']}, bare(rows), PAPER).interval) == {'t over seeds'}
    by_norm = rows.assign(images=rows.norm)
    assert set(C.decide_parts({'C2': CLAIMS['C2']}, by_norm, PAPER).interval) == {'t over seeds'}
    got = decide_rows('C2', rows.assign(images=rows.seed.astype(str)))
    assert got.interval == 't over seeds' and 'the networks have different test images' in got.reason


def test_images_without_a_value_are_left_out_and_counted():
    rows = stored(unique(matrix(ligs, (.5, .52, .48), (.8, .81, .8))), missing=.01)
    got = decide_rows('C5', rows)
    of_ligs = rows[rows.metric == 'ligs']
    gone = np.isnan([*map(unpack_outcomes, of_ligs.outcomes, of_ligs.n)]).any(0).sum()
    assert got.interval == 'seeds and images' and f'over 3 seeds and {400 - gone} images; {gone} images without a value left out' in got.reason and gone > 5


def test_too_few_images_with_a_value_mean_t():
    got = decide_rows('C5', stored(unique(matrix(ligs, (.5, .52, .48), (.8, .81, .8))), n=40, missing=.9))
    assert got.interval == 't over seeds' and 'fewer than two images have a value in each network' in got.reason


def test_a_threshold_is_compared_with_the_outcomes():
    values = (.96, .97, .95)
    rows = stored(unique(c6(values)))
    got = C.decide({'C6': U.as_first_written(CLAIMS['C6'])}, rows, PAPER).iloc[0]
    assert (got.verdict, got.interval) == ('reproduced', 'seeds and images') and got.effect == pytest.approx(.06)
    assert decide_rows('C6', rows).verdict == 'reproduced'


def test_transfer_is_averaged_within_a_seed():
    # one seed attacks the same targets with all networks: three seeds are three numbers, however many targets there are
    rows = [R.make_row(**BASE | dict(experiment='transfer', metric='transfer_success', norm=m, source='final', target=f'vgg16-{t}', seed=s,
                                     value=.3 + .2 * (m == 'none') + (m == 'none') * (.05 * s + .01 * k)))
            for m in ('none', 'bn') for s in range(3) for k, t in enumerate(('bn', 'in', 'ln'))]
    got = E.paired_effect(R.frame(rows), 'norm', 'none', 'bn')
    assert got.seeds == (3,) and got[:3] == pytest.approx(t_interval([.21, .26, .31])[:3])


# networks that are left out

def test_an_undertrained_network_is_left_out_and_named():
    rows = [r | dict(value=.62) if (r['metric'], r['norm'], r['seed']) == ('clean_accuracy', 'bn', 2) else r
            for r in c2((.60, .58, .95), (.80, .81, .79))]
    got = decide('C2', rows)
    assert got.n_seeds == 2 and got.effect == pytest.approx(-.215)
    assert 'digits vgg11 bn seed 2 (undertrained, 62.0 %)' in got.reason


def test_c8_does_not_leave_out_a_network_that_lost_its_accuracy():
    def row(metric, lam, seed, value, **more):
        return R.make_row(**BASE | dict(experiment='regularization', metric=metric, norm='bn', lam=lam, seed=seed, value=value) | more)
    rows = [row('clean_accuracy', lam, s, v) for lam, values in ((0., 5 * [.99]), (3., (.985, .982, .60, .55, .983))) for s, v in enumerate(values)]
    rows += [row('robust_accuracy', lam, s, .1 + .1 * lam + .01 * s * lam, attack='pgd_l2', eps=1., reading='any') for lam in (0., 3.) for s in range(5)]
    got = decide('C8', rows)
    assert got.verdict == 'inconclusive' and got.part == 'clean' and got.n_seeds == 5 and got.effect == pytest.approx(-.17)


def test_a_control_decides_no_claim():
    def fall(arch, last):
        return [R.make_row(**BASE | dict(experiment='history', arch=arch, norm='none', seed=s, epoch=e, value=v + .001 * s * (e > 1)) | more)
                for s in range(3) for e, v in ((1, .9), (4, last)) for more in (dict(metric='ligs', sigma=.05), dict(metric='clean_accuracy', value=.97))]
    plain, beside = R.frame(fall('vgg11', .7)), R.frame(fall('vgg11', .7) + fall('vgg11_nf', .99))
    alone, both = ({p.part: p for p in C.decide_parts({'C4': CLAIMS['C4']}, rows, PAPER).itertuples()}['LIGS (none)'] for rows in (plain, beside))
    assert alone.verdict == both.verdict == 'reproduced' and alone.effect == both.effect == pytest.approx(-.199) and both.archs == 'vgg11'


def test_an_interval_of_shares_ends_where_shares_do():
    part = next(p for p in CLAIMS['C7'].parts if p.name == 'conflicting (bn)')
    rows = [R.make_row(**BASE | dict(experiment='features', source='conflicting', metric='clean_accuracy', norm='bn', seed=s, label_route=route, value=v))
            for s, apart in enumerate((.70, .99, .95)) for route, v in (('rf', .995), ('nrf', .995 - apart))]
    got = C.decide_part(CLAIMS['C7'], part, R.frame(rows), PAPER)
    assert got['low'] == -1 and got['high'] == pytest.approx(-.88 + 4.302653 * np.std((.7, .99, .95), ddof=1) / 3**.5)


def test_the_reason_names_cells_that_show_the_effect_and_cells_without_room():
    got = decide('C2', c2() + c2((.74, .90, .70), (.80, .81, .79), arch='vgg16') + c2((.001, .002, .003), (.04, .03, .035), arch='resnet18'))
    assert '2 of 2 architectures agree, beyond it by itself: vgg11. No room: resnet18 (0.019). Cells are chosen by the mean of both sides' in got.reason


def test_constant_networks_are_not_robust_features():
    rows = matrix(ligs, (.6, .61, .59), (1., 1., 1.))
    assert decide('C5', rows).verdict == 'reproduced'
    dead = [r | dict(value=.1) if (r['metric'], r['norm']) == ('clean_accuracy', 'none') else r for r in rows]
    got = decide('C5', dead)
    assert got.verdict == 'inconclusive' and 'not learned, 10.0 %' in got.reason and np.isnan(got.effect)


def test_a_bad_network_does_not_replace_a_missing_one():
    bad = [r | dict(value=.3) if r['metric'] == 'clean_accuracy' else r for r in matrix(ligs, (.6, .61, .59), (.8, .8, .81))]
    assert decide('C5', bad).verdict == 'inconclusive'
    assert decide('C5', [r for r in bad if r['norm'] == 'bn']).verdict == 'not run'


def test_without_clean_accuracy_a_network_is_left_out():
    got = decide('C5', [r for r in matrix(ligs, (.6, .61, .59), (.8, .8, .81)) if r['metric'] == 'ligs'])
    assert got.verdict == 'inconclusive' and 'no clean accuracy' in got.reason


def test_the_limit_belongs_to_the_profile_first():
    rows = [r | dict(value=.65) if r['metric'] == 'clean_accuracy' else r for r in c2(dataset='cifar10')]
    assert decide('C2', rows).verdict == 'inconclusive'
    assert decide('C2', [r | dict(profile='cifar-small') for r in rows]).verdict == 'reproduced'


def test_a_data_set_without_a_limit_is_named_in_the_reason():
    assert 'No limit is stated for undertrained networks on my/images' in decide('C2', c2(dataset='my/images')).reason
    assert 'No limit' not in decide('C2', c2()).reason


def test_a_clean_accuracy_of_another_epoch_is_named():
    rows = [r | dict(epoch=None) if r['metric'] == 'clean_accuracy' else r for r in matrix(ligs, (.6, .61, .59), (.8, .8, .81), epoch=15)]
    got = decide('C5', rows)
    assert got.verdict == 'inconclusive' and 'no clean accuracy at this epoch' in got.reason


def test_cells_that_differ_in_eps_only_are_told_apart():
    got = decide('C2', c2() + c2((.40, .38, .42), eps=2.))
    assert '2 of 2 comparisons agree, beyond it by itself: eps 1, eps 2' in got.reason


# C3 to C6

def c3(gn=(.7, .7, .72)):
    return [r for norm, values in dict(zip(('in', 'ln', 'gn'), ((.6, .61, .6), (.65, .6, .6), gn))).items()
            for r in matrix(robust, values, (.80, .81, .79), norm=norm)]


def test_c3_needs_all_three_norms():
    assert decide('C3', c3()).verdict == 'reproduced'
    assert decide('C3', c3(gn=(.82, .81, .80))).reason.startswith('not reproduced: gn; reproduced: in, ln')
    assert decide('C3', [r for r in c3() if r['norm'] != 'ln']).verdict == 'not run'


def history(curve, accuracy, **fields): # per epoch
    return [row for norm in ('none', 'bn') for seed in range(3) for epoch, (v, a) in enumerate(zip(curve, accuracy), 1)
            for row in (ligs(v - .01 * seed * (epoch > 1), norm=norm, seed=seed, epoch=epoch, experiment='history', **fields),
                        clean(a, norm=norm, seed=seed, epoch=epoch, experiment='history', **fields))]


def reliance(end):
    return [R.make_row(**BASE | dict(experiment='testbed', metric='nrf_reliance', dataset='synthetic', norm=norm, seed=seed,
                                     epoch=epoch, value=(0 if epoch == 1 else end) + .01 * seed * (epoch > 1)))
            for norm in ('none', 'bn') for seed in range(3) for epoch in (1, 5)]


def test_c4_needs_the_testbed_to_be_decided():
    falling = history((1., .9, .7), (.5, .9, .97))
    got = decide('C4', falling)
    assert got.verdict == 'inconclusive' and 'inconclusive: testbed (none), testbed (bn)' in got.reason and 'reproduced: LIGS (none), LIGS (bn)' in got.reason
    assert decide('C4', falling + reliance(.4)).verdict == 'reproduced'
    assert decide('C4', falling + reliance(-.1)).verdict == 'not reproduced'
    assert decide('C4', history((.7, .8, .9), (.5, .9, .97)) + reliance(.4)).verdict == 'not reproduced'


def test_c4_starts_when_something_was_learned():
    # LIGS falls from 1 to .7 while the network learns anything at all, and stays there: that is no trend
    rows = history((1., .7, .7), (.1, .9, .97))
    cells = E.effects(CLAIMS['C4'], R.frame(rows))
    assert cells.control.tolist() == pytest.approx([.69, .69]) and cells.effect.tolist() == pytest.approx([0, 0])


def c6(values, standard=(.80, .81, .79)): # LIGS after adversarial training, for 8 epochs, and after standard training, for 15
    return [r for norm in ('none', 'bn') for regime, of, epoch in (('adversarial', values, 8), ('standard', standard, 15))
            for r in matrix(ligs, of, of, norm=norm, other=norm, regime=regime, epoch=epoch)]


def test_c6_is_one_sided():
    # mean .915, sd .008660, t(.95; 2) = 2.919986: lower end .9004; a two-sided interval would reach .8935
    values = (.92, .905, .92)
    rows = c6(values)
    got = decide('C6', rows)
    assert got.verdict == 'reproduced' and got.effect == pytest.approx(.015)
    assert got.low == pytest.approx(.015 - 2.919986 * np.std(values, ddof=1) / 3**.5, abs=1e-6)
    lower = [r | dict(value=r['value'] - .01) if r['metric'] == 'ligs' and r['norm'] == 'bn' else r for r in rows]
    assert decide('C6', lower).reason.startswith('inconclusive: bn; reproduced: none')
    assert decide('C6', [r for r in rows if r['regime'] == 'standard']).verdict == 'not run'


def test_c6_needs_a_gain_over_standard_training():
    # both ways of training exceed the threshold; the number of epochs differs and is no part of the pair
    rows = c6((.96, .97, .95), standard=(.95, .965, .935))
    first = C.decide({'C6': U.as_first_written(CLAIMS['C6'])}, R.frame(unique(rows)), PAPER).iloc[0]
    assert first.verdict == 'reproduced' and decide('C6', rows).verdict == 'inconclusive'
    parts = C.decide_parts({'C6': CLAIMS['C6']}, R.frame(unique(rows)), PAPER).set_index('part')
    assert parts.effect['against standard (bn)'] == pytest.approx(.01) and parts.n_seeds['against standard (none)'] == 3
    assert decide('C6', c6((.96, .97, .95), standard=(.96, .97, .95))).verdict == 'inconclusive'     # no spread
    assert decide('C6', c6((.96, .97, .95), standard=(.955, .965, .946))).verdict == 'not reproduced'


def test_the_verdicts_of_c6_under_both_rules_are_those_stated_in_the_file():
    found, claim = R.read_published(), CLAIMS['C6']
    verdict = lambda c, rows: C.decide({'C6': c}, rows, PAPER).verdict.item()
    both = {p: (verdict(U.as_first_written(claim), rows), verdict(claim, rows)) for p, rows in found.items()}
    stated = '; '.join(f'{p} {first}, {now}' for p, (first, now) in sorted(both.items()) if now != 'not run')
    assert f'#                      {stated}.' in (ROOT / 'reports/claims.yaml').read_text(encoding='utf-8')


# C7 to C10: rules that wait for their rows

def test_c7():
    base = dict(experiment='features', metric='clean_accuracy')
    table = {('d_rand', 'bn', None): .6, ('d_rand', 'none', None): .1, ('conflicting', 'bn', 'nrf'): .4, ('conflicting', 'bn', 'rf'): .2,
             ('conflicting', 'none', 'nrf'): .05, ('conflicting', 'none', 'rf'): .7}
    make = lambda table: [R.make_row(**BASE | base | dict(source=s, norm=m, label_route=r, seed=seed, value=v + j))
                          for (s, m, r), v in table.items() for seed, j in enumerate((.02, .01, .01) if r == 'rf' or (m, r) == ('none', None) else (0, .01, .02))]
    assert decide('C7', make(table)).verdict == 'reproduced'
    assert decide('C7', make(table | {('d_rand', 'none', None): .35})).verdict == 'not reproduced'
    assert decide('C7', make({k: v for k, v in table.items() if k[0] == 'd_rand'})).verdict == 'not run'


def test_c8_allows_a_small_loss():
    def rows(loss):
        sides = {0: ((.50, .52, .51), .97), 3: ((.75, .80, .77), .97 - loss)}
        return [row for lam, (values, acc) in sides.items() for seed, v in enumerate(values) for row in (
            robust(v, norm='bn', lam=lam, seed=seed, experiment='regularization'),
            clean(acc + .001 * seed * (lam > 0), norm='bn', lam=lam, seed=seed, experiment='regularization'))]
    assert decide('C8', rows(.01)).verdict == 'reproduced' and decide('C8', rows(.05)).verdict == 'not reproduced'


def test_c9():
    make = lambda none: [R.make_row(**BASE | dict(experiment='transfer', metric='transfer_success', norm=m, source=s, target='vgg16/bn',
                                                  seed=seed, value=v + .01 * seed * (m == 'none') * (s == 'final') + .02 * seed * (s == 'early')))
                         for m, s, v in (('none', 'final', none), ('bn', 'final', .2), ('none', 'early', .6), ('bn', 'early', .5))
                         for seed in range(3)]
    assert decide('C9', make(.4)).verdict == 'reproduced' and decide('C9', make(.1)).verdict == 'not reproduced'


def test_c10_uses_balanced_accuracy():
    def rows(gain, metric='balanced_accuracy'):
        return [R.make_row(**BASE | dict(experiment='medical', dataset='pneumoniamnist', norm=m, seed=s, batch_size=64) | more)
                for m in ('bn', 'none') for s in range(3) for more in (
                    dict(metric=metric, value=.85 + (gain + .002 * s) * (m == 'bn')),
                    dict(metric='robust_balanced_accuracy', attack='pgd_l2', eps=1., reading='any', value=.6 - (.2 + .01 * s) * (m == 'bn')))]
    assert decide('C10', rows(.05)).verdict == 'reproduced' and decide('C10', rows(-.05)).verdict == 'not reproduced'
    assert decide('C10', rows(.05, metric='clean_accuracy')).verdict == 'not run'


def test_without_rows_nothing_was_run():
    got = C.decide(CLAIMS, R.frame([]), PAPER)
    assert got.id.tolist() == [f'C{i}' for i in range(1, 11)] and set(got.verdict) == {'not run'} and got.reason.str.len().min() > 20
    with pytest.raises(ValueError, match='lack the columns'): C.decide(CLAIMS, R.frame([]).drop(columns=['norm', 'seed']), PAPER)


# the paper's side

def test_the_papers_effects_by_hand():
    got = C.decide_parts(CLAIMS, R.frame(unique(c2(dataset='svhn'))), PAPER).set_index(['id', 'part'])
    assert got.paper_effect['C1', 'clean_accuracy'] == pytest.approx((.85 + .67) / 200)
    assert got.paper_effect['C2', 'pgd_linf'] == pytest.approx((77.50 - 83.20 + 80.24 - 82.76) / 200)
    assert got.paper_effect['C3', 'gn'] == pytest.approx((56.37 - 63.91 + 59.50 - 62.24) / 200)
    assert got.paper_source['C3', 'gn'] == 'table 2, svhn' and np.isnan(got.paper_effect['C9', 'none against bn'])


def test_the_papers_effect_is_on_the_data_sets_that_are_compared():
    other = clean(dataset='cifar10', norm='bn', seed=0, experiment='history')
    got = decide('C2', c2(dataset='svhn') + [other])
    assert got.paper_source == 'table 1, svhn'


def test_the_paper_is_averaged_over_what_it_has():
    got = C.decide({'C1': CLAIMS['C1']}, R.frame(unique(c2())), PAPER).iloc[0]
    gains = (1.78, 1.86, 3.99, 4.94, .85, .67, 2.42, 1.81, 3.45)
    assert got.paper_effect == pytest.approx(np.mean(gains) / 100, abs=1e-9)


def test_effects_for_a_forest_plot():
    cells = E.effects(CLAIMS['C2'], R.frame(unique(c2() + c2((.70, .66, .71), (.74, .75, .76), arch='resnet18'))))
    assert list(cells) == E.EFFECT_COLUMNS and len(cells) == 8 and cells.part.nunique() == 4
    assert sorted(cells.effect.round(9).unique()) == [-.2, -.06] and set(cells.control.round(9)) == {.8, .75}
    assert E.effects(CLAIMS['C2'], R.frame([])).empty


# several scales, one headline

def scaled(**rows): # profile -> rows
    "The lines of `decide` at each profile, of C1, C2 and C4."
    claims = {id: CLAIMS[id] for id in ('C1', 'C2', 'C4')}
    return pd.concat([C.decide(claims, R.frame(unique(r | dict(profile=p.replace('_', '-')) for r in own)), PAPER).assign(profile=p.replace('_', '-'))
                      for p, own in rows.items()])


def test_the_headline_is_the_verdict_of_the_largest_scale():
    lower, higher = c2(), c2((.80, .81, .79), (.60, .58, .62))
    got = C.headline(scaled(cifar=lower, demo=higher), CLAIMS).set_index('id').loc['C2']
    assert (got.profile, got.verdict, got.effect) == ('cifar', 'reproduced', pytest.approx(-.2))
    got = C.headline(scaled(cifar=higher, cifar_small=lower, demo=lower), CLAIMS).set_index('id').loc['C2']
    assert (got.profile, got.verdict) == ('cifar', 'not reproduced') and got.effect > 0      # the larger scale, not the better verdict


def test_a_claim_was_run_where_all_of_its_parts_were():
    both = history((1., .9, .7), (.5, .9, .97)) + reliance(.4)
    decided = scaled(cifar=history((1., .9, .7), (.5, .9, .97)), demo=both)
    assert decided[decided.id == 'C4'].verdict.tolist() == ['inconclusive', 'reproduced']      # not 'not run', and yet it was not
    got = C.headline(decided, CLAIMS).set_index('id').loc['C4']
    assert (got.profile, got.verdict) == ('demo', 'reproduced')
    got = C.headline(scaled(cifar=c2(attacks=ATTACKS[:3]), demo=c2()), CLAIMS).set_index('id').loc['C2']
    assert got.profile == 'demo'


def test_a_claim_that_was_run_nowhere_says_so():
    got = C.headline(scaled(demo=c2(attacks=ATTACKS[:1]), cifar=[]), CLAIMS).set_index('id').loc['C2']
    assert (got.verdict, got.profile) == ('not run', '') and np.isnan(got.effect) and 'demo, cifar' in got.reason


def test_a_scale_without_a_place_is_named():
    with pytest.raises(ValueError, match="profile 'mine' has no place in the order of scales. Add it to `scales`"):
        C.headline(scaled(demo=c2(), mine=c2()), CLAIMS)


def test_the_order_of_scales_is_that_of_the_file():
    assert CLAIMS['C2'].scales == ('tiny', 'demo', 'cifar-small', 'cifar-cpu', 'cifar', 'paper')
    turned = {id: dataclasses.replace(claim, scales=claim.scales[::-1]) for id, claim in CLAIMS.items()}
    decided = scaled(cifar=c2(), demo=c2((.80, .81, .79), (.60, .58, .62)))
    assert C.headline(decided, turned).set_index('id').profile['C2'] == 'demo'


# the file

GOOD = dict(rules=dict(level=.95, min_seeds=2, agree=1, learned_by='clean_accuracy', undertrained={}, not_learned={}, scales=['demo', 'paper']),
            claims=[dict(id='X', title='t', statement='s', parts=[dict(metric='ligs', where=dict(experiment='final'), threshold=.5,
                                                                       direction='higher', smallest_effect=0)])])


def changed(**changes):
    text = yaml.safe_load(yaml.safe_dump(GOOD))
    claim = text['claims'][0]
    for key, value in changes.items(): {'r': text['rules'], 'c': claim, 'p': claim['parts'][0]}[key[0]][key[2:]] = value
    return text


@pytest.mark.parametrize('text, words', [
    (changed(p_smalest_effect=.1), "claims[0].parts[0]: unknown key 'smalest_effect'"),
    (changed(c_titel='t'), "claims[0]: unknown key 'titel'"),
    (changed(r_levle=.9), "rules: unknown key 'levle'"),
    (changed(r_level='high'), "rules.level: must be a number, got 'high'"),
    (changed(p_direction='up'), "unknown direction 'up'; known are higher, lower"),
    (changed(p_where=dict(nrom='bn')), 'no such row field: nrom'),
    (changed(p_where=dict(git_commit='abc')), 'no such row field: git_commit'),
    (changed(p_compare=dict(field='norm', treatment='bn', control='none')), 'either compare or threshold'),
    (changed(p_threshold=None, p_compare=dict(field='norm', treatment='bn')), 'compare needs field, treatment and control'),
    (changed(p_smallest_effect='2 %'), "smallest_effect: must be a number, got '2 %'"),
    (changed(c_parts=[]), 'parts: Tuple should have at least 1 item'),
    (changed(p_each=dict(attack='pgd_l2')), "each.attack: must be a list, got 'pgd_l2'"),
    (changed(p_each=dict(attack=[])), 'each.attack: Tuple should have at least 1 item'),
    (changed(p_threshold=None, p_compare=dict(field='norm', treatment='bn', control=['none', 'in'])), "the control is ['none', 'in']. Give one value"),
    (changed(p_threshold=None, p_compare=dict(field='norm', treatment=['in', 'bn'], control='bn')), 'the control is bn. Give one value, and not that'),
    (changed(p_smallest_effect=3), 'as fractions, not in per cent'), (changed(p_threshold=90), 'as fractions, not in per cent'),
    (changed(p_room=[1, .1]), 'Give the lower end first'), (changed(p_paper=dict(source='figure 3')), 'paper needs table or effect'),
    (changed(p_paper=dict(table='table 3')), "unknown table 'table 3'"), (changed(r_level=95), 'rules.level: must be less than 1, got 95'),
    (changed(r_agree=100), 'rules.agree: must be less than or equal to 1'), (changed(r_undertrained=dict(digits=90)), 'digits: must be less than or equal to 1'),
    (changed(c_controls=dict(added=datetime.date(2026, 1, 1), equal_accuracy=2)), 'equal_accuracy: must be less than or equal to 1'),
    (dict(rules=GOOD['rules']), "'claims' is missing"),
    (GOOD | dict(rules={k: v for k, v in GOOD['rules'].items() if k != 'agree'}), "rules: 'agree' is missing"),
    (GOOD | dict(rules={k: v for k, v in GOOD['rules'].items() if k != 'scales'}), "rules: 'scales' is missing"),
    (changed(r_scales=['demo', 'paper', 'demo']), 'a scale is given twice'),
    (changed(r_scales=[]), 'scales: Tuple should have at least 1 item'),
    (GOOD | dict(claims=GOOD['claims'] * 2), 'given twice'),
    (GOOD | dict(claims=['C1']), "claims[0]: must be keys and values, got 'C1'")])
def test_a_bad_claims_file_is_an_error_in_one_line(tmp_path, text, words):
    (tmp_path/'claims.yaml').write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError) as e: U.load_claims(tmp_path/'claims.yaml')
    assert words in str(e.value) and 'claims.yaml' in str(e.value) and '\n' not in str(e.value)


def test_other_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='claims.yaml: not there'): U.load_claims(tmp_path/'claims.yaml')
    (tmp_path/'claims.yaml').write_text('rules: {a: [}\n')
    with pytest.raises(ValueError, match='is not YAML'): U.load_claims(tmp_path/'claims.yaml')


def test_a_good_file_works(tmp_path):
    (tmp_path/'claims.yaml').write_text(yaml.safe_dump(GOOD))
    assert U.load_claims(tmp_path/'claims.yaml')['X'].parts[0].name == 'ligs'
