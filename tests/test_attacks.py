"""Attacks: the result is right, does not depend on the batch size, and leaves the model unchanged."""
import argparse
import importlib.util
import time
import warnings
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nrf_repro.attacks import (
    LOSSES, PAPER_ATTACKS, Attack, PerturbationSet, frozen, gradient_underflows, image_noise, input_gradient, margin,
    optimised_inference, robust_correct)
from nrf_repro.attacks import PERTURBATION_SETS as BALLS
from nrf_repro.attacks import inference, inputs, search
from nrf_repro.attacks.pgd import project_l2, start_l2, steepest_l2
from nrf_repro.attacks.search import Evaluation, _Best, _report_gradients, _search
from nrf_repro.features import ligs
from nrf_repro.models import build_model

ORDER = dict(l2=2, linf=torch.inf)
ATTACKS = {(ball, loss): Attack(ball, eps, loss, steps=6, step_size=eps / 3)
           for ball, eps in (('l2', .4), ('linf', 8 / 255)) for loss in LOSSES}


def conv_net(channels=1, classes=5, bn=True, seed=0):
    "A small float64 network in eval mode whose batch norms have statistics and weights of their own."
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d if bn else (lambda c: nn.Identity())
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), norm(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), norm(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, .2), m.running_var.uniform_(.2, .6)
            m.weight.data.uniform_(.5, 2), m.bias.data.normal_(0, .2)
    return net.double().eval()


def batch(n=23, channels=1, seed=0):
    return torch.rand(n, channels, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=['bn', 'none'])
def net(request): return conv_net(bn=request.param == 'bn')


@pytest.fixture
def x(): return batch()


def answers(net, x): return net(x).argmax(1)


def size(attack, delta): return delta.flatten(1).norm(ORDER[attack.ball], dim=1)


class Linear2(nn.Module):
    "Logits w.x + b and 0; it has no parameters."
    def __init__(self, w, b): super().__init__(); self.w, self.b = w, b

    def forward(self, x):
        z = x.flatten(1) @ self.w + self.b
        return torch.stack([z, torch.zeros_like(z)], 1)


class Scaled(nn.Module):
    def __init__(self, net, by): super().__init__(); self.net, self.by = net, by
    def forward(self, x): return self.by * self.net(x)


@pytest.fixture
def linear():
    x = .4 + .2 * batch(40)
    w = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Linear2(w, -(x.flatten(1) @ w).median()), x


# known answers

@pytest.mark.parametrize('steps', [1, 2, 7])
@pytest.mark.parametrize('ball', BALLS)
def test_equals_torchattacks_step_for_step(net, x, ball, steps):
    torchattacks = pytest.importorskip('torchattacks')
    theirs = dict(l2=torchattacks.PGDL2, linf=torchattacks.PGD)[ball]
    a = replace(ATTACKS[ball, 'ce'], steps=steps)
    y = torch.arange(len(x)) % 5
    want = theirs(net, eps=a.eps, alpha=a.step_size, steps=steps, random_start=False)(x, y)
    assert (want - x).abs().max() > .01
    torch.testing.assert_close(a(net, x, y), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('ball, dual, worst', [('l2', 2, lambda w: w / w.norm()), ('linf', 1, torch.sign)])
def test_closed_form_on_a_linear_model(linear, ball, dual, worst, loss):
    model, x = linear
    y = answers(model, x)
    distance = model(x)[:, 0].abs() / model.w.norm(dual)
    eps = distance.median().item() * 1.001
    a = Attack(ball, eps, loss, steps=8, step_size=eps / 4)
    way = torch.where(y == 0, -1., 1.).view(-1, 1, 1, 1) * worst(model.w).view(1, 1, 8, 8)
    torch.testing.assert_close(a(model, x, y), x + eps * way, rtol=0, atol=1e-9)
    for criterion in ('any_step', 'last_step'):
        assert torch.equal(robust_correct(model, x, y, a, criterion=criterion), distance > eps)
    assert 10 < (distance > eps).sum() < 30


def test_a_targeted_attack_on_two_classes_equals_an_untargeted_one(linear):
    model, x = linear
    y = answers(model, x)
    a = Attack('l2', .05, 'ce', 5, .02)
    assert torch.equal(replace(a, targeted=True)(model, x, 1 - y), a(model, x, y))


@pytest.mark.parametrize('loss', LOSSES)
def test_targeted_reaches_its_target(x, loss):
    net = conv_net()
    y = answers(net, x)
    aim = (y + 1) % 5
    a = Attack('l2', 3., loss, 20, .4, targeted=True)
    reached = answers(net, a(net, x, aim)) == aim
    assert reached.float().mean() > .9
    assert not robust_correct(net, x, y, a, target=aim, criterion='last_step')[reached].any()


@pytest.mark.parametrize('key', ATTACKS)
def test_points_stay_in_the_perturbation_set_and_in_0_to_1(net, x, key):
    a = ATTACKS[key]
    adv = a(net, x, answers(net, x))
    assert 0 <= adv.min() and adv.max() <= 1
    assert size(a, adv - x).max() <= a.eps * (1 + 1e-9)
    assert size(a, adv - x).median() > a.eps / 2 and not adv.requires_grad


@pytest.mark.parametrize('key', ATTACKS)
def test_monotone_in_eps(net, x, key):
    y = answers(net, x)
    a = ATTACKS[key]
    left = [robust_correct(net, x, y, replace(a, eps=k * a.eps, step_size=(k or 1) * a.step_size)).sum().item()
            for k in (0, .25, 1, 4, 16)]
    assert left == sorted(left, reverse=True) and left[0] == len(x) and left[-1] < len(x) / 2


def test_paper_attacks_are_as_printed():
    assert {k: (a.ball, a.eps, a.loss) for k, a in PAPER_ATTACKS.items()} == dict(
        pgd_l2=('l2', .25, 'ce'), pgd_linf=('linf', 1 / 255, 'ce'),
        cw_l2=('l2', .25, 'cw'), cw_linf=('linf', 1 / 255, 'cw'))
    assert {(a.steps, a.step_size) for a in PAPER_ATTACKS.values()} == {(10, .1), (10, .001)}
    assert not any(a.random_start or a.targeted for a in PAPER_ATTACKS.values())


# the two criteria

@pytest.mark.parametrize('key', ATTACKS)
def test_criteria_equal_their_definitions(net, x, key):
    y = answers(net, x)
    y[:3] = (y[:3] + 1) % 5                                    # three are wrong from the start
    a = replace(ATTACKS[key], eps=4 * ATTACKS[key].eps, step_size=8 * ATTACKS[key].eps)   # long steps: some come back
    iterates = [x] + [replace(a, steps=t)(net, x, y) for t in range(1, 7)]
    each = torch.stack([answers(net, adv) == y for adv in iterates])
    assert torch.equal(robust_correct(net, x, y, a), each.all(0))
    assert torch.equal(robust_correct(net, x, y, a, criterion='last_step'), each[-1])


def test_misclassified_images_are_not_processed_again(x):
    class Counting(nn.Module):
        seen = []
        def __init__(self, net): super().__init__(); self.net = net
        def forward(self, x): Counting.seen.append(len(x)); return self.net(x)
    net = Counting(conv_net())
    y = answers(net, x)
    y[:20] = (y[:20] + 1) % 5
    Counting.seen.clear()
    robust_correct(net, x, y, ATTACKS['l2', 'ce'], batch_size=4)
    shown = list(Counting.seen)
    assert sum(shown) < len(x) + 6 * 3 + 100                   # 20 leave at once; the rest is the preparation's
    assert shown.count(3) >= 6                                 # the three that are left share a batch


# the batch size does not change the result

@pytest.mark.parametrize('criterion', ['any_step', 'last_step'])
@pytest.mark.parametrize('random_start', [False, True])
@pytest.mark.parametrize('key', ATTACKS)
def test_batches_do_not_matter(x, key, random_start, criterion):
    net = conv_net()
    y = answers(net, x)
    a = replace(ATTACKS[key], random_start=random_start, restarts=2 if random_start else 1)
    whole = robust_correct(net, x, y, a, criterion=criterion)
    assert 0 < whole.sum() < len(x) or key[0] == 'linf'
    for bs in (1, 7, 23): assert torch.equal(robust_correct(net, x, y, a, batch_size=bs, criterion=criterion), whole)
    order = torch.randperm(len(x))
    assert torch.equal(robust_correct(net, x[order], y[order], a, batch_size=5, criterion=criterion), whole[order])
    parts = torch.cat([a(net, xb, yb) for xb, yb in zip(x.split(7), y.split(7))])
    torch.testing.assert_close(parts, a(net, x, y), rtol=0, atol=1e-9)


def test_noise_depends_on_the_image_alone(x):
    noise = image_noise(x, seed=3)
    assert torch.equal(image_noise(x[5:6], seed=3), noise[5:6]) and noise.dtype == x.dtype
    assert not torch.equal(image_noise(x, seed=4), noise) and not torch.equal(image_noise(x, seed=3, draw=1), noise)
    assert len(torch.unique(noise)) > .99 * noise.numel()
    turned = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)                # the same pixels in another order
    assert torch.equal(image_noise(turned, seed=3), noise)


