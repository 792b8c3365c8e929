"""LIGS and usefulness equal their definitions, and do not depend on batch size, order or mode."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nrf_repro.attacks import image_noise
from nrf_repro.features import NOISES, ligs, normalise_gradients, robust_usefulness, unit_variance, usefulness, worst_case


def conv_net(scale=1., seed=0):
    "Convolution, batch norm with statistics of its own, tanh; logits multiplied by `scale`."
    torch.manual_seed(seed)
    head = nn.Linear(8 * 36, 4)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Dropout(), nn.Flatten(), head)
    net[1].running_mean.normal_(0, .2), net[1].running_var.uniform_(.05, .2)
    head.weight.data *= scale
    head.bias.data *= scale
    return net


@pytest.fixture
def images():
    "Thirty images, a third of their pixels exactly black or white, and labels."
    g = torch.Generator().manual_seed(3)
    return (torch.rand(30, 1, 8, 8, generator=g) * 1.5 - .25).clamp(0, 1), torch.randint(0, 4, (30,), generator=g)


def by_definition(net, x, y, sigma, draws, noise):
    "The mean over draws of the cosine, in float64, from a loss that has the cross-entropy's gradient direction."
    net = net.double().eval()

    def gradient(x):
        x = x.double().requires_grad_()
        z = net(x)
        others = z.masked_fill(F.one_hot(y, z.shape[1]).bool(), -math.inf).logsumexp(1)
        g, = torch.autograd.grad((others - z[range(len(y)), y]).sum(), x)
        return g.flatten(1).numpy()

    def cosine(a, b): return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    moved = [x.double() + sigma * NOISES[noise](x, 0, d).double() for d in range(draws)]
    return torch.tensor(np.mean([cosine(gradient(x), gradient(m)) for m in moved], 0))


@pytest.mark.parametrize('noise', NOISES)
@pytest.mark.parametrize('draws', [1, 3])
def test_ligs_is_its_definition(images, noise, draws):
    x, y = images
    expected = by_definition(conv_net(), x, y, .6, draws, noise)
    assert .02 < expected.std() and expected.min() < .8     # something to be wrong about
    torch.testing.assert_close(ligs(conv_net(), x, y, sigma=.6, draws=draws, noise=noise), expected, rtol=0, atol=1e-4)
    seen = ligs(conv_net().double(), x.double(), y, sigma=.6, draws=draws, noise=noise)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('scale', [1, 30, 1000, 1e5])
def test_stable_ligs_does_not_depend_on_the_logit_scale(images, scale):
    x, y = images
    expected = by_definition(conv_net(scale), x, y, .05, 1, 'gaussian')
    torch.testing.assert_close(ligs(conv_net(scale), x, y, sigma=.05), expected, rtol=0, atol=2e-2 if scale > 1000 else 2e-3)


def test_plain_ligs_equals_other_libraries_and_fails_on_confident_networks(images):
    x, y = images
    net = conv_net().eval()
    def gradient(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(net(x), y, reduction='sum'), x)[0].flatten(1)
    torch.testing.assert_close(ligs(net, x, y, stable=False, sigma=.2),
                               F.cosine_similarity(gradient(x), gradient(x + .2 * image_noise(x, 0, 0))).double(), rtol=0, atol=1e-5)
    y = conv_net(1000).eval()(x).argmax(1)     # right and sure
    assert ligs(conv_net(1000), x, y, stable=False).isnan().double().mean() > .5
    assert not ligs(conv_net(1000), x, y).isnan().any()


def test_noise_is_not_clamped():
    black = torch.zeros(64, 1, 6, 6)
    black[:, 0, 0, 0] = torch.arange(64) / 255     # no two alike, or they'd share their noise
    class Kink(nn.Module):
        "Its gradient turns around where pixels go below 0."
        def forward(self, x): z = x[:, 0, 1:].abs().sum((1, 2)) - 1; return torch.stack([-z, z], 1)
    seen = ligs(Kink(), black + 1e-4, torch.zeros(64, dtype=torch.int64), sigma=.1)
    assert abs(seen.mean()) < .1    # half the pixels turned; clamped, none would


@pytest.mark.parametrize('noise', NOISES)
def test_results_do_not_depend_on_the_batch(images, noise):
    x, y = images
    whole, order = ligs(conv_net(), x, y, noise=noise, sigma=.1), torch.randperm(30)
    torch.testing.assert_close(ligs(conv_net(), x[order], y[order], batch_size=4, noise=noise, sigma=.1), whole[order], rtol=0, atol=1e-5)
    torch.manual_seed(99)
    assert ligs(conv_net(), x, y, noise=noise, sigma=.1).equal(whole)
    assert not ligs(conv_net(), x, y, noise=noise, sigma=.1, seed=1).allclose(whole, atol=1e-3)


def test_the_model_is_unchanged(images):
    net, (x, y) = conv_net(), images
    net[0].eval(), net[5].requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes, flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    pixels = x.clone().requires_grad_()
    with torch.no_grad(): seen = ligs(net, pixels, y)
    assert not seen.requires_grad and pixels.grad is None and all(p.grad is None for p in net.parameters())
    assert [m.training for m in net.modules()] == modes and [p.requires_grad for p in net.parameters()] == flags
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize('draws', [1, 5])
def test_draws_cost_one_pass_each_and_one_more(images, draws):
    net, (x, y), sizes = conv_net(), images, []
    net[0].register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    ligs(net, x, y, draws=draws)
    assert sizes.count(len(x)) == draws + 1


def test_ligs_is_one_for_a_linear_model_of_two_classes_only(images):
    x, y = images
    torch.manual_seed(0)
    def linear(k): return nn.Sequential(nn.Flatten(), nn.Linear(64, k))
    torch.testing.assert_close(ligs(linear(2), x, y % 2, sigma=.5), torch.ones(30, dtype=torch.float64), rtol=0, atol=1e-9)
    assert ligs(linear(4), x, y, sigma=.5).mean() < .999


def test_ligs_is_nan_exactly_where_there_is_no_gradient(images):
    x, y = images
    class Dead(nn.Module):
        "Looks only at images that are bright in the middle."
        def forward(self, x): z = x.flatten(1).sum(1); return torch.stack([z * (x[:, 0, 4, 4] > .5), 0 * z, -z * (x[:, 0, 4, 4] > .5)], 1)
    seen, dead = ligs(Dead(), x, y % 3, sigma=1e-4), x[:, 0, 4, 4] <= .5
    assert 0 < dead.sum() < 30 and seen.isnan().equal(dead)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(constant[1].weight)
    assert ligs(constant, x, y % 3).isnan().all()
    assert len(ligs(constant, x[:0], y[:0])) == 0


def test_gradients_of_any_length_are_normalised():
    g = torch.tensor([[3., 4.]])
    for scale in (1e-44, 1e-30, 1., 1e37):
        torch.testing.assert_close((normalise_gradients(g * scale)**2).sum(), torch.tensor(1., dtype=torch.float64))
    torch.testing.assert_close(normalise_gradients(g * 1e-30), torch.tensor([[.6, .8]], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize('wrong, says', [
    (dict(sigma=0), 'sigma=0 is out of range'), (dict(sigma=-1.), 'above 0'), (dict(sigma=math.nan), 'sigma=nan'),
    (dict(sigma='.01'), "sigma='.01'"), (dict(seed=.5), 'seed=0.5'),
    (dict(draws=0), 'draws=0'), (dict(draws=1.5), 'whole number'), (dict(batch_size=0), 'batch_size=0'),
    (dict(noise='salt'), 'gaussian, uniform, sign')])
def test_bad_settings_are_named(images, wrong, says):
    with pytest.raises(ValueError, match=says): ligs(conv_net(), *images, **wrong)


def test_bad_images_are_named(images):
    x, y = images
    for bad, labels in ((x * 255, y), (x + math.nan, y), (x, y - 1), (x, y + 4), (x, y[:5])):
        with pytest.raises(ValueError): ligs(conv_net(), bad, labels)
    with pytest.raises(TypeError): ligs(lambda x: x, x, y)


def signs(n): return torch.tensor([-1., 1.]).repeat(n // 2)


def test_usefulness_is_correlation():
    y, g = signs(400), torch.Generator().manual_seed(0)
    f = y[:, None] * torch.tensor([.1, 1., -3.]) + torch.randn(400, 3, generator=g) + 5
    expected = [np.corrcoef(f[:, k], y)[0, 1] for k in range(3)]
    np.testing.assert_allclose(usefulness(f, y), expected, atol=1e-5)
    np.testing.assert_allclose(usefulness(100 * f - 7, y.long()), expected, atol=1e-4)
    np.testing.assert_allclose(usefulness(f[:, 1], y), expected[1], atol=1e-5)
    scaled = unit_variance(f)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5), np.testing.assert_allclose((scaled**2).mean(0), 1, atol=1e-5)


@pytest.mark.parametrize('ball, order', [('l2', 2), ('linf', 1)])
def test_robust_usefulness_of_a_linear_feature(ball, order):
    y, w = signs(600), torch.tensor([2., -1., .5])
    x = y[:, None] * w + torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    def f(x): return x @ w + 3
    rho, s = usefulness(f(x), y), f(x).std(correction=0)
    for eps in (0., .1, 1., 4.):
        seen = robust_usefulness(f, x, y, ball, eps)
        torch.testing.assert_close(seen, rho - eps * torch.linalg.vector_norm(w, order) / s, rtol=0, atol=1e-4)
        torch.testing.assert_close(robust_usefulness(lambda x: 10 * f(x) - 1, x, y, ball, eps), seen, rtol=0, atol=1e-4)


def test_the_worst_case_stays_in_the_set_and_never_gains():
    y, g = signs(100), torch.Generator().manual_seed(0)
    x = torch.rand(100, 1, 4, 4, generator=g)
    def f(x): return (3 * x).sin().flatten(1).sum(1)
    for ball, order in (('l2', 2), ('linf', math.inf)):
        adv = worst_case(f, x, y, ball, .3)
        assert torch.linalg.vector_norm((adv - x).flatten(1), order, dim=1).max() < .3 + 1e-5
        assert (y * (f(adv) - f(x)) < 0).all() and not adv.requires_grad


FEATURES = {
    'wave': lambda x: (40 * x[:, 0]).sin(), 'length': lambda x: x[:, :2].square().sum(1), 'step': lambda x: (50 * x[:, 0]).tanh(),
    'fold': lambda x: x.abs().sum(1), 'ripple': lambda x: x[:, 0] + .1 * (300 * x).sin().sum(1)}


@pytest.mark.parametrize('ball, order', [('l2', 2), ('linf', math.inf)])
@pytest.mark.parametrize('f', FEATURES.values(), ids=FEATURES)
def test_the_worst_case_is_never_better_than_the_image(f, ball, order):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 8, generator=g), torch.where(torch.rand(300, generator=g) < .5, -1, 1)
    for eps in (0., .05, .5, 3.):
        adv = worst_case(f, x, y, ball, eps)
        assert (y * f(adv) <= y * f(x)).all() and torch.linalg.vector_norm(adv - x, order, dim=1).max() <= eps * (1 + 1e-5) + 1e-6
        assert robust_usefulness(f, x, y, ball, eps) <= usefulness(f(x), y)


def test_a_feature_without_gradient_or_with_nan_is_named():
    x, y = torch.rand(10, 4), signs(10)
    for f in (lambda x: x.detach().sum(1), torch.no_grad()(lambda x: x.sum(1))):
        with pytest.raises(ValueError, match='no gradient'): worst_case(f, x, y, 'l2', .1)
    assert worst_case(lambda x: torch.ones(len(x)), x, y, 'l2', .1).equal(x)
    x[:3, 0] = 0
    with pytest.warns(RuntimeWarning, match='3 of 10'): adv = worst_case(lambda x: x.square().sqrt().sum(1), x, y, 'l2', .1)
    assert adv.isfinite().all()
    with pytest.raises(ValueError, match='one value for each'): worst_case(lambda x: x, x, y, 'l2', .1)
    with pytest.raises(ValueError, match='ball'): worst_case(lambda x: x.sum(1), x, y, 'l1', .1)


def test_a_root_of_the_pixels_is_named(images):
    x, y = images
    class Gamma(nn.Module):
        def __init__(self): super().__init__(); self.net = conv_net()
        def forward(self, x): return self.net(x.sqrt())
    with pytest.raises(ValueError, match='may leave'): ligs(Gamma(), x.clamp(.001, .002), y, sigma=.1)


def test_whole_numbers_given_as_floats(images):
    assert ligs(conv_net(), *images, draws=2., batch_size=np.int64(7)).equal(ligs(conv_net(), *images, draws=2, batch_size=7))


@pytest.mark.parametrize('f, y, says', [
    (torch.randn(4), torch.tensor([0, 1, 0, 1]), 'pass 2 \\* y - 1'), (torch.randn(4), signs(6), 'one label for each'),
    (torch.full((1000,), .1), signs(1000), 'Leave this feature out'), (torch.randn(4), torch.tensor([True, False, True, True]), 'pass 2 \\* y - 1'),
    (torch.ones(4), signs(4), 'Leave this feature out'), (torch.ones(1), torch.ones(1), 'Leave this feature out')])
def test_bad_features_are_named(f, y, says):
    with pytest.raises(ValueError, match=says): usefulness(f, y)


def test_a_feature_without_gradient_is_an_error_and_one_that_changes_its_images_is_right():
    x, y, w = torch.rand(200, 4), signs(200), torch.tensor([.6, -.3, 0., .1])
    for f in (lambda x: torch.sign(x @ w - .2), lambda x: torch.round(50 * (x @ w))):
        with pytest.raises(ValueError, match='gradient 0 at every image'): robust_usefulness(f, x, y, 'l2', .1)
    def apart(x): return (x - .5).square().sum(1) - .1 * x[:, 0]
    def in_place(x):
        x = x.sub_(.5)
        return x.square().sum(1) - .1 * (x[:, 0] + .5)
    before = x.clone()
    torch.testing.assert_close(robust_usefulness(in_place, x, y, 'l2', .02), robust_usefulness(apart, x, y, 'l2', .02), rtol=0, atol=1e-4)
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match='gradient'): robust_usefulness(lambda x: (x @ w).detach(), x, y, 'l2', .1)


def test_whole_numbers_are_a_feature():
    predictions = torch.tensor([1, -1, 1, 1])
    torch.testing.assert_close(usefulness(predictions, predictions.float()), usefulness(predictions.float(), predictions.float()))


def test_a_seed_may_be_a_whole_float(images):
    assert ligs(conv_net(), *images, seed=2.).equal(ligs(conv_net(), *images, seed=2))
