"""Intervals against values worked out by hand, and their coverage in simulations."""
import math

import numpy as np
import pytest
from scipy import stats

from nrf_repro.results import intervals as R


# intervals

def test_wilson_known_values():
    assert R.wilson(0, 10)[1:3] == pytest.approx((0, .2775328), abs=1e-6)  # z^2 / (10 + z^2)
    assert R.wilson(50, 100)[1:3] == pytest.approx((.4038315, .5961685), abs=1e-6)
    with pytest.raises(ValueError, match='n=0'): R.wilson(0, 0)
    with pytest.raises(ValueError, match='whole numbers'): R.wilson(.58, 400)


@pytest.mark.parametrize('gained, lost, n', [(6, 30, 200), (1, 2, 200), (-.1, .2, 200), (0, 0, 0), (math.nan, 0, 10)])
def test_paired_interval_takes_shares(gained, lost, n):
    with pytest.raises(ValueError, match='paired_interval needs two shares'): R.paired_interval(gained, lost, n)


def test_t_interval_by_hand():
    assert R.t_interval([2, 4]) == pytest.approx((3, 3 - 12.7062, 3 + 12.7062, 2), abs=1e-3)  # standard error 1
    assert R.t_interval([2, 4], level=.5)[1:3] == pytest.approx((2, 4))                       # t(.75; 1) = 1
    assert math.isnan(R.t_interval([2]).low) and math.isnan(R.t_interval([]).mean)


# several cells

def by_mean_squares(D, level=.95): # networks x images: the analysis of variance of one cell, written out
    S, n = D.shape
    a, b, m = D.mean(1), D.mean(0), D.mean()
    MSs, MSi = n * a.var(ddof=1), S * b.var(ddof=1)
    MSe = ((D - a[:, None] - b + m)**2).sum() / ((S - 1) * (n - 1))
    comp = MSs + max(MSi - MSe, 0)
    df = comp**2 / (MSs**2 / (S - 1) + (MSi**2 / (n - 1) + MSe**2 / ((S - 1) * (n - 1)) if MSi > MSe else 0))
    h = stats.t.ppf((1 + level) / 2, df) * np.sqrt(comp / (S * n))
    return m - h, m + h


@pytest.mark.parametrize('seeds', [3, 5, 10])
@pytest.mark.parametrize('image, network', [(1, 0), (1, 1), (0, 1), (0, 0)])
def test_one_cell_is_the_two_way_analysis_of_variance(seeds, image, network):
    rng = np.random.default_rng(seeds)
    D = rng.normal(size=(seeds, 50)) + image * rng.normal(size=50) + network * rng.normal(size=(seeds, 1))
    for level in (.9, .95): assert R.two_way([D], level=level)[1:3] == pytest.approx(by_mean_squares(D, level))


def test_two_seeds_get_their_own_quantile():
    D = np.array([[1., 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 0]])
    image = R._image_part([D], [R._cell_of(D, 1.)])
    seeds = D.mean(1).var(ddof=1) / 2
    half = (stats.t.ppf(.975, 1)**2 * seeds + stats.t.ppf(.975, image.df)**2 * image.size)**.5
    assert R.two_way([D])[:3] == pytest.approx((.5, .5 - half, .5 + half)) and image.size > 0


def test_two_seeds_that_are_equal_by_chance_get_the_residual():
    D = np.repeat([[1., 0.], [0., 1.]], 200, axis=1)             # equal means, and no image is easier than another
    half = stats.norm.ppf(.975) * (.5 * 400 / 399 / 2 / 400)**.5
    assert R.two_way([D])[:3] == pytest.approx((.5, .5 - half, .5 + half))


def test_a_clear_effect_of_the_images_is_seen_where_the_seeds_agree():
    D = np.tile(np.arange(100) < 30, (4, 1)).astype(float)         # every seed the same: only the images vary
    half = stats.t.ppf(.975, 99) * (.3 * .7 * 100 / 99 / 100)**.5
    assert R.two_way([D])[:3] == pytest.approx((.3, .3 - half, .3 + half))
    assert R.two_way([D, D])[:3] == pytest.approx((.3, .3 - half, .3 + half))                   # the same images: no gain
    two = R.two_way([D, D], ['one', 'other'])
    assert two.high - two.mean == pytest.approx(stats.t.ppf(.975, 198) * (.3 * .7 * 100 / 99 / 200)**.5) and two.images == 200


def test_the_weights_and_the_order_of_cells():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 40)), rng.normal(1, 1, (5, 40)), rng.normal(2, 1, (4, 40))
    assert R.two_way([a, b, c]).mean == pytest.approx(np.mean([x.mean() for x in (a, b, c)]))
    assert R.two_way([a, b], weights=[3, 1]).mean == pytest.approx(.75 * a.mean() + .25 * b.mean())
    assert R.two_way([a, b, c])[:3] == pytest.approx(R.two_way([c, a, b])[:3])
    assert R.two_way([a, b], ['x', 'y'])[:3] == pytest.approx(R.two_way([b, a], ['y', 'x'])[:3])