@pytest.mark.parametrize('ball', BALLS)
def test_starts_lie_in_the_set_and_depend_on_the_seed(x, ball):
    start = BALLS[ball].random
    delta = start(x, .3, 0, 0)
    length = delta.flatten(1).norm(ORDER[ball], dim=1)
    assert length.max() <= .3 + 1e-7 and length.min() > 0
    assert not torch.equal(start(x, .3, 1, 0), delta) and not torch.equal(start(x, .3, 0, 1), delta)


def test_restarts_keep_the_best_of_each_image(net, x):
    y = answers(net, x)
    a = Attack('l2', .5, 'cw', 1, .02, random_start=True)      # so short that the start decides
    one, three = margin(net(a(net, x, y)), y), margin(net(replace(a, restarts=3)(net, x, y)), y)
    assert (three >= one).all() and (three > one).any()
    aim = (y + 1) % 5
    t = replace(a, targeted=True)
    one, three = margin(net(t(net, x, aim)), aim), margin(net(replace(t, restarts=3)(net, x, aim)), aim)
    assert (three <= one).all() and (three < one).any()
    left = [robust_correct(net, x, y, replace(a, restarts=r)) for r in (1, 2, 6)]
    assert (left[1] <= left[0]).all() and (left[2] <= left[1]).all()


# the model is returned unchanged

CALLS = {
    'attack': lambda net, x, y: Attack('l2', .3, 'ce', 2, .2, random_start=True)(net, x, y),
    'any': lambda net, x, y: robust_correct(net, x, y, ATTACKS['l2', 'ce'], batch_size=9),
    'last': lambda net, x, y: robust_correct(net, x, y, ATTACKS['linf', 'cw'], criterion='last_step'),
    'gradient': lambda net, x, y: input_gradient(net, x, y),
    'plain gradient': lambda net, x, y: input_gradient(net, x, y, stable=False),
    'underflows': lambda net, x, y: gradient_underflows(net, x, y),
}


def untidy():
    net = conv_net().train()
    net[4].eval(), net[1].eval()
    net[0].weight.requires_grad_(False)
    net[8].weight.grad = torch.ones_like(net[8].weight)
    return net


def everything(net, x, y):
    return ([m.training for m in net.modules()], [p.requires_grad for p in net.parameters()],
            [None if p.grad is None else p.grad.clone() for p in net.parameters()],
            {k: v.clone() for k, v in net.state_dict().items()}, [len(m._forward_hooks) for m in net.modules()],
            x.clone(), y.clone(), x.requires_grad, x.grad, torch.get_rng_state(), np.random.get_state()[1].copy(),
            torch.is_grad_enabled())


def same(a, b):
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b) if isinstance(a, (torch.Tensor, np.ndarray)) else a == b


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_the_model_is_unchanged(x, call):
    net, y = untidy(), torch.arange(len(x)) % 5
    before = everything(net, x, y)
    call(net, x, y)
    assert same(everything(net, x, y), before)


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_the_model_is_unchanged_after_an_error(x, call):
    net, y = untidy(), torch.full((len(x),), 7)                # a class that the network doesn't have
    before = everything(net, x, y)
    with pytest.raises(ValueError, match='y holds 7'): call(net, x, y)
    assert same(everything(net, x, y), before)


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(x, call, context):
    net, y = conv_net(), torch.arange(len(x)) % 5
    want = call(net, x, y)
    with context(): assert torch.equal(call(net, x.clone(), y.clone()), want)


def test_the_model_is_evaluated_in_eval_mode(x):
    net = conv_net()
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    want = robust_correct(net, x, y, a), a(net, x, y)
    net.train()
    assert torch.equal(robust_correct(net, x, y, a), want[0]) and torch.equal(a(net, x, y), want[1])


# gradients that do not underflow

@pytest.mark.parametrize('loss', LOSSES)
def test_the_stable_gradient_points_where_the_exact_one_does(net, x, loss):
    y = torch.arange(len(x)) % 5
    stable, plain = (steepest_l2(input_gradient(net, x, y, loss=loss, stable=s)) for s in (True, False))
    torch.testing.assert_close(stable, plain, rtol=0, atol=1e-9)
    torch.testing.assert_close(input_gradient(net, x, None, loss=loss, target=y),
                               -input_gradient(net, x, y, loss=loss), rtol=0, atol=1e-12)


def test_the_plain_gradient_is_autograds(net, x):
    y = torch.arange(len(x)) % 5
    v = x.clone().requires_grad_()
    want, = torch.autograd.grad(F.cross_entropy(net(v), y, reduction='sum'), v)
    torch.testing.assert_close(input_gradient(net, x, y, stable=False), want)


def test_saturated_logits_stop_torchattacks_but_not_the_stable_gradient():
    torchattacks = pytest.importorskip('torchattacks')
    net, x = conv_net().float(), batch(60).float()
    y, a = answers(net, x), Attack('l2', 1., 'ce', 10, .25)
    scaled = Scaled(net, 1e5).eval()
    plain = torchattacks.PGDL2(scaled, eps=a.eps, alpha=a.step_size, steps=a.steps, random_start=False)(x, y)
    unscaled, ours = (robust_correct(m, x, y, a, criterion='last_step').float().mean() for m in (net, scaled))
    assert ours <= unscaled + .05 < .6
    assert (answers(scaled, plain) == y).float().mean() > ours + .25
    assert gradient_underflows(scaled, x, y).float().mean() > .8 and not gradient_underflows(net, x, y).any()


def test_a_saturated_image_has_the_gradient_of_float64():
    net, x = conv_net(), batch(200)
    gap = -margin(net(x), answers(net, x))
    by = (30 / gap.max()).item()                               # at 37 float64 fails, at 17 float32
    x = x[gap * by > 20]
    y = answers(net, x)
    exact = input_gradient(Scaled(net, by), x, y, stable=False)
    low = Scaled(deepcopy(net).float(), by)
    agree = [F.cosine_similarity(steepest_l2(input_gradient(low, x.float(), y, stable=s)).double().flatten(1),
                                 steepest_l2(exact).flatten(1)) for s in (True, False)]
    assert len(x) > 3 and agree[0].min() > .9999 and agree[1].max() < .99


def test_a_short_gradient_gives_a_full_step(x):
    faint = Scaled(conv_net().float(), 1e-25)
    y, a = torch.arange(len(x)) % 5, Attack('l2', .5, 'ce', 1, .1)
    assert size(a, a(faint, x.float(), y) - x.float()).min() > .05


def test_a_model_that_ignores_the_image(x):
    class Constant(nn.Module):
        def forward(self, x): return torch.eye(5, dtype=x.dtype)[:1].expand(len(x), 5)
    y = torch.zeros(len(x), dtype=torch.long)
    assert not input_gradient(Constant(), x, y).any() and gradient_underflows(Constant(), x, y).all()
    assert robust_correct(Constant(), x, y, ATTACKS['l2', 'ce']).all()
    assert not robust_correct(Constant(), x, y + 1, ATTACKS['l2', 'ce']).any()


def test_the_label_is_masked_not_multiplied():
    class Negative(nn.Module):
        def forward(self, x): return torch.stack([-1 - x[:, 0], -2 + x[:, 1], -9 + x[:, 2]], 1)
    x = torch.full((1, 3), .5)
    g = input_gradient(Negative(), x, torch.tensor([0]), loss='cw')
    assert g[0, 0] > 0 and g[0, 1] > 0 and g[0, 2] == 0


# inputs

