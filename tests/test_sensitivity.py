"""What a verdict hangs on, on rows whose answer is known: what is left out, what is asked, and what then changes."""
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from nrf_repro.report import sensitivity as S
from nrf_repro.report.forest import all_cells
from nrf_repro.report.readings import reading_cells
from nrf_repro.report.forest import probability_text
from nrf_repro.results.claims import decide
from nrf_repro.results.rules import load_claims
from nrf_repro.results.intervals import probability_below, t_interval
from nrf_repro.results.rows import frame, make_row, paper_rows
from made_up import made_up_rows
from nrf_repro.report.tables import differences, named, one_setting

CLAIMS, PAPER = load_claims(), paper_rows()
C2 = {'C2': CLAIMS['C2']}


def rows_of(**fields): return frame(made_up_rows(['none', 'bn'], **fields))


def shifted(rows, by, **where): # BN under attack
    hit = (rows.norm == 'bn') & rows.attack.notna()
    for field, value in where.items(): hit &= rows[field] == value
    return rows.assign(value=rows.value.mask(hit, rows.value + by))


def same(found): return found.set_index('variant').same.to_dict()


def test_the_seed_that_decides_is_named():
    found = S.sensitivity(C2, shifted(rows_of(), .2, seed=1))
    seeds = found[found.axis == 'seed']
    assert decide(C2, shifted(rows_of(), .2, seed=1), PAPER).verdict[0] == 'inconclusive'
    assert same(seeds) == {'without seed 0': True, 'without seed 1': False, 'without seed 2': True}
    assert seeds.set_index('variant').verdict['without seed 1'] == 'reproduced'


def test_the_attack_that_decides_is_named():
    rows = shifted(rows_of(), .25, attack='cw_linf')
    found = S.sensitivity(C2, rows)
    attacks = found[found.axis == 'attack'].set_index('variant')
    assert decide(C2, rows, PAPER).verdict[0] == 'not reproduced'
    assert attacks.verdict.to_dict() == {'PGD ℓ2': 'reproduced', 'PGD ℓ∞': 'reproduced', 'CW ℓ2': 'reproduced', 'CW ℓ∞': 'not reproduced'}
    assert attacks.same.to_dict() == {'PGD ℓ2': False, 'PGD ℓ∞': False, 'CW ℓ2': False, 'CW ℓ∞': True}


def test_networks_and_data_sets_alone():
    other = shifted(rows_of(arch='resnet18', width=.25), .3)
    far = rows_of(dataset='svhn', arch='vgg11')
    found = S.sensitivity(C2, pd.concat([rows_of(), other, far], ignore_index=True))
    assert set(found[found.axis == 'network'].variant) == {'VGG11 × 0.125', 'ResNet18 × 0.25'}
    assert found.set_index('variant').verdict['svhn'] == 'reproduced' and found.set_index('variant').verdict['digits'] == 'inconclusive'


def test_leaving_out_is_what_it_says():
    rows = rows_of()
    found = S.sensitivity(C2, rows).set_index('variant')
    for seed in range(3):
        alone = decide(C2, rows[rows.seed != seed], PAPER).iloc[0]
        assert found.effect[f'without seed {seed}'] == pytest.approx(alone.effect) and found.low[f'without seed {seed}'] == pytest.approx(alone.low)


def history(norms, arch='vgg11', ligs=(.9, .6)): # in the first epoch and in the last
    values = dict(clean_accuracy=(.5, .9), ligs=ligs)
    return [make_row(experiment='history', metric=m, dataset='digits', arch=arch, width=.125, regime='standard', norm=norm, seed=s, epoch=e, value=v + .002 * s * e,
                     sigma=.05, profile='made-up', n=9) for m, vs in values.items() for norm in norms for s in range(3) for e, v in zip((1, 8), vs)]


def reliance():
    return [make_row(experiment='testbed', metric='nrf_reliance', dataset='synthetic', arch='vgg11', width=.125, regime='standard', norm=norm, seed=s, epoch=e,
                     value=e / 10 + .01 * s * e, profile='made-up') for norm in ('none', 'bn') for s in range(3) for e in (1, 8)]


def test_parts_with_one_value_keep_their_rows():
    claim = CLAIMS['C4']
    rows = frame([*rows_of().to_dict('records'), *history(['none', 'bn']), *reliance()])
    evidence = S._evidence_of(claim, rows)
    assert all(S._narrowed(e, ['dataset'], ('digits',), alone=True) is e for e in evidence)   # no part of C4 sees two data sets: nothing to leave out
    assert set(S.sensitivity({'C4': claim}, rows).axis) == {'seed'}


