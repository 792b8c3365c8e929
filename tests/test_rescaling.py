"""Tests of nrf_repro.theory.rescaling: reference results, invariances and their limits, errors."""
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from nrf_repro.theory.rescaling import fit_whitening, invariance_error, principal_axes, whiten


@pytest.fixture(params=[0, 1, 2])
def x(request):
    "Correlated, skewed data of very different scales, n d = 400 6."
    rng = np.random.default_rng(request.param)
    return rng.gamma(1.5, size=(400, 6)) @ rng.normal(size=(6, 6)) * [.1, 1, 1, 2, 5, 20] + 3


@pytest.mark.parametrize('kind', ['pca', 'zca'])
def test_whitened_columns_are_uncorrelated_and_of_equal_variance(x, kind):
    assert np.allclose(whiten(x, kind).mean(0), 0, atol=1e-9)
    assert np.allclose(np.cov(whiten(x, kind).T, bias=True), np.eye(6), atol=1e-8)
    assert not np.allclose(np.cov(x.T, bias=True), np.eye(6), atol=.5)


def test_pca_whitening_is_scikit_learns_up_to_sign(x):
    oracle = PCA(whiten=True).fit_transform(x) * np.sqrt(400 / 399)
    assert np.allclose(np.abs(whiten(x)), np.abs(oracle), atol=1e-8)


def test_axes_are_signed_by_skewness(x):
    mean, variances, axes = principal_axes(x)
    assert (np.diff(variances) >= 0).all() and np.allclose(axes.T @ axes, np.eye(6))
    assert ((((x - mean) @ axes) ** 3).sum(0) >= 0).all()


def test_zca_is_symmetric_and_the_inverse_root_of_the_covariance(x):
    _, matrix = fit_whitening(x, 'zca')
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(np.linalg.inv(matrix @ matrix), np.cov(x.T, bias=True))


def test_whitening_of_four_points():
    # variances 4 and 1 along the axes: each coordinate is divided by 2 and by 1
    square = np.array([[2., 1], [2, -1], [-2, 1], [-2, -1]])
    assert np.allclose(whiten(square, 'zca'), np.sign(square))


def test_eps_is_added_to_the_variances(x):
    _, variances, _ = principal_axes(x)
    assert np.allclose(np.sort(whiten(x, eps=.5).var(0)), np.sort(variances / (variances + .5)))


def test_fitted_on_one_set_and_applied_to_another(x):
    mean, matrix = fit_whitening(x[:300], 'pca')
    assert np.allclose((x[:300] - mean) @ matrix.T, whiten(x[:300]))
    assert not np.allclose((x[300:] - mean) @ matrix.T, whiten(x[300:]), atol=.01)


def test_pca_is_invariant_to_rotations_zca_is_not_and_neither_to_mixing(x):
    rng = np.random.default_rng(7)
    turn, mix = np.linalg.qr(rng.normal(size=(6, 6)))[0], rng.normal(size=(6, 6))
    def rotate(v): return 3 * v @ turn.T - 1
    def mixed(v): return v @ mix.T
    def zca(v): return whiten(v, 'zca')
    assert invariance_error(whiten, rotate, x) < 1e-3 < invariance_error(whiten, mixed, x)
    assert invariance_error(zca, lambda v: 3 * v - 1, x) < 1e-3 < invariance_error(zca, rotate, x)
    w, w_mixed = whiten(x), whiten(mixed(x))
    assert np.allclose(w @ w.T, w_mixed @ w_mixed.T, atol=1e-4)     # mixing leaves a rotation


def test_few_whitened_samples_have_equal_distances():
    x = np.random.default_rng(0).normal(size=(8, 20)) * np.arange(1, 21)
    mean, variances, axes = principal_axes(x)
    keep = variances > 1e-10
    w = (x - mean) @ axes[:, keep] / np.sqrt(variances[keep])
    gaps = np.linalg.norm(w[:, None] - w[None], axis=-1)[np.triu_indices(8, 1)]
    assert keep.sum() == 7 and np.allclose(gaps, np.sqrt(2 * 8))


def test_invariance_error_is_zero_for_no_change_and_in_standard_deviations_for_a_shift(x):
    assert invariance_error(lambda v: v, lambda v: v, x) == 0
    assert invariance_error(lambda v: v, lambda v: v + 2 * x.std(), x) == pytest.approx(2)


def test_the_error_is_large_for_other_changes(x):
    def zscore(v): return StandardScaler().fit_transform(v)
    assert invariance_error(zscore, lambda v: 2 * v + 1, x) < 1e-3 < min(invariance_error(zscore, f, x) for f in (np.negative, np.square))


@pytest.mark.parametrize('bad, kwargs, message', [
    (np.ones((5, 8, 8)), {}, r'shape \(5, 8, 8\)'),
    (np.ones((1, 3)), {}, 'at least 2'),
    (np.random.default_rng(0).normal(size=(5, 8)), {}, '5 rows of 8 columns that vary in 4 directions only'),
    (np.random.default_rng(0).normal(size=(50, 8)), dict(kind='ica'), "kind='ica' is unknown"),
    (np.array([[1., 2], [np.nan, 1], [3, 4]]), {}, 'NaN or infinite'),
])
def test_errors_name_the_input(bad, kwargs, message):
    with pytest.raises(ValueError, match=message):
        whiten(bad, **kwargs)


def test_a_constant_transform_is_an_error():
    with pytest.raises(ValueError, match='constant'):
        invariance_error(np.zeros_like, np.square, np.ones((4, 2)))