@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_grey_and_colour_in_single_and_double(channels, dtype):
    net, x = conv_net(channels).to(dtype), batch(9, channels).to(dtype)
    y = answers(net, x)
    adv = ATTACKS['linf', 'ce'](net, x, y.int())
    assert adv.shape == x.shape and adv.dtype == dtype
    ok = robust_correct(net, x, y, Attack('l2', 5., 'ce', 10, 1.))
    assert ok.dtype == torch.bool and ok.shape == y.shape and not ok.any()


def test_no_images(net):
    x, y = batch(0), torch.zeros(0, dtype=torch.long)
    assert ATTACKS['l2', 'ce'](net, x, y).shape == x.shape == input_gradient(net, x, y).shape
    assert robust_correct(net, x, y, ATTACKS['l2', 'ce']).shape == (0,) == gradient_underflows(net, x, y).shape


Y = torch.arange(23) % 5
BAD_INPUT = {
    'is torch.uint8': lambda x: (x.byte(), Y), 'is torch.bfloat16': lambda x: (x.bfloat16(), Y),
    r'lies in \[.*255\]': lambda x: (x / x.max() * 255, Y), r'lies in \[-': lambda x: (x - .1, Y),
    'NaN': lambda x: (x.index_fill(0, torch.tensor(3), torch.nan), Y), 'infinity': lambda x: (x / 0, Y),
    'labels start at 0': lambda x: (x, Y - 1), 'the model knows 0 to 4': lambda x: (x, Y + 1),
    'y is torch.float64': lambda x: (x, Y.double()), 'y is torch.bool': lambda x: (x, Y > 1),
    r'y has shape \(23, 5\)': lambda x: (x, F.one_hot(Y)), 'one label per image': lambda x: (x, Y[:4]),
    'batch axis': lambda x: (x.flatten()[:23], Y),
}


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
@pytest.mark.parametrize('words, bad', BAD_INPUT.items(), ids=BAD_INPUT)
def test_bad_input_is_named(x, call, words, bad):
    with pytest.raises(ValueError, match=words): call(conv_net(), *bad(x))


def test_bad_models_are_named(x):
    with pytest.raises(TypeError, match='Pass an nn.Module'): input_gradient(lambda v: v, x, Y)
    broken = conv_net()
    broken[8].weight.data.fill_(torch.nan)
    for call in CALLS.values():
        with pytest.raises(ValueError, match='NaN or infinite logits'): call(broken, x, Y)
        with pytest.raises(ValueError, match='n x k logits'): call(nn.Flatten(0), x, Y)


@pytest.mark.parametrize('field, value', [
    ('ball', 'l1'), ('loss', 'kl'), ('eps', -.1), ('eps', float('nan')), ('eps', float('inf')), ('steps', 0),
    ('steps', 1.5), ('step_size', 0), ('step_size', float('nan')), ('restarts', 0), ('restarts', 2), ('seed', -1)])
def test_bad_attacks_are_named(field, value):
    with pytest.raises(ValueError, match=field): replace(PAPER_ATTACKS['pgd_l2'], **{field: value})


@pytest.mark.parametrize('word, options', [
    ('criterion', dict(criterion='first')), ('batch_size', dict(batch_size=2.5)), ('batch_size', dict(batch_size=0)), ('target', dict(target=Y))])
def test_bad_options_are_named(x, word, options):
    with pytest.raises(ValueError, match=word): robust_correct(conv_net(), x, Y, ATTACKS['l2', 'ce'], **options)
    with pytest.raises(ValueError, match='target'):
        robust_correct(conv_net(), x, Y, replace(ATTACKS['l2', 'ce'], targeted=True))
    with pytest.raises(ValueError, match='loss'): input_gradient(conv_net(), x, Y, loss='mse')


# the fast copy

def batchnorms(net): return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


def check_copy(net, x, norms_left):
    "The copy gives the same logits and gradients, and has this many batch norms left."
    with optimised_inference(net, x) as fast:
        torch.testing.assert_close(fast(x), net(x), rtol=0, atol=1e-8 * net(x).abs().max().item())
        torch.testing.assert_close(input_gradient(fast, x, Y), input_gradient(net, x, Y), rtol=0, atol=1e-8)
        assert batchnorms(fast) == norms_left
    check_answers(net, x)
    return fast


def check_answers(net, x):
    "Folded or not, `robust_correct` equals the definition."
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    want = answers(net, a(net, x, y)) == y
    assert torch.equal(robust_correct(net, x, y, a, criterion='last_step'), want)


def test_batch_norm_is_folded_and_the_original_kept(x):
    net = conv_net()
    fast = check_copy(net, x, 0)
    assert batchnorms(net) == 2 and fast is not net


class Block(nn.Module):
    "Whatever `forward` does with a convolution, its norm and a ReLU; then a linear layer."
    def __init__(self, forward, **options):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, **options)
        self.relu, self.pool, self.head = nn.ReLU(), nn.MaxPool2d(2), nn.LazyLinear(5)
        if self.bn.running_var is not None: self.bn.running_var.uniform_(.2, .6), self.bn.running_mean.normal_(0, .2)
        self.do = forward
        self.double().eval()(batch(2, 3))

    def forward(self, x): return self.head(self.do(self, x).flatten(1))


def residual(m, x):
    h = m.conv(x)
    return m.relu(m.bn(h) + h)                                 # the norm isn't the only reader


def pool_beside(m, x):
    h = m.relu(m.bn(m.conv(x)))
    return torch.cat([m.pool(h).flatten(1), h.flatten(1)], 1)  # the pool isn't the only reader


ODD = {  # forward, options of the norm, norms left
    'residual': (residual, {}, 1),
    'pool beside': (pool_beside, {}, 0),
    'relu between': (lambda m, x: m.bn(F.relu(m.conv(x))), {}, 1),
    'relu between, in place': (lambda m, x: m.bn(F.relu_(m.conv(x))), {}, 1),
    'norm first': (lambda m, x: m.conv(m.bn(x.repeat(1, 3, 1, 1)[:, :8])[:, :3]), {}, 1),
    'norm twice': (lambda m, x: m.bn(m.bn(m.conv(x))), {}, 1),
    'layer twice': (lambda m, x: m.bn(m.conv(m.conv(x)[:, :3])), {}, 1),
    'relu twice': (lambda m, x: m.pool(m.relu(m.bn(m.conv(m.relu(x - .5))))), {}, 0),
    'not affine': (lambda m, x: m.relu(m.bn(m.conv(x))), dict(affine=False), 0),
    'batch statistics': (lambda m, x: m.relu(m.bn(m.conv(x))), dict(track_running_stats=False), 1),
    'control flow': (lambda m, x: m.bn(m.conv(x)) if float(x.detach().sum()) > 0 and len(x) else x, {}, 1),
    'view': (lambda m, x: m.pool(m.relu(m.bn(m.conv(x)))).view(x.shape[0], -1), {}, 0),   # refuses channels last
}


@pytest.mark.filterwarnings('ignore:Lazy')
@pytest.mark.parametrize('forward, options, left', ODD.values(), ids=ODD)
def test_unusual_networks_are_folded_correctly_or_not_at_all(forward, options, left):
    check_copy(Block(forward, **options), batch(channels=3), left)


def test_a_model_that_cannot_be_copied_is_attacked_itself(x):
    class Stubborn(nn.Module):
        def __init__(self): super().__init__(); self.net = conv_net()
        def __deepcopy__(self, memo): raise RuntimeError('there is but one of me')
        def forward(self, x): return self.net(x)
    net = Stubborn()
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    with optimised_inference(net, x) as fast: assert fast is net
    assert torch.equal(robust_correct(net, x, y, a), robust_correct(net.net, x, y, a))


def test_runs_under_autocast():
    net, x = conv_net().float(), batch().float()
    with torch.autocast('cpu', torch.bfloat16):
        adv = Attack('l2', 3., 'ce', 5, 1.)(net, x, answers(net, x))
    assert adv.dtype == torch.float32 and (answers(net, adv) != answers(net, x)).float().mean() > .8


# the benchmark compares the same work