def test_a_control_is_no_variant_as_it_decides_nothing():
    rows = frame([*rows_of().to_dict('records'), *history(['none', 'bn'], ligs=(.6, .9)), *history(['none'], 'vgg11_nf'), *reliance()])
    assert set(S.sensitivity({'C4': CLAIMS['C4']}, rows).axis) == {'seed'}


def test_without_anything_to_leave_out():
    one = rows_of(seeds=[0])
    found = S.sensitivity({k: CLAIMS[k] for k in ('C1', 'C5')}, one)
    assert found.empty and 'nothing to leave out' in S.reading(found)[0]
    assert S.sensitivity(CLAIMS, frame([])).empty
    assert S.sensitivity_table(found, CLAIMS, decide(CLAIMS, one, PAPER)).empty


def test_the_order_of_rows_does_not_matter_and_they_stay_as_they_are():
    rows = pd.concat([rows_of(), rows_of(arch='resnet18')], ignore_index=True)
    before = rows.copy()
    few = {k: CLAIMS[k] for k in ('C1', 'C5')}
    first, again = (S.sensitivity(few, r) for r in (rows, rows.sample(frac=1, random_state=0)))
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(rows, before)


def test_the_hardest_attack_has_its_own_question():
    def look(norm, value, seed, metric='robust_accuracy', **more):
        return make_row(**dict(experiment='adequacy', metric=metric, dataset='digits', arch='vgg11', width=.125, regime='standard', epoch=8, norm=norm, seed=seed,
                               value=value, n=40, profile='made-up') | more)
    extra = [r for seed in range(3) for norm, value in dict(none=.3, bn=.3).items() for r in (
        look(norm, .98, seed, 'clean_accuracy'), look(norm, value + .01 * seed * (norm == 'bn'), seed, source='strongest', attack='strongest_l2', eps=1., reading='any'))]
    found = S.sensitivity(C2, frame([*rows_of().to_dict('records'), *extra])).set_index('variant')
    assert found.verdict['all together, ℓ2'] == 'not reproduced' and found.effect['all together, ℓ2'] == pytest.approx(.01)
    poor = [r | dict(value=.5) if r['metric'] == 'clean_accuracy' else r for r in extra]     # undertrained on those images: nothing to decide
    found = S.sensitivity(C2, frame([*rows_of().to_dict('records'), *poor])).set_index('variant')
    assert found.verdict['all together, ℓ2'] == 'inconclusive' and math.isnan(found.effect['all together, ℓ2'])


def test_text():
    part = pd.DataFrame(dict(axis='seed', variant=['without seed 0', 'without seed 1'], verdict=['reproduced', 'inconclusive'], part='p', effect=[-.2, -.1], same=[True, False]))
    assert S.axis_text(part, 'robust_accuracy', 'p', ['p']) == 'same in 1 of 2; inconclusive: seed 1 (effect −20.0 to −10.0)'
    assert S.axis_text(part, 'robust_accuracy', 'another part', ['another part']) == 'same in 1 of 2; inconclusive: seed 1'
    attacks = part.assign(axis='attack', part=['p', 'cost'])     # effects of another metric are no part of the range
    assert S.axis_text(attacks, 'robust_accuracy', 'p', ['p', 'p2']) == 'same in 1 of 2; inconclusive: seed 1 (effect −20.0)'
    assert S.axis_text(part.iloc[:0], 'robust_accuracy', 'p', ['p']) == ''


def test_probabilities_by_hand():
    values = [-.03, -.01, -.02]                       # mean -.02, standard error .01 / sqrt(3)
    assert probability_below(values) == pytest.approx(scipy.stats.t.cdf(.02 * 3**.5 / .01, 2))
    assert probability_below([-v for v in values]) == pytest.approx(1 - probability_below(values))
    assert probability_below(values, t_interval(values).high) == pytest.approx(.975)
    assert all(math.isnan(probability_below(v)) for v in ([], [.1], [.1, .1]))
    d = differences(one_setting(named(rows_of())), 'bn').set_index('column')
    assert d.p_lower.pgd_l2 == pytest.approx(probability_below(np.array([-.008, 0, .008]) - .24))


@pytest.mark.parametrize('p, text', [(.99951, '> .999'), (.9994, '.999'), (.0004, '< .001'), (.05, '.050'), (math.nan, '–')])
def test_probability_text(p, text): assert probability_text(p) == text


def test_cells_count_norms_apart():
    rows = frame(made_up_rows(['none', 'bn', 'gn']))
    rows = rows.assign(value=rows.value + .004 * rows.seed.astype(float) * (rows.norm == 'gn'))   # some spread
    lines = list(reading_cells(all_cells(rows, PAPER)))
    assert lines[1:] == ['Probability above .95 that BN is less robust than no norm: in 4 of 4 cells; that it is more robust: in 0.',
                     'Probability above .95 that GN is less robust than no norm: in 4 of 4 cells; that it is more robust: in 0.']
