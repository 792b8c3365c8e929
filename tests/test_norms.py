"Tests of `nrf_repro.models.norms`: agreement with PyTorch, which norms include which, and errors."
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from nrf_repro.models.norms import NORMS, InstanceNorm, count_norms, make_norm, moments, norm_of, normalize

REAL = NORMS[1:]
SHAPES = [(4, 8, 5, 3), (1, 8, 4, 4), (3, 8, 1, 2)]


def images(shape=(4, 8, 5, 3), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64) * 3 + 2


def torch_norm(norm, x, groups, weight, bias):
    "The functional form in PyTorch, which is another code path than the layers."
    if norm == 'bn': return F.batch_norm(x, None, None, weight, bias, training=True)
    if norm == 'in': return F.instance_norm(x, weight=weight, bias=bias)
    return F.group_norm(x, 1 if norm == 'ln' else groups, weight, bias)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('norm', REAL)
def test_values_and_gradients_equal_torch(norm, shape):
    x, up = images(shape).requires_grad_(), images(shape, 1)
    weight, bias = (images((8,), s).requires_grad_() for s in (2, 3))
    ours = weight[:, None, None] * normalize(x, norm, groups=4) + bias[:, None, None]
    theirs = torch_norm(norm, x, 4, weight, bias)
    torch.testing.assert_close(ours, theirs)
    g1, g2 = (torch.autograd.grad((up * out.sin()).sum(), (x, weight, bias)) for out in (ours, theirs))
    for a, b in zip(g1, g2): torch.testing.assert_close(a, b)
    assert g1[0].abs().max() > 1e-3


@pytest.mark.parametrize('norm', REAL)
def test_layer_in_training_equals_formula(norm):
    x, layer = images().float(), make_norm(norm, 8, 4)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    expected = layer.weight[:, None, None] * normalize(x, norm, 4) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)
    assert (layer.eval()(x) - expected).abs().max() > .1 if norm == 'bn' else torch.equal(layer.eval()(x), layer.train()(x))


def test_none_is_the_identity():
    x = images()
    assert normalize(x, 'none') is x and make_norm('none', 8)(x) is x
    assert not list(make_norm('none', 8).parameters())


@pytest.mark.parametrize('norm', REAL)
def test_identity_at_gamma_sigma_beta_mu(norm):
    x = images()
    mu, var = moments(x, norm, 4)
    torch.testing.assert_close((var + 1e-5).sqrt() * normalize(x, norm, 4) + mu, x)


@pytest.mark.parametrize('norm', REAL)
def test_moments_are_those_of_the_index_set(norm):
    x = images().requires_grad_()
    mu, var = moments(x, norm, 4)
    for i in ((0, 0, 0, 0), (3, 7, 4, 2), (1, 2, 3, 1)):
        index_set = torch.autograd.grad(mu[i], x, retain_graph=True)[0] != 0
        s = x[index_set]
        assert index_set[i]
        torch.testing.assert_close(mu[i], s.mean())
        torch.testing.assert_close(var[i], s.var(correction=0))


def test_gn_includes_ln_and_in_but_not_bn():
    x = images()
    assert torch.equal(normalize(x, 'gn', 1), normalize(x, 'ln'))
    assert torch.equal(normalize(x, 'gn', 8), normalize(x, 'in'))
    y = x.clone(); y[-1] *= -2
    for groups in (1, 2, 4, 8):
        assert torch.equal(normalize(x, 'gn', groups)[:-1], normalize(y, 'gn', groups)[:-1])
        assert (normalize(x, 'gn', groups) - normalize(x, 'bn')).abs().max() > .1
    assert (normalize(x, 'bn') - normalize(y, 'bn'))[:-1].abs().max() > .1