@pytest.mark.parametrize('key', ATTACKS)
def test_the_benchmark_compares_like_with_like(net, x, key, monkeypatch):
    path = Path(__file__).parents[1] / 'bench' / 'attacks.py'
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location('bench_attacks', path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    y, a = answers(net, x), ATTACKS[key]
    torch.testing.assert_close(bench.plain_loop(net, x, y, a), a(net, x, y), rtol=0, atol=1e-7)
    options = argparse.Namespace(batch_size=9, repeats=2, clock=time.perf_counter, device='cpu')
    rows = bench.compare(net, x, y, a, options)
    assert {r['rival'] for r in rows} >= {'plain'} and all(r['robust'][r['rival']] == r['robust']['same work'] for r in rows)
    assert all(r['robust']['early exit'] <= r['robust']['same work'] and len(r['ratios']['early exit']) == 2 for r in rows)
    alone = bench.rewrites(net, x, y, options)
    assert alone.keys() == {'fold', 'channels last', 'lean ReLUs', 'all'} and all(len(r) == 2 and min(r) > 0 for r in alone.values())
    about = dict(network='net bn', attack='a', steps=6)
    assert bench.table([about | r for r in rows]).count('\n') == len(rows) + 1


# gradients in bfloat16

@pytest.mark.parametrize('criterion', ['any_step', 'last_step'])
def test_gradients_in_bfloat16_change_results_by_chance_only(net, x, criterion):
    y = answers(net, x)
    for key, a in ATTACKS.items():
        fine, rough = (robust_correct(net, x, y, a, criterion=criterion, bf16=b) for b in (False, True))
        assert (fine != rough).float().mean() <= .15, key
        assert not any(p.dtype == torch.bfloat16 for p in net.parameters())
        nothing = replace(a, eps=0., random_start=False, restarts=1)
        assert robust_correct(net, x, y, nothing, criterion=criterion, bf16=True).all()


SEEN = set()    # the precisions in which it was asked

class Twofold(nn.Module):
    "Correct in float32, always wrong in bfloat16."
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.eye(2))
    def forward(self, x):
        z = x.flatten(1)[:, :2] @ self.w
        SEEN.add(z.dtype)
        return -z if z.dtype == torch.bfloat16 else z


def test_misclassifications_by_the_bfloat16_copy_are_confirmed():
    x = torch.tensor([[.9, .1], [.2, .8]])
    y = torch.tensor([0, 1])
    a = Attack('linf', .01, 'cw', steps=3, step_size=.01)
    SEEN.clear()
    assert robust_correct(Twofold(), x, y, a).all() and SEEN == {torch.float32}
    assert robust_correct(Twofold(), x, y, a, bf16=True).all() and SEEN == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize('steps, fine', [(1, 1), (9, 1), (10, 1), (11, 2), (50, 5)])
@pytest.mark.parametrize('criterion', ['any_step', 'last_step'])
def test_the_last_tenth_of_the_steps_is_taken_in_full_precision(steps, fine, criterion):
    asked = []
    class Noted(Twofold):
        def forward(self, x):
            asked.append((x.dtype, x.requires_grad))      # a gradient is asked for where the input wants one
            return super().forward(x).abs() * torch.tensor([1., -1.], dtype=x.dtype)     # always class 0: nobody falls
    x, y = torch.tensor([[.9, .1]]), torch.tensor([0])
    assert robust_correct(Noted(), x, y, Attack('linf', .01, 'cw', steps, .001), criterion=criterion, bf16=True).all()
    climbs = [dtype for dtype, wanted in asked if wanted][-steps:]
    assert climbs == [torch.bfloat16] * (steps - fine) + [torch.float32] * fine


# the copy made for speed computes the same function, or it is not used

TINY = Attack('l2', 1e-9, 'ce', 1, 1e-9)


class Scripted(nn.Module):
    "A function of three layers: a convolution, its norm, a convolution."
    def __init__(self, f, seed=0, norm=nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.bn, self.next, self.head = nn.Conv2d(3, 6, 3, padding=1), norm(6), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6 * 64, 5)
        self.bn.running_mean.normal_(0, .5), self.bn.running_var.uniform_(.01, .2)
        self.f = f

    def forward(self, x): return self.head(self.f(self, x).flatten(1))


class Capped(nn.BatchNorm2d):
    "Clips what two dark images never reach."
    def forward(self, x): return super().forward(x).clamp(-2, 2)


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x
    @staticmethod
    def backward(ctx, g): return g.clamp(-1e-3, 1e-3)


class BackwardBN(nn.BatchNorm2d):
    def forward(self, x): return Clip.apply(super().forward(x))


def plain(m, x): return F.relu(m.bn(m.conv(x)))
def hook(name, kind, f): return lambda m: getattr(getattr(m, name), f'register_{kind}')(f)
def nothing(m): pass
def own_forward(m): m.bn.forward = lambda h, was=m.bn.forward: was(h).clamp(-2, 2)
def parametrised(m): nn.utils.parametrizations.weight_norm(m.conv)
def masked(m): m.register_module('head', nn.Sequential(m.head, Masked(-1e9)))
def switched_off(m): m.register_module('head', nn.Sequential(m.head, Masked(-float('inf'))))
def offset(m): m.head.bias.data += 1e3


class Masked(nn.Module):
    def __init__(self, by): super().__init__(); self.by = by
    def forward(self, z): return torch.cat([z, torch.full_like(z[:, :1], self.by)], 1)


FUNCTIONS = {
    'plain': plain,
    'skip before the norm': lambda m, x: F.relu(m.bn(h := m.conv(x))) + 3 * h,
    'read by a view': lambda m, x: m.bn(h := m.conv(x)) + h.view(x.shape[0], 6, 8, 8),
    'skip of the image': lambda m, x: m.bn(m.conv(x)) + x.mean(1, keepdim=True),
    'norm twice': lambda m, x: m.bn(m.bn(m.conv(x))),
    'convolution twice': lambda m, x: m.bn(m.next(m.next(m.conv(x)))),
    'clamp that bites': lambda m, x: m.bn(m.conv(x).clamp(max=.35)),
    'the data decides': lambda m, x: m.bn(h if (h := m.conv(x)).max() < 1 else h.clamp(max=1)),
    'weights read elsewhere': lambda m, x: m.bn(m.conv(x)) * m.conv.weight.abs().sum() * m.bn.running_mean.sum(),
    'in place': lambda m, x: m.bn(m.conv(x).relu_()),
    'gradient of its own': lambda m, x: m.bn(Clip.apply(m.conv(x))),
    'into the image': lambda m, x: m.bn(m.conv(x.mul_(.9))),
}
CHANGES = {
    'nothing': nothing, 'own forward': own_forward, 'parametrised': parametrised, 'offset': offset, 'masked class': masked, 'switched off': switched_off,
    'forward hook on the norm': lambda m: m.bn.register_forward_hook(lambda m, i, out: out.clamp(-2, 2)),
    'pre-hook on the norm': lambda m: m.bn.register_forward_pre_hook(lambda m, i: (i[0].clamp(max=.5),)),
    'forward hook on the convolution': lambda m: m.conv.register_forward_hook(lambda m, i, out: out.clamp(max=.5)),
    'backward hook on the convolution': lambda m: m.conv.register_full_backward_hook(lambda m, gi, go: tuple(None if g is None else -g for g in gi)),
    'backward hook on the norm': lambda m: m.bn.register_full_backward_hook(lambda m, gi, go: tuple(None if g is None else -g for g in gi)),
}


def some_images(how):
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * torch.linspace(.05, 1, 24).view(-1, 1, 1, 1)
    if how == 'black first': x[:8] = 0
    if how == 'equal first': x[:12] = x[5]
    return x


def same_as_the_model(model, x):
    "Robust accuracy in a ball of size zero is clean accuracy, image by image, and a real attack is what a plain loop finds."
    z = deepcopy(model)(x.clone())
    y = z.argmax(1)
    y[::5] = (y[::5] + 1) % 5
    for criterion in ('any_step', 'last_step'):
        assert torch.equal(robust_correct(model, x, y, TINY, criterion=criterion), z.argmax(1) == y)
    a = Attack('l2', .3, 'cw', 3, .15)
    want = deepcopy(model)(a(model, x, y)).argmax(1) == y
    assert torch.equal(robust_correct(model, x, y, a, criterion='last_step'), want)
    g, h = input_gradient(model, x, y), None
    with optimised_inference(model, x) as fast: h = input_gradient(fast, x, y)
    assert ((g - h).flatten(1).norm(dim=1) <= 1e-3 * g.flatten(1).norm(dim=1)).float().mean() > .9


