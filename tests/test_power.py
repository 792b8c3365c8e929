"""Error rates of the verdicts: simulated outcomes have the given effect, and clear effects are reproduced."""
import dataclasses

import numpy as np
import pandas as pd
import pytest

from nrf_repro.results import power as P
from nrf_repro.results import rows as R
from nrf_repro.results.paired import _seeds_text
from nrf_repro.results.rules import load_claims

CLAIMS = load_claims()
C2, C6 = CLAIMS['C2'].parts[0], CLAIMS['C6'].parts[0]


def design(part=C2, **fields):
    return P.Design(**dict(part=part, level=.95, seeds=(3, 3), weights=(1, 1), sd=(.02, .05), control=.5, images=400, shared=True, two_way=True) | fields)


def rows_of(seeds=(3, 2), step=.02): # of C2 on two architectures
    make = lambda metric, value, **more: R.make_row(experiment='final', metric=metric, dataset='digits', regime='standard', n=300, profile='mine', value=value, **more)
    return R.frame(row for arch, count in zip(('vgg11', 'resnet18'), seeds) for norm in ('none', 'bn') for s in range(count) for row in (
        make('clean_accuracy', .97, arch=arch, norm=norm, seed=s),
        *(make('robust_accuracy', .6 - (.1 + step * s) * (norm == 'bn'), arch=arch, norm=norm, seed=s, attack=p.where['attack'], eps=1., reading='any') for p in CLAIMS['C2'].parts)))


def test_the_design_is_that_of_the_rows():
    got = P.design_of(CLAIMS['C2'], C2, rows_of())
    assert (got.seeds, got.weights, got.images, got.shared, got.two_way) == ((3, 2), (1, 1), 300, True, False) and got.control == pytest.approx(.6)
    assert got.sd == pytest.approx((.02, np.std([0, .02], ddof=1)))
    assert P.design_of(CLAIMS['C2'], C2, rows_of((3, 1))).sd == pytest.approx((.02, .02))          # one seed takes the others' spread
    assert P.design_of(CLAIMS['C2'], C2, rows_of((1, 1))) is None and P.design_of(CLAIMS['C5'], CLAIMS['C5'].parts[0], rows_of()) is None


def test_cells_without_room_are_left_out_as_in_the_verdict():
    rows = rows_of()
    full = rows.assign(value=rows.value.mask((rows.arch == 'vgg11') & (rows.metric == 'robust_accuracy'), .01))
    assert P.design_of(CLAIMS['C2'], C2, full).seeds == (2,)


def test_a_rule_without_an_effect_to_simulate_is_named():
    with pytest.raises(ValueError, match='none: the smallest effect is 0. State the effect in claims.yaml'): P.true_effects(dataclasses.replace(C6, paper=None))


@pytest.mark.parametrize('part, effect', [(C2, -.06), (C2, 0.), (C2, -.9), (C6, .04), (CLAIMS['C5'].parts[0], -.04)])
def test_simulated_outcomes_have_the_effect_and_the_spread(part, effect):
    d = design(part, seeds=(2000,), sd=(.03,), weights=(1,), images=40)
    means = [P.simulate(d, effect, P._Normals(np.random.default_rng(s)))[0].mean() for s in range(8)]
    assert np.mean(means) == pytest.approx(effect, abs=.03)
    wide = design(part, seeds=(400,), sd=(.10,), weights=(1,), images=2000)
    assert P.simulate(wide, effect / 2, P._Normals(np.random.default_rng(0)))[0].mean(1).std() == pytest.approx(.10, rel=.25)


@pytest.mark.parametrize('part', [C2, C6])
def test_the_noise_of_the_images_is_not_counted_twice(part):
    noisy = design(part, seeds=(4000,), weights=(1,), sd=(.03,), images=300)
    assert 0 < P._image_noise(noisy, -.03) < .03**2
    spread = [P.simulate(noisy, -.03, P._Normals(np.random.default_rng(s)))[0].mean(1).std() for s in range(3)]
    assert np.mean(spread) == pytest.approx(.03, rel=.1)
    noise = P._image_noise(noisy, -.03)**.5      # a design with less spread than the noise has networks that do not differ
    assert P.simulate(noisy._replace(sd=(.001,)), -.03, P._Normals(np.random.default_rng(0)))[0].mean(1).std() == pytest.approx(noise, rel=.1)


def test_seeds_of_the_study_of_transfer_have_images_of_their_own():
    alike = design(images=20_000, seeds=(2,), weights=(1,), sd=(0.,))
    shared, own = (P.simulate(alike._replace(shared=s), 0., P._Normals(np.random.default_rng(0)))[0] for s in (True, False))
    assert np.corrcoef(shared)[0, 1] > .3 and abs(np.corrcoef(own)[0, 1]) < .05