@pytest.mark.parametrize('mode', [True, False])
def test_instance_norm_on_1x1_passes_its_input_through_the_affine(mode):
    x = images((4, 8, 1, 1)).float().requires_grad_()
    layer = make_norm('in', 8).train(mode)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    out = layer(x)
    torch.testing.assert_close(out, layer.weight[:, None, None] * x + layer.bias[:, None, None])
    g = torch.autograd.grad(out.sum(), x)[0]
    torch.testing.assert_close(g, layer.weight[:, None, None].expand_as(g))
    assert torch.equal(layer(x[:1]), out[:1])  # a single image as well
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_instance_norm_on_larger_maps_equals_torch():
    x, layer, ref = images().float(), InstanceNorm(8), nn.InstanceNorm2d(8, affine=True)
    ref.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), ref(x)) and not list(layer.buffers())


@pytest.mark.parametrize('norm, layer', [('bn', nn.BatchNorm1d(4)), ('bn', nn.SyncBatchNorm(4)), ('ln', nn.GroupNorm(1, 8)),
                                         ('in', nn.GroupNorm(8, 8)), ('gn', nn.GroupNorm(2, 8)), ('ln', nn.LayerNorm(4)),
                                         ('in', nn.InstanceNorm2d(4)), ('bn', FrozenBatchNorm2d(4)), (None, nn.Identity()), (None, nn.Linear(2, 2))])
def test_norm_of(norm, layer): assert norm_of(layer) == norm


@pytest.mark.parametrize('norm', NORMS)
def test_count_norms_counts_what_was_built(norm):
    model = nn.Sequential(make_norm(norm, 8, 4), nn.Sequential(nn.Conv2d(8, 8, 1), make_norm(norm, 8, 4)), make_norm('bn', 8))
    expected = {'bn': 3} if norm == 'bn' else {'bn': 1} if norm == 'none' else {norm: 2, 'bn': 1}
    assert count_norms(model) == expected == count_norms(copy.deepcopy(model))


@pytest.mark.parametrize('f', [lambda **k: make_norm(channels=8, **k), lambda **k: normalize(images(), **k)])
@pytest.mark.parametrize('kwargs, error, message', [
    (dict(norm='batchnorm'), ValueError, "norm='batchnorm' is not known. Choose one of: none, bn, in, ln, gn"),
    (dict(norm=None), ValueError, 'norm=None is not known'),
    (dict(norm='gn', groups=3), ValueError, 'groups=3 does not divide channels=8'),
    (dict(norm='gn', groups=0), ValueError, 'groups=0 does not divide channels=8'),
    (dict(norm='gn'), ValueError, 'groups=32 exceeds channels=8'),
    (dict(norm='gn', groups=2.), TypeError, 'groups=2.0 must be an int')])
def test_errors_name_the_input(f, kwargs, error, message):
    with pytest.raises(error, match=message): f(**kwargs)


def test_moments_of_none_are_an_error():
    with pytest.raises(ValueError, match="norm='none' has no moments"): moments(images(), 'none')


def test_variance_stays_positive_far_from_zero():
    x = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0)) + 3000
    assert (x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()).sub(1).abs().max() > .2  # one pass
    for norm in REAL: assert (moments(x, norm, 4)[1] - 1).abs().max() < .6


@pytest.mark.parametrize('dtype, x', [(torch.float16, 1000 * torch.randn(2, 8, 4, 4)), (torch.bfloat16, 3000 + torch.randn(2, 8, 32, 32))])
def test_half_precision_is_normalised_in_float32(dtype, x):
    low = x.to(dtype)
    seen = normalize(low, 'gn', 4)
    assert seen.dtype == dtype
    torch.testing.assert_close(seen.float(), normalize(low.float(), 'gn', 4), rtol=.01, atol=.01)


def test_an_image_without_batch_and_wrong_channels_are_errors():
    with pytest.raises(ValueError, match='Pass n c h w'): normalize(torch.randn(8, 4, 4), 'in')
    with pytest.raises(ValueError, match='x has 1 channels. Pass 8'): InstanceNorm(8)(torch.randn(16, 1, 1, 1))
    assert normalize(torch.zeros(0, 8, 4, 4), 'gn', 4).shape == (0, 8, 4, 4)