@pytest.mark.parametrize('images', ['dim first', 'black first', 'equal first'])
@pytest.mark.parametrize('function', FUNCTIONS.values(), ids=FUNCTIONS)
def test_no_copy_computes_another_function(function, images):
    for seed in range(2): same_as_the_model(Scripted(function, seed).eval(), some_images(images))


@pytest.mark.parametrize('images', ['dim first', 'black first'])
@pytest.mark.parametrize('norm', [nn.BatchNorm2d, Capped, BackwardBN])
@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_hooks_subclasses_and_odd_logits_are_kept(change, norm, images):
    model = Scripted(plain, norm=norm)
    change(model)
    same_as_the_model(model.eval(), some_images(images))


@pytest.mark.parametrize('function, left', [('plain', 0), ('skip of the image', 0), ('skip before the norm', 1), ('read by a view', 1), ('norm twice', 1),
                                            ('clamp that bites', 1), ('the data decides', 1), ('weights read elsewhere', 1), ('gradient of its own', 1)])
def test_a_norm_is_folded_where_the_graph_allows_it(function, left):
    with optimised_inference(Scripted(FUNCTIONS[function]).eval(), some_images('dim first')) as fast: assert batchnorms(fast) == left


def test_a_masked_class_changes_no_result():
    x = some_images('dim first')
    def net(change):
        m = Scripted(FUNCTIONS['skip before the norm'])
        change(m)
        return m.eval()
    y, a = net(nothing)(x).argmax(1), Attack('l2', .3, 'ce', 4, .1)
    ok, values = robust_correct(net(nothing), x, y, a), ligs(net(nothing), x, y)
    for change in (masked, switched_off):
        assert torch.equal(robust_correct(net(change), x, y, a), ok)
        torch.testing.assert_close(ligs(net(change), x, y), values, rtol=0, atol=1e-6)


def test_a_copy_that_differs_on_attacked_images_only_is_not_used(x, monkeypatch):
    net = conv_net()
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    want = robust_correct(net, x, y, a)

    class Deaf(nn.Module):
        "The same on the images, constant elsewhere."
        def forward(self, v): return net(x[:1].expand_as(v)) + 0 * v.flatten(1).sum(1, keepdim=True)
    monkeypatch.setattr(inference, '_optimised', lambda model, *batches: inference._Optimised(model, Deaf(), 1., 0.))
    assert torch.equal(robust_correct(net, x, y, a), want)


# the result for each image

@pytest.mark.parametrize('key', ATTACKS)
def test_a_result_equals_its_definition(net, x, key):
    y = answers(net, x)
    y[:3] = (y[:3] + 1) % 5
    k = 3 if key[0] == 'linf' else 2
    a = replace(ATTACKS[key], eps=k * ATTACKS[key].eps, step_size=k * ATTACKS[key].step_size)
    seen = a.run(net, x, y)
    points = [x] + [replace(a, steps=t)(net, x, y) for t in range(1, 7)]
    margins = torch.stack([margin(net(p), y) for p in points]).detach()                  # 7 n
    wrong = margins > 0
    first = torch.where(wrong.any(0), wrong.int().argmax(0), -1)
    assert torch.equal(seen.fooled_at, first) and seen.finite.all() and 3 < (first >= 0).sum() < len(x)
    torch.testing.assert_close(seen.margin, torch.where(first >= 0, margins.gather(0, first.clamp_min(0)[None])[0], margins.amax(0)), rtol=0, atol=1e-9)
    torch.testing.assert_close(margin(net(seen.adversarial), y), seen.margin, rtol=0, atol=1e-9)
    assert torch.equal(robust_correct(net, x, y, a), first < 0)
    torch.testing.assert_close(a.run(net, x, y, criterion='last_step').adversarial, points[-1], rtol=0, atol=1e-9)


def test_a_targeted_run_reaches_its_label(x):
    net = conv_net()
    aim = (answers(net, x) + 1) % 5
    a = Attack('l2', 3., 'cw', 20, .4, targeted=True)
    seen = a.run(net, x, aim)
    assert torch.equal(seen.fooled_at >= 0, answers(net, seen.adversarial) == aim) and (seen.fooled_at > 0).float().mean() > .9
    assert torch.equal(seen.margin < 0, seen.fooled_at >= 0)
    both = a.run(net, x, answers(net, x), target=aim)
    assert torch.equal(both.fooled_at >= 0, both.margin > 0)


def test_the_misclassified_example_is_returned(net, x):
    y, a = answers(net, x), replace(ATTACKS['l2', 'ce'], eps=1.)
    for criterion in ('any_step', 'last_step'):
        seen = robust_correct(net, x, y, a, criterion=criterion, return_adversarial=True)
        assert torch.equal(answers(net, seen.adversarial) == y, seen.correct) and (~seen.correct).any()
        assert size(a, seen.adversarial - x).max() <= a.eps * (1 + 1e-9)
        assert [by is None for by in seen.fooled_by] == seen.correct.tolist()


def test_several_attacks_at_once(net, x):
    y = answers(net, x)
    y[0] = (y[0] + 1) % 5
    attacks = {'nothing': TINY, 'l2': replace(ATTACKS['l2', 'ce'], eps=.6), 'linf': replace(ATTACKS['linf', 'cw'], eps=.1)}
    each = {name: robust_correct(net, x, y, a) for name, a in attacks.items()}
    seen = robust_correct(net, x, y, attacks, return_adversarial=True)
    want = [next((name for name in attacks if not each[name][i]), None) for i in range(len(x))]
    assert list(seen.fooled_by) == want and {'nothing', 'l2', None} <= set(want)
    assert torch.equal(robust_correct(net, x, y, [*attacks.values()]), seen.correct)
    assert robust_correct(net, x, y, [TINY], return_adversarial=True).fooled_by[:2] == (0, None)
    for wrong in ([], {}, 'pgd', [1]):
        with pytest.raises((TypeError, ValueError), match='attack'): robust_correct(net, x, y, wrong)


@pytest.mark.parametrize('restarts', [1, 3])
def test_the_clean_image_is_always_evaluated(restarts):
    class Hole(nn.Module):
        "Class 0 only where the mean pixel is within 1e-4 of .5; the gradient is zero."
        def forward(self, x):
            d = (x.flatten(1).mean(1) - .5).abs() - 1e-4
            return torch.stack([-torch.sign(d), torch.sign(d)], 1) + 0 * x.flatten(1).sum(1, keepdim=True)
    x, y = torch.full((9, 1, 4, 4), .5), torch.ones(9, dtype=torch.long)
    a = Attack('linf', 8 / 255, 'ce', 3, 2 / 255, random_start=True, restarts=restarts)
    seen = robust_correct(Hole(), x, y, a, return_adversarial=True)
    assert not seen.correct.any() and torch.equal(seen.adversarial, x) and not a.run(Hole(), x, y).fooled_at.any()


# custom sets and losses

def test_a_custom_set_and_a_custom_loss(net, x):
    y, a = answers(net, x), ATTACKS['l2', 'cw']
    class Same:
        "The l2 ball as an object."
        project, steepest, random = staticmethod(project_l2), staticmethod(steepest_l2), staticmethod(start_l2)
    own = replace(a, ball=Same(), loss=LOSSES['cw'], random_start=True)
    assert torch.equal(own(net, x, y), replace(a, random_start=True)(net, x, y)) and isinstance(hash(own), int)
    assert torch.equal(robust_correct(net, x, y, replace(a, ball=PerturbationSet(project_l2, steepest_l2, start_l2))), robust_correct(net, x, y, a))
    assert torch.equal(input_gradient(net, x, y, loss=LOSSES['cw']), input_gradient(net, x, y, loss='cw'))
    still = replace(a, loss=lambda z, y: torch.zeros_like(z))          # a loss without direction moves nothing
    assert torch.equal(still(net, x, y), x)
    for field, value in (('ball', 3), ('ball', object()), ('loss', None)):
        with pytest.raises(ValueError, match=field): replace(a, **{field: value})
    with pytest.raises(ValueError, match='dL/dlogits'): replace(a, loss=lambda z, y: z[:, 0])(net, x, y)
    with pytest.raises(ValueError, match='plain gradient'): input_gradient(net, x, y, loss=LOSSES['cw'], stable=False)


