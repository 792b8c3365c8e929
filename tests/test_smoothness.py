"Tests of `nrf_repro.theory.smoothness`: the bound's algebra, unchanged models, and losses with a known smoothness."
import numpy as np
import pytest
import torch
from torch import nn

from nrf_repro.theory.smoothness import _gradient_at, _loss_at, bound_terms, landscape, layer_gradients


def net(inplace=True, eps=1e-5):
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(5, eps=eps)
    nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), bn, nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(45, 3))
    return model.double().train(), bn


def batch(n=7):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 5, 5, generator=g, dtype=torch.float64), torch.arange(n) % 3


def terms(eps):
    model, bn = net(eps=eps)
    return bound_terms(*layer_gradients(model, bn, *batch()), bn.weight, eps)


def test_equality_without_eps():
    t = terms(1e-30)
    np.testing.assert_allclose(t['left'], t['right'], rtol=1e-9)
    assert (t['left'] > 0).all() and (t[['mean', 'spread']] > 0).all(axis=None)


def test_coefficient_of_the_slide_is_no_bound():
    t = terms(1e-30)
    assert (t['right_sqrt_m'] < t['left']).all()
    m = 7 * 3 * 3
    np.testing.assert_allclose(t['right'] - t['right_sqrt_m'], t['factor'] * t['spread'] * (m ** .5 - 1))


@pytest.mark.parametrize('eps', [1e-3, .1, 10.])
def test_bound_with_eps(eps):
    t = terms(eps)
    assert (t['left'] <= t['right']).all() and (t['left'] < t['right']).sum() >= 3  # in the others both sides are 0
    model, bn = net(eps=eps)
    var = layer_gradients(model, bn, *batch())[0].var((0, 2, 3), correction=0).numpy()
    np.testing.assert_allclose(t['right'] - t['left'], t['factor'] * eps / (var + eps) * t['spread'], rtol=1e-6)


def test_terms_of_a_small_example():
    y = torch.tensor([-1., 1., -1., 1.]).view(4, 1, 1, 1)  # mean 0, variance 1: y_hat = y
    g = torch.tensor([3., 1., 0., 0.]).view(4, 1, 1, 1)
    t = bound_terms(y, g, torch.zeros(4, 1, 1, 1), torch.tensor([2.])).iloc[0]
    assert t.to_dict() == dict(left=0, factor=4, total=10, mean=4, spread=1, right=20, right_sqrt_m=16)


def test_gradients_are_right_before_an_in_place_relu():
    for a, b in zip(*(layer_gradients(*net(inplace), *batch()) for inplace in (True, False))):
        torch.testing.assert_close(a, b)


def test_model_is_unchanged():
    model, bn = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layer_gradients(model, bn, *batch())
    landscape(model, *batch(), steps=(.1, 1.))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not bn._forward_hooks and model.training and all(p.grad is None for p in model.parameters())


def test_hook_is_removed_when_the_model_fails():
    model, bn = net()
    with pytest.raises(RuntimeError): layer_gradients(model, bn, batch()[0][:, :1], batch()[1])
    assert not bn._forward_hooks


def test_layer_must_be_used_once():
    model, bn = net()
    with pytest.raises(ValueError, match='used 0 times'): layer_gradients(model, nn.ReLU(), *batch())
    twice = nn.Sequential(nn.Linear(3, 3), relu := nn.ReLU(), nn.Linear(3, 3), relu)
    with pytest.raises(ValueError, match='used 2 times'): layer_gradients(twice, relu, torch.randn(4, 3), torch.zeros(4).long())


def test_shapes_must_agree():
    y, g, g_y = layer_gradients(*net(), *batch())
    with pytest.raises(ValueError, match='differ in shape'): bound_terms(y, g[:1], g_y, torch.ones(5))


def test_loss_and_gradient_are_the_models():
    model, _ = net()
    value, g = _gradient_at(model, dict(model.named_parameters()), *batch())
    own = _loss_at(model, {}, *batch())
    own.backward()
    assert value == own.item()
    torch.testing.assert_close(g, torch.cat([p.grad.flatten() for p in model.parameters()]))


class Quadratic(nn.Module):
    "A quadratic of two curvatures, b and c"
    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Parameter(torch.tensor([2.])), nn.Parameter(torch.tensor([1., 1.]))
    def forward(self, x): return (3 * self.u.square().sum() + 5 * self.v.square().sum()) / 2


def test_landscape_of_a_quadratic():
    s = np.array([.1, .3, -.2])
    t = landscape(Quadratic().double(), None, None, steps=s, loss=lambda out, y: out)
    gu, gv = 3 * 2, 5  # the gradient at the start: (6; 5, 5)
    np.testing.assert_allclose(t['loss'], (3 * 4 * (1 - 3 * s) ** 2 + 5 * 2 * (1 - 5 * s) ** 2) / 2)
    np.testing.assert_allclose(t['distance'], abs(s) * (gu ** 2 + 2 * gv ** 2) ** .5)
    np.testing.assert_allclose(t['change'], abs(s) * ((3 * gu) ** 2 + 2 * (5 * gv) ** 2) ** .5)
    np.testing.assert_allclose(t['smoothness'], t['change'] / t['distance'])


def test_landscape_uses_only_parameters_that_require_a_gradient():
    model = Quadratic().double()
    model.v.requires_grad_(False)
    t = landscape(model, None, None, steps=(.1,), loss=lambda out, y: out)
    np.testing.assert_allclose(t['smoothness'], 3)
    np.testing.assert_allclose(t['loss'], (3 * (2 * .7) ** 2 + 10) / 2)


def test_landscape_refuses_a_zero_step():
    with pytest.raises(ValueError, match='Remove it'): landscape(net()[0], *batch(), steps=(0., .1))


def test_scale_of_the_weights_before_bn():
    "BN(aWx) = BN(Wx): steps a^2 as long pass through the same losses, with beta / a^2"
    tables = []
    for a in (1, 3):
        model, bn = net(eps=1e-12)
        for p in model[1:].parameters(): p.requires_grad_(False)
        model[0].bias.requires_grad_(False)
        for p in model[0].parameters(): p.data *= a
        tables.append(landscape(model, *batch(), steps=np.array([.1, 1.]) * a ** 2))
    plain, scaled = tables
    np.testing.assert_allclose(scaled['loss'], plain['loss'], rtol=1e-6)
    np.testing.assert_allclose(scaled['smoothness'], plain['smoothness'] / 9, rtol=1e-6)
    assert plain['loss'].nunique() == 2