def test_the_interval_is_that_of_the_published_verdict(monkeypatch):
    asked = []
    monkeypatch.setattr(P, 'two_way', lambda *a, **k: asked.append('seeds and images') or P.t_over_cells([v.mean(axis=1) for v in a[0]]))
    for both in (True, False):
        d = design(two_way=both)
        P.decide_simulated(d, P.simulate(d, -.5, P._Normals(np.random.default_rng(0))), CLAIMS['C2'])
        assert bool(asked) == both
        asked.clear()


def test_parts_of_one_metric_are_related_and_others_are_not():
    normals = P._Normals(np.random.default_rng(0))
    one, again, other = (P.simulate(design(p, images=5000, sd=(0., 0.)), 0., normals)[0].mean(0) for p in (C2, CLAIMS['C2'].parts[1], CLAIMS['C1'].parts[0]))
    assert .6 < np.corrcoef(one, again)[0, 1] < .95 and abs(np.corrcoef(one, other)[0, 1]) < .1
    cells = P.simulate(design(images=20_000, seeds=(1, 1), sd=(0., 0.)), 0., normals)
    assert .1 < np.corrcoef(cells[0][0], cells[1][0])[0, 1] < .4          # cells share half of the images' part


def test_a_large_effect_is_reproduced_and_a_zero_effect_is_not():
    rng = np.random.default_rng(0)
    sure = design(sd=(.001, .001), images=5000, seeds=(5, 5))
    for effect, verdict in ((-.2, 'reproduced'), (0., 'not reproduced'), (.2, 'not reproduced')):
        assert {P.simulated_verdict([sure], [effect], CLAIMS['C2'], rng, (None,)) for _ in range(10)} == {verdict}
    few = design(sd=(.2, .2), images=50, seeds=(2, 2))
    assert P.simulated_verdict([few], [-.06], CLAIMS['C2'], rng, (None,)) == 'inconclusive'
    assert P.simulated_verdict([sure, few], [-.2, -.06], CLAIMS['C2'], rng, (None,)) == 'inconclusive'   # every part must hold


def test_seeds_are_added_only_after_an_inconclusive_verdict(monkeypatch):
    seen = []
    for first in ('reproduced', 'inconclusive'):
        monkeypatch.setattr(P, 'decide_simulated', lambda d, v, claim, seeds=None: seen.append(seeds) or (first if seeds else 'not reproduced'))
        last = P.simulated_verdict([design()], [0.], CLAIMS['C2'], np.random.default_rng(0), (3, None))
        assert last == (first if first == 'reproduced' else 'not reproduced')
    assert seen == [3, 3, None]


def test_simulated_outcomes_are_decided_by_the_functions_of_the_claims(monkeypatch):
    values = P.simulate(design(), -.2, P._Normals(np.random.default_rng(0)))
    assert P.decide_simulated(design(), values, CLAIMS['C2']) == 'reproduced'
    monkeypatch.setattr(P, 'verdict_over_cells', lambda *a: ('not run', None))
    assert P.decide_simulated(design(), values, CLAIMS['C2']) == 'not run'


def test_error_rates_add_up_and_repeat():
    rates, = P.error_rates(CLAIMS['C2'], rows_of(), runs=20)
    assert rates == P.error_rates(CLAIMS['C2'], rows_of(), runs=20)[0] and rates['seeds'] == '3 and 2 seeds' and rates['parts'] == 4
    assert 0 <= rates['false_reproduced_zero'] <= rates['power'] <= 1 and rates['false_reproduced'] <= .2
    easy = rows_of((10, 10), step=.002).assign(n=5000)
    assert P.error_rates(CLAIMS['C2'], easy, runs=20)[0]['power'] > rates['power']
    loose = dataclasses.replace(CLAIMS['C2'], parts=tuple(dataclasses.replace(p, smallest_effect=.15) for p in CLAIMS['C2'].parts))
    assert P.error_rates(loose, easy, runs=20)[0]['power'] > .9


def test_the_table_that_is_committed_is_of_the_published_profiles():
    rates, found = P.read_error_rates(), R.read_published()
    assert set(rates.profile) == set(found) and rates.groupby(['profile', 'id', 'rule']).size().max() == 1
    assert (rates.false_reproduced <= np.where(rates.interval == 'seeds', .12, .05)).all() and (rates.false_reproduced_zero <= rates.false_reproduced + .05).all()
    for r in rates.itertuples():      # the table is made from the rows that are published
        designs = [P.design_of(CLAIMS[r.id], p, found[r.profile]) for p in CLAIMS[r.id].parts]
        assert (len(designs), _seeds_text([s for d in designs for s in d.seeds]), min(d.images for d in designs)) == (r.parts, r.seeds, r.images)
        assert r.interval == ('seeds and images' if all(d.two_way for d in designs) else 'seeds')


def test_the_table_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(P, 'read_published', lambda: {'mine': rows_of()})
    table = P.write_error_rates(tmp_path / 'rates.csv', runs=2, progress=False)
    assert table.id.tolist() == ['C1', 'C2'] and pd.read_csv(tmp_path / 'rates.csv').equals(P.read_error_rates(tmp_path / 'rates.csv'))
    with pytest.raises(FileNotFoundError): P.read_error_rates(tmp_path / 'none.csv')