def test_the_fields_of_an_attack_by_name():
    a = Attack('l2', .25, 'ce', 10., .1, restarts=1., seed=np.int64(3))
    want = dict(ball='l2', eps=.25, loss='ce', steps=10, step_size=.1, random_start=False, restarts=1, targeted=False, seed=3)
    assert asdict(a) == want and [type(v) for v in asdict(a).values()] == [type(v) for v in want.values()]
    assert hash(a) == hash(replace(a)) and a == replace(a)


# gradients that are not finite, or not there

class Root(nn.Module):
    "The root of a square: the gradient of a black pixel is NaN."
    def forward(self, x): return (x * x).sqrt()


class Reciprocal(nn.Module):
    "The gradient of a black pixel is infinite."
    def forward(self, x): return x.sqrt()


class Contrast(nn.Module):
    "The standard deviation of a flat image has no gradient."
    def forward(self, x): return x / (x.flatten(1).var(1).sqrt() + 1).view(-1, 1, 1, 1)


class Length(nn.Module):
    "The norm of a black image has no gradient."
    def forward(self, x): return x / ((x * x).sum((1, 2, 3), keepdim=True).sqrt() + 1)


NOT_FINITE = {'root': (Root, 0.), 'reciprocal': (Reciprocal, 0.), 'contrast': (Contrast, .5), 'length': (Length, 0.)}


@pytest.mark.parametrize('how', [dict(), dict(criterion='last_step'), dict(bf16=True)], ids=['any', 'last', 'bf16'])
@pytest.mark.parametrize('ball', BALLS)
@pytest.mark.parametrize('before, level', NOT_FINITE.values(), ids=NOT_FINITE)
def test_a_gradient_that_is_not_finite_is_reported(before, level, ball, how):
    net, x = nn.Sequential(before(), conv_net()).float().eval(), .3 + .4 * batch().float()     # far from black
    x[:6] = level
    y, a = answers(net, x), replace(ATTACKS[ball, 'ce'], eps=.1)
    with pytest.warns(RuntimeWarning, match='NaN or infinite for 6 of 23 images'): ok = robust_correct(net, x, y, a, **how)
    with pytest.warns(RuntimeWarning, match='6 of 23'): adv = a(net, x, y)
    assert adv.isfinite().all() and (ok[:6] == (answers(net, x)[:6] == y[:6])).all()
    assert (adv[6:] != x[6:]).flatten(1).any(1).all() and torch.equal(a.run(net, x, y).finite, torch.arange(len(x)) >= 6)
    t = replace(a, targeted=True)
    with pytest.warns(RuntimeWarning, match='6 of 23'): assert t(net, x, (y + 1) % 5).isfinite().all()
    assert gradient_underflows(net, x, y)[:6].all()
    if before is not Reciprocal:                               # it has no value beside a black pixel
        with pytest.warns(RuntimeWarning, match='no LIGS'): assert ligs(net, x, y, sigma=1e-9)[:6].isnan().all()


@pytest.mark.parametrize('ball', BALLS)
def test_no_finite_gradient_at_all_is_an_error(ball):
    net, x = nn.Sequential(Length(), conv_net()).double().eval(), torch.zeros(7, 1, 8, 8, dtype=torch.float64)
    y, a = answers(net, x), ATTACKS[ball, 'ce']
    for call in (a, lambda *mxy: robust_correct(*mxy, a)):
        with pytest.raises(ValueError, match='7 of 7 images'): call(net, x, y)


def without_gradient(f):
    class Opaque(nn.Module):
        def __init__(self): super().__init__(); self.net = conv_net().float()
        def forward(self, x): return f(self.net, x)
    return Opaque()


NO_GRADIENT = {
    'no_grad': torch.no_grad()(lambda net, x: net(x)), 'detached image': lambda net, x: net(x.detach()), 'detached logits': lambda net, x: net(x).detach(),
    'through NumPy': lambda net, x: torch.from_numpy(net(x).detach().numpy()),
    'beside a gradient': lambda net, x: net(x.detach()) + torch.zeros(1, requires_grad=True)}


@pytest.mark.parametrize('f', NO_GRADIENT.values(), ids=NO_GRADIENT)
def test_a_model_without_gradient_is_refused(f):
    net, x = without_gradient(f), batch().float()
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    for call in (a, lambda *mxy: robust_correct(*mxy, a), input_gradient, ligs):
        with pytest.raises(ValueError, match='no gradient'): call(net, x, y)


@pytest.mark.filterwarnings('ignore')
def test_a_quantised_model_is_refused():
    base = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    try: net = torch.ao.quantization.quantize_dynamic(base, {nn.Linear}, torch.qint8)
    except (AttributeError, RuntimeError) as e: pytest.skip(str(e))
    x = batch().float()
    with pytest.raises(ValueError, match='no gradient'): robust_correct(net, x, net(x).argmax(1), ATTACKS['l2', 'ce'])


@pytest.mark.filterwarnings('ignore')
def test_reentrant_checkpoints_are_named():
    from torch.utils.checkpoint import checkpoint
    net, x = without_gradient(lambda net, x: checkpoint(net, x, use_reentrant=True)), batch().float()
    with pytest.raises(ValueError, match='use_reentrant=False'): robust_correct(net, x, Y, ATTACKS['l2', 'ce'])
    net = without_gradient(lambda net, x: checkpoint(net, x, use_reentrant=False))
    assert torch.equal(robust_correct(net, x, Y, ATTACKS['l2', 'ce']), robust_correct(net.net, x, Y, ATTACKS['l2', 'ce']))


# unusual modules