def test_a_cell_with_one_seed_borrows_the_variance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 40)), rng.normal(1, 1, (1, 40))
    got = R.two_way([a, b])
    assert got.mean == pytest.approx((a.mean() + b.mean()) / 2) and got.seeds == (5, 1) and got.low < got.mean < got.high
    assert R.t_over_cells([a.mean(1), b.mean(1)]).low == pytest.approx(       # variance s^2 / 4 (1 / 5 + 1) with 4 degrees of freedom
        got.mean - stats.t.ppf(.975, 4) * (a.mean(1).var(ddof=1) / 4 * 1.2)**.5)
    assert np.isnan(R.two_way([b, b]).low) and np.isnan(R.t_over_cells([[1.], [2.]]).low)
    assert R.two_way([a, b], ['one', 'other']).high > got.mean            # images that only one network saw


def test_images_without_a_value():
    rng = np.random.default_rng(0)
    D = rng.normal(size=(3, 30))
    gap = D.copy()
    gap[0, 3] = gap[2, 7] = np.nan
    got, whole = R.two_way([gap]), R.two_way([np.delete(D, [3, 7], 1)])
    assert got[:3] == pytest.approx(whole[:3]) and (got.images, got.left_out) == (28, 2)
    assert R.two_way([gap, D], ['x', 'y']).images == 58 and R.two_way([gap, D]).images == 28
    with pytest.raises(ValueError, match='1 images have an outcome in each network'): R.two_way([np.array([[1, np.nan], [1, 0]])])


@pytest.mark.parametrize('values, more, words', [
    ([], {}, 'at least one cell'), ([np.zeros(3)], {}, r'shape \(3,\)'), ([np.zeros((0, 3))], {}, r'shape \(0, 3\)'),
    ([np.zeros((2, 3)), np.zeros((2, 4))], {}, 'Give the same images'), ([np.zeros((2, 3))], dict(weights=[-1]), 'Give positive numbers'),
    ([np.zeros((2, 3))], dict(weights=[1, 2]), 'got 1 cells and 2 weights'), ([np.zeros((2, 3))], dict(names=['a', 'b']), 'Name the images of each cell')])
def test_bad_input_is_named(values, more, words):
    with pytest.raises(ValueError, match=words): R.two_way(values, **more)


@pytest.mark.parametrize('value, n', [(-.1, 1000), (1 / 3, 10000), (0., 400)])
def test_outcomes_that_never_vary_have_the_exact_bound(value, n): # rounding of the mean is no spread
    got = R.two_way([np.full((3, n), value)] * 3)
    assert got.high - got.mean == pytest.approx(1 - .025**(1 / n))


@pytest.mark.parametrize('level', [95, 1, 0])
def test_a_level_is_a_fraction(level):
    with pytest.raises(ValueError, match=f'level is {level}'): R.two_way([np.eye(3)], level=level)
    with pytest.raises(ValueError, match=f'level is {level}'): R.t_over_cells([[1, 2, 3]], level=level)


# coverage

def simulated(rng, seeds, n, sd, rho=.8, pair=.5, p=(.6, .7)):
    "A probit model of right answers: images (shared by all cells by one half), networks, and a rest; treatment minus control."
    common, cells = rng.normal(size=(2, n)), []
    for count, sd_c in zip(seeds, sd):
        images = np.sqrt(.5) * common + np.sqrt(.5) * rng.normal(size=(2, n))
        images[1] = pair * images[0] + np.sqrt(1 - pair**2) * images[1]
        latent = np.sqrt(rho) * images[:, None] + np.sqrt(1 - rho) * rng.normal(size=(2, count, n)) + rng.normal(0, sd_c, (2, count, 1))
        right = latent < stats.norm.ppf(p)[:, None, None]
        cells.append(right[0].astype(float) - right[1])
    return cells, np.mean([np.subtract(*stats.norm.cdf(stats.norm.ppf(p) / np.sqrt(1 + s**2))) for s in sd])


@pytest.mark.parametrize('seeds, sd', [((5,), (0.,)), ((3, 3), (.05, .05)), ((2,), (.2,)), ((8, 2), (.02, .3))])
def test_the_two_way_interval_covers(seeds, sd):
    rng, hits, plain = np.random.default_rng(0), [], []
    for _ in range(400):
        cells, truth = simulated(rng, seeds, 200, sd, *((.95, 0.) if seeds == (5,) else (.8, .5)))
        two, t = R.two_way(cells), R.t_over_cells([c.mean(1) for c in cells])
        hits.append(two.low < truth < two.high)
        plain.append(t.low < truth < t.high)
    assert np.mean(hits) > stats.binom.ppf(.001, 400, .93) / 400
    if seeds == (5,): assert np.mean(plain) < .7         # five seeds on the same images: t takes them for the whole sample
