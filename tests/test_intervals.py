"""Intervals against values worked out by hand, and their coverage in simulations."""
import math

import numpy as np
import pytest
from scipy import stats

from nrf_repro import intervals as R


# intervals

def test_wilson_known_values():
    assert R.wilson(0, 10)[1:3] == pytest.approx((0, .2775328), abs=1e-6)  # z^2 / (10 + z^2)
    assert R.wilson(50, 100)[1:3] == pytest.approx((.4038315, .5961685), abs=1e-6)
    with pytest.raises(ValueError, match='n=0'): R.wilson(0, 0)


def test_t_interval_by_hand():
    assert R.t_interval([2, 4]) == pytest.approx((3, 3 - 12.7062, 3 + 12.7062, 2), abs=1e-3)  # standard error 1
    assert R.t_interval([2, 4], level=.5)[1:3] == pytest.approx((2, 4))                       # t(.75; 1) = 1
    assert math.isnan(R.t_interval([2]).low) and math.isnan(R.t_interval([]).mean)


def test_hierarchical_bootstrap():
    values, minus = np.array([.6, .5, .7, .55, .65]), np.array([.8, .75, .85, .8, .8])
    iv = R.hierarchical_bootstrap(values, 400, minus=minus)
    assert iv == R.hierarchical_bootstrap(values, 400, minus=minus) and iv.mean == pytest.approx(-.2) and iv.n == 5
    more, fewer = (R.hierarchical_bootstrap(values, n, minus=minus) for n in (10**6, 40))
    assert more.high - more.low < iv.high - iv.low < fewer.high - fewer.low
    cells = R.hierarchical_bootstrap(np.c_[values, values], np.full((5, 2), 400), minus=np.c_[minus, minus])
    assert cells.mean == pytest.approx(-.2) and cells.high - cells.low < iv.high - iv.low  # twice the images


@pytest.mark.parametrize('seeds', [5, 8])
def test_the_bootstrap_covers_where_the_images_add_nothing(seeds):
    rng = np.random.default_rng(0)
    shares = np.clip(rng.normal(.6, .05, (150, seeds)), 0, 1)
    hits = [iv.low < .6 < iv.high for iv in (R.hierarchical_bootstrap(s, 10**6, draws=3000) for s in shares)]
    assert np.mean(hits) > stats.binom.ppf(.001, 150, .92) / 150