def quiet(f, *args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return f(*args, **more)


class MixedBN(nn.Module):
    "An image is normalised by its batch."
    def forward(self, x): return F.batch_norm(x, None, None, training=True)


class Adapting(nn.Module):
    "Adapts at test time: the mean of the batch is taken off."
    def forward(self, x): return x - x.mean(0, keepdim=True)


class Stubborn(nn.BatchNorm2d):
    "Stays in training mode."
    def train(self, mode=True): return super().train(True)


@pytest.mark.parametrize('batch_size', [1, 5, 11, 23])
@pytest.mark.parametrize('layer', [MixedBN, Adapting, lambda: nn.BatchNorm2d(1, track_running_stats=False), lambda: Stubborn(1)],
                         ids=['mixed', 'adapting', 'no running statistics', 'left in training mode'])
def test_a_prediction_that_depends_on_the_batch_is_reported(x, layer, batch_size):
    net = nn.Sequential(layer(), conv_net()).double()
    net.eval()
    y = conv_net()(x).argmax(1)
    for criterion in ('any_step', 'last_step'):
        with pytest.warns(RuntimeWarning, match='depends on the other images'):
            robust_correct(net, x, y, ATTACKS['l2', 'ce'], batch_size=batch_size, criterion=criterion)


@pytest.mark.parametrize('batch_size', [1, 11, 22])
@pytest.mark.parametrize('f', [lambda net, x: net(x).squeeze(), lambda net, x: F.batch_norm(net(x)[:, :, None], torch.zeros(5), torch.ones(5))[:, :, 0]])
def test_a_model_that_takes_no_single_image_is_measured(f, batch_size):
    net, x = without_gradient(f), batch().float()
    y = answers(net.net, x)
    ok = quiet(robust_correct, net, x, y, ATTACKS['l2', 'ce'], batch_size=batch_size)
    assert torch.equal(ok, robust_correct(net.net, x, y, ATTACKS['l2', 'ce']))
    assert quiet(robust_correct, net, x[:1], y[:1], ATTACKS['l2', 'ce']).shape == (1,)


@pytest.mark.parametrize('norm', ['bn', 'in', 'ln', 'gn', 'none'])
def test_our_own_networks_pass_without_a_warning(norm):
    net, x = build_model('vgg11', norm, width=1 / 16, seed=0).eval(), torch.rand(5, 3, 32, 32)
    y = answers(net, x)
    for bs in (1, 2, 256): quiet(robust_correct, net, x, y, PAPER_ATTACKS['pgd_linf'], batch_size=bs)
    with optimised_inference(net, x) as fast: assert fast is not net and batchnorms(fast) == 0


class Writing(nn.Module):
    "Changes every kind of state in forward."
    def __init__(self, how):
        super().__init__()
        self.net, self.how = conv_net(), how
        self.register_buffer('calls', torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        if self.how == 'in place': self.calls += 1
        if self.how == 'replaced': self.calls = self.calls + 1
        if self.how == 'behind autograd': self.calls.data.add_(1)
        if self.how == 'weights': self.net[0].weight.data.mul_(1.0001)
        if self.how == 'precision': self.net.float().double()
        if self.how == 'hook': self.net[1].register_forward_hook(lambda *a: None)
        if self.how == 'new parameter': self.net[0].weight = nn.Parameter(self.net[0].weight.detach() * 1.0001)
        if self.how == 'image': x.sub_(.01)
        return self.net(x)


@pytest.mark.parametrize('how', ['in place', 'replaced', 'behind autograd', 'weights', 'precision', 'hook', 'new parameter', 'image'])
@pytest.mark.parametrize('call', [*CALLS.values(), ligs], ids=[*CALLS, 'ligs'])
def test_changes_made_by_forward_are_undone(x, call, how):
    net, y = Writing(how), torch.arange(len(x)) % 5
    buffers, weights = dict(net.named_buffers()), dict(net.named_parameters())
    before = everything(net, x, y)
    call(net, x, y)
    assert same(everything(net, x, y), before)
    assert all(b is buffers[k] for k, b in net.named_buffers()) and all(p is weights[k] for k, p in net.named_parameters())


def test_images_changed_in_place_change_no_result(x):
    class Shifted(nn.Module):
        def __init__(self, f): super().__init__(); self.net, self.f = conv_net(), f
        def forward(self, x): return self.net(self.f(x))
    y = answers(conv_net(), x)
    for a in (ATTACKS['l2', 'ce'], replace(ATTACKS['linf', 'cw'], random_start=True)):
        a = replace(a, eps=3 * a.eps)
        ok = [robust_correct(Shifted(f), x, y, a) for f in (lambda x: x - .1, lambda x: x.sub_(.1))]
        assert torch.equal(*ok) and torch.equal(*(a(Shifted(f), x, y) for f in (lambda x: x - .1, lambda x: x.sub_(.1))))


@pytest.mark.filterwarnings('ignore')
def test_scripted_and_lazy_and_wrapped_models(x):
    y = answers(conv_net(), x)
    want = robust_correct(conv_net(), x, y, ATTACKS['l2', 'ce'])
    assert torch.equal(robust_correct(torch.jit.script(conv_net()), x, y, ATTACKS['l2', 'ce']), want)
    with pytest.raises(ValueError, match='Run it once'): robust_correct(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), x, y, ATTACKS['l2', 'ce'])
    with pytest.raises(TypeError, match='tuple'): robust_correct(without_gradient(lambda net, x: (net(x), x)), x.float(), y, ATTACKS['l2', 'ce'])
    with pytest.raises(ValueError, match='does not run on images of shape'): robust_correct(conv_net(), x.float(), y, ATTACKS['l2', 'ce'])


@pytest.mark.parametrize('kind', [list, np.array, torch.Tensor.int, torch.Tensor.byte, lambda y: y.to(torch.uint16), lambda y: y.numpy().astype(np.uint32)])
def test_labels_of_any_integer_type(net, x, kind):
    y = torch.arange(len(x)) % 5
    given = kind(y.tolist()) if kind in (list, np.array) else kind(y)
    a = ATTACKS['l2', 'ce']
    assert torch.equal(robust_correct(net, x, given, a), robust_correct(net, x, y, a)) and torch.equal(a(net, x, given), a(net, x, y))
    assert torch.equal(input_gradient(net, x, given), input_gradient(net, x, y)) and gradient_underflows(net, x, given).shape == y.shape


def test_input_that_is_no_tensor_is_named(net, x):
    with pytest.raises(TypeError, match='ndarray'): robust_correct(net, x.numpy(), Y, ATTACKS['l2', 'ce'])
    with pytest.raises(ValueError, match=r'1\.0000001.*clamp'): robust_correct(net, x / x.max() * 1.0000001, Y, ATTACKS['l2', 'ce'])
    with pytest.raises(ValueError, match='cannot be read as numbers'): robust_correct(net, x, ['a'] * 23, ATTACKS['l2', 'ce'])
    assert torch.equal(robust_correct(net, x, Y, ATTACKS['l2', 'ce'], batch_size=np.int64(7)), robust_correct(net, x, Y, ATTACKS['l2', 'ce'], batch_size=7.))


def test_bf16_falls_back_to_float32_with_a_warning(x):
    class Single(nn.Module):
        "Refuses all but float32."
        def __init__(self): super().__init__(); self.net = conv_net().float()
        def forward(self, x): return self.net(x @ torch.eye(8))
    net, x = Single(), x.float()
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    with pytest.warns(RuntimeWarning, match='float32 is used'): ok = robust_correct(net, x, y, a, bf16=True)
    assert torch.equal(ok, robust_correct(net, x, y, a))


# --- the search ---

@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_the_search_finds_a_known_maximum_and_stops_at_the_goal(batch_size):
    "The value is minus the distance to .7; a step moves by .1 along the sign of the gradient."
    ascent = SimpleNamespace(steps=9, restarts=1, random_start=False, _start=lambda x, restart, box: x,
                             _step=lambda x, points, g, box: points + .1 * g.sign())

    def distance(goal):
        def evaluate(points, i, step):
            value = -(points[:, 0] - .7).abs()
            return Evaluation(value, value > goal, (.7 - points).sign())
        return evaluate
    x = torch.zeros(5, 1)
    torch.testing.assert_close(_search(ascent, distance(1.), x, batch_size, stop=False).points, x + .7)
    best = _search(ascent, distance(-.45), x - .1 * torch.arange(5)[:, None], batch_size, stop=True)
    assert best.done_at.tolist() == [3, 4, 5, 6, 7]
    torch.testing.assert_close(best.points, x + .3)


def test_the_search_keeps_the_first_point_at_the_goal_and_counts_gradients_that_are_not_finite():
    best, i = _Best(torch.zeros(3, 1)), torch.arange(3)
    best.note(i, torch.full((3, 1), .1), torch.tensor([1., 1., 1.]), torch.tensor([False, True, False]), 0)
    best.note(i, torch.full((3, 1), .2), torch.tensor([2., 2., 0.]), torch.tensor([False, False, True]), 1)
    assert torch.equal(best.points.flatten(), torch.tensor([.2, .1, .2])) and best.done_at.tolist() == [-1, 0, 1]
    g = best.finite_part(i, torch.tensor([[torch.nan, 1.], [1., 2.], [torch.inf, torch.nan]]))
    assert torch.equal(g, torch.tensor([[0., 1.], [1., 2.], [0., 0.]])) and best.lost.tolist() == [False, False, True]
    best.finite[:] = False
    best.done_at[:] = -1
    with pytest.warns(RuntimeWarning, match='for 3 of 3 images'): _report_gradients(best, 1)
    best.lost[:] = True
    with pytest.raises(ValueError, match='the attack can do nothing'): _report_gradients(best, 1)


# on a GPU, reading a value waits for all computations before it

class Waits(TorchDispatchMode):
    "Counts the operations that would make the Python code wait for a GPU."
    def __init__(self): super().__init__(); self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = args[1] if name in ('index', 'index_put', 'index_put_') else ()
        self.count += name in ('_local_scalar_dense', 'nonzero', 'equal', 'masked_select') or any(
            m is not None and m.dtype == torch.bool for m in masks)
        return func(*args, **(kwargs or {}))


def waits(run):
    with Waits() as mode: run()
    return mode.count


@pytest.fixture
def gpu(monkeypatch):
    "The CPU counts as a device that is waited for."
    for module in (inputs, search, inference): monkeypatch.setattr(module, '_asynchronous', lambda t: True)


def test_the_count_of_waits_sees_each_kind(x):
    assert waits(lambda: x.max().item()) == waits(lambda: x[x > .5]) == waits(lambda: bool((x > 0).all())) == waits(lambda: x.nonzero()) == 1
    assert waits(lambda: x.mul(2).sum()) == 0


def test_steps_that_all_images_take_never_wait_for_a_gpu(net, x, gpu):
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    few, many = (waits(lambda: robust_correct(net, x, y, replace(a, steps=n), criterion='last_step')) for n in (3, 30))
    assert few == many and few > 0
    assert waits(lambda: replace(a, steps=3)(net, x, y)) == waits(lambda: replace(a, steps=30)(net, x, y))


def test_a_step_with_early_stopping_waits_once(net, x, gpu):
    y, a = answers(net, x), replace(ATTACKS['l2', 'ce'], eps=1e-4, step_size=1e-5)       # no image is misclassified
    few, many = (waits(lambda: robust_correct(net, x, y, replace(a, steps=n))) for n in (3, 30))
    assert many - few == 27


def test_ligs_waits_as_often_for_many_batches_and_draws(net, x, gpu):
    y = answers(net, x)
    assert waits(lambda: ligs(net, x, y, draws=1, batch_size=len(x))) == waits(lambda: ligs(net, x, y, draws=4, batch_size=2))


@pytest.mark.parametrize('criterion', ['any_step', 'last_step'])
def test_where_values_are_read_later_the_result_is_the_same(net, x, criterion, monkeypatch):
    y, a = answers(net, x), ATTACKS['linf', 'ce']
    want = robust_correct(net, x, y, a, criterion=criterion, return_adversarial=True)
    values = ligs(net, x, y)
    for module in (inputs, search): monkeypatch.setattr(module, '_asynchronous', lambda t: True)
    got = robust_correct(net, x, y, a, criterion=criterion, return_adversarial=True)
    assert torch.equal(got.correct, want.correct) and torch.equal(got.adversarial, want.adversarial) and got.fooled_by == want.fooled_by
    assert torch.equal(ligs(net, x, y), values)


def test_logits_that_are_read_later_still_raise(net, x, gpu):
    y, shy = answers(net, x), nn.Module()
    def forward(v):
        "NaN for every image that is not one of x."
        known = torch.isin(v, x).flatten(1).all(1)
        return torch.where(known[:, None], net(v), torch.nan)
    shy.forward = forward
    with pytest.raises(ValueError, match='NaN or infinite logits'): robust_correct(shy, x, y, ATTACKS['l2', 'ce'], batch_size=len(x))
    with pytest.raises(ValueError, match='NaN or infinite logits'): ATTACKS['l2', 'ce'](shy, x, y)
    with pytest.raises(ValueError, match=r'at x \+ v.*NaN or infinite logits'): ligs(shy, x, y, batch_size=len(x))
    with pytest.raises(ValueError, match='the model knows 0 to'): robust_correct(net, x, y + 50, ATTACKS['l2', 'ce'])


def test_ligs_is_the_same_for_weights_in_either_memory_layout():
    "So rows that are measured right after a training, and later with loaded weights, are equal."
    net = build_model('vgg11', 'bn', width=1/8, seed=0).eval()
    x, y = torch.rand(20, 3, 32, 32, generator=torch.manual_seed(0)), torch.arange(20) % 10
    other = deepcopy(net).to(memory_format=torch.channels_last)
    assert torch.equal(ligs(net, x, y), ligs(other, x, y))


def test_a_copy_is_made_on_a_gpu_only_for_many_passes(net, x, gpu, monkeypatch):
    made = []
    monkeypatch.setattr(inference, '_fastest', lambda model, x: made.append(1) or inference._Optimised(model, model))
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    robust_correct(net, x, y, replace(a, steps=inference.GPU_PASSES - 1))
    ligs(net, x, y)
    assert not made
    robust_correct(net, x, y, replace(a, steps=inference.GPU_PASSES))
    assert made


def test_a_batch_that_does_not_fit_is_halved_unless_its_size_was_given(net, x):
    y, a, sizes = answers(net, x), ATTACKS['l2', 'ce'], []
    class Small(nn.Module):
        def forward(self, v):
            sizes.append(len(v))
            if len(v) > 5: raise torch.OutOfMemoryError('CUDA out of memory')
            return net(v)
    assert torch.equal(robust_correct(Small(), x, y, a), robust_correct(net, x, y, a))
    with pytest.raises(torch.OutOfMemoryError): robust_correct(Small(), x, y, a, batch_size=len(x))


class Branched(nn.Module):
    "A ReLU whose output is read twice, one whose input is read twice, and one before a max-pooling that is read twice."
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.second, self.pool, self.third = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU()
        self.last = nn.Linear(64, 5)

    def forward(self, x):
        a = self.conv(x)
        b = self.relu(a) + a                  # the ReLU must not overwrite a
        c = self.second(b)
        return self.last((self.pool(c) + self.third(self.pool(c * 2))).flatten(1) + c.mean((1, 2, 3))[:, None])


def lean(net):
    with frozen(net): return inference.lean_relus(deepcopy(net))


def test_lean_relus_change_no_bit(net, x):
    copy = lean(net)
    assert [type(m) for m in copy[2:4]] == [nn.MaxPool2d, nn.ReLU] and copy[3].inplace and not net[2].inplace
    y = answers(net, x)
    assert torch.equal(copy(x), net(x)) and torch.equal(input_gradient(copy, x, y), input_gradient(net, x, y))


def test_a_relu_that_shares_its_input_or_output_is_left_alone(x):
    torch.manual_seed(0)
    net = Branched().double().eval()
    copy = lean(net)
    assert not any(m.inplace for m in copy.modules() if isinstance(m, nn.ReLU)) and type(copy.second) is nn.ReLU
    assert torch.equal(copy(x), net(x))


class Root(nn.Module):
    "Correct while the mean is above .54; below .5 its gradient is NaN."
    def forward(self, x):
        d = x.flatten(1).mean(1) - .5
        s = (d * (d > 0)).sqrt()
        return torch.stack([s, torch.full_like(s, .2)], 1)


def test_a_gradient_that_is_nan_only_after_success_is_no_error(recwarn):
    x, y = torch.full((4, 1, 4, 4), .6), torch.zeros(4, dtype=torch.long)
    assert not robust_correct(Root(), x, y, Attack('linf', .2, 'ce', steps=10, step_size=.12)).any() and not len(recwarn)


def test_a_series_of_labels_is_read_by_position_and_weights_of_inference_mode_are_named():
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval(), torch.rand(3, 3, 8, 8)
    for index in ([0, 2, 4], [1, 2, 3]): assert inputs.check_images(model, images, pd.Series([1, 0, 1], index=index))[1].tolist() == [1, 0, 1]
    with torch.inference_mode(): made = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    with pytest.raises(ValueError, match='torch.inference_mode'): robust_correct(made, images, torch.tensor([0, 1, 2]), Attack('l2', .1, 'ce', 1, .1))


def test_as_many_labels_as_images_for_underflow(net, x):
    for labels in (Y[:-1], torch.cat([Y, Y])):
        with pytest.raises(ValueError, match='one label per image'): gradient_underflows(net, x, labels, batch_size=len(x) - 1)
    with pytest.raises(TypeError, match='x is a ndarray'): gradient_underflows(net, x.numpy(), Y)


@pytest.mark.parametrize('field', ['eps', 'step_size'])
def test_text_is_no_number(field):
    with pytest.raises(ValueError, match=f"{field}='8/255'"): replace(PAPER_ATTACKS['pgd_l2'], **{field: '8/255'})


def test_a_loss_may_return_whole_numbers(net, x):
    signs = lambda z, y: 1 - 2 * F.one_hot(y, z.shape[1])
    whole, real = (replace(ATTACKS['l2', 'ce'], loss=f) for f in (signs, lambda z, y: signs(z, y).double()))
    assert torch.equal(whole(net, x, Y), real(net, x, Y))


def test_a_target_that_is_the_true_label_is_an_error(x):
    net, a = conv_net(), replace(ATTACKS['l2', 'ce'], targeted=True)
    aim = (Y + 1) % 5
    aim[:2] = Y[:2]
    for call in (a.run, lambda *mxy, **how: robust_correct(*mxy, a, **how)):
        with pytest.raises(ValueError, match=f'true label of 2 of {len(x)} images'): call(net, x, Y, target=aim)


class FlatNaN(nn.Module):
    "Class 0 above a mean of .5; the gradient of a black image is NaN."
    def forward(self, x):
        x = x + 0 * (x * x).flatten(1).sum(1).sqrt().view(-1, 1, 1, 1)
        z = x.flatten(1).mean(1) - .5
        return torch.stack([z, -z], 1)


def test_a_second_attack_on_images_without_gradient_is_a_warning():
    x = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), .6)])
    a, y = Attack('linf', .2, 'ce', 5, .1), torch.tensor([1, 0])
    for attack in (a, [a, a]):
        with pytest.warns(RuntimeWarning, match='NaN or infinite'): assert robust_correct(FlatNaN(), x, y, attack).tolist() == [True, False]
    with pytest.raises(ValueError, match='can do nothing'): robust_correct(FlatNaN(), x[:1], y[:1], a)
