"""What an attack owes its caller: the right answer, the same one in any batch, and the model back untouched."""
import argparse
import importlib.util
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nrf_repro.attacks import (
    BALLS, LOSSES, PAPER_ATTACKS, Attack, fast_copy, frozen, image_noise, input_gradient, margin, prepared,
    robust_correct, steepest_l2, vanished)

ORDER = dict(l2=2, linf=torch.inf)
ATTACKS = {(ball, loss): Attack(ball, eps, loss, steps=6, step_size=eps / 3)
           for ball, eps in (('l2', .4), ('linf', 8 / 255)) for loss in LOSSES}


def conv_net(channels=1, classes=5, bn=True, seed=0):
    "A small float64 network in eval mode whose batch norms have something to say."
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


# the right answer

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
    for reading in ('any', 'last'):
        assert torch.equal(robust_correct(model, x, y, a, reading=reading), distance > eps)
    assert 10 < (distance > eps).sum() < 30


def test_targeted_is_the_other_way_round(linear):
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
    assert not robust_correct(net, x, y, a, target=aim, reading='last')[reached].any()


@pytest.mark.parametrize('key', ATTACKS)
def test_stays_in_the_ball_and_in_the_box(net, x, key):
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


# the two readings

@pytest.mark.parametrize('key', ATTACKS)
def test_any_and_last_are_what_they_are_called(net, x, key):
    y = answers(net, x)
    y[:3] = (y[:3] + 1) % 5                                    # three are wrong from the start
    a = replace(ATTACKS[key], eps=4 * ATTACKS[key].eps, step_size=8 * ATTACKS[key].eps)   # long steps: some come back
    iterates = [x] + [replace(a, steps=t)(net, x, y) for t in range(1, 7)]
    each = torch.stack([answers(net, adv) == y for adv in iterates])
    assert torch.equal(robust_correct(net, x, y, a), each.all(0))
    assert torch.equal(robust_correct(net, x, y, a, reading='last'), each[-1])


def test_who_falls_costs_nothing_more(x):
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
    assert sum(shown) < len(x) + 6 * 3 + 60                    # 20 leave at once; the rest is the preparation's
    assert shown.count(3) >= 6                                 # the three that are left share a batch


# the same answer in any batch

@pytest.mark.parametrize('reading', ['any', 'last'])
@pytest.mark.parametrize('random_start', [False, True])
@pytest.mark.parametrize('key', ATTACKS)
def test_batches_do_not_matter(x, key, random_start, reading):
    net = conv_net()
    y = answers(net, x)
    a = replace(ATTACKS[key], random_start=random_start, restarts=2 if random_start else 1)
    whole = robust_correct(net, x, y, a, reading=reading)
    assert 0 < whole.sum() < len(x) or key[0] == 'linf'
    for bs in (1, 7, 23): assert torch.equal(robust_correct(net, x, y, a, batch_size=bs, reading=reading), whole)
    order = torch.randperm(len(x))
    assert torch.equal(robust_correct(net, x[order], y[order], a, batch_size=5, reading=reading), whole[order])
    parts = torch.cat([a(net, xb, yb) for xb, yb in zip(x.split(7), y.split(7))])
    torch.testing.assert_close(parts, a(net, x, y), rtol=0, atol=1e-9)


def test_noise_belongs_to_the_image(x):
    noise = image_noise(x, seed=3)
    assert torch.equal(image_noise(x[5:6], seed=3), noise[5:6]) and noise.dtype == x.dtype
    assert not torch.equal(image_noise(x, seed=4), noise) and not torch.equal(image_noise(x, seed=3, draw=1), noise)
    assert len(torch.unique(noise)) > .99 * noise.numel()
    turned = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)                # the same pixels in another order
    assert torch.equal(image_noise(turned, seed=3), noise)


@pytest.mark.parametrize('ball', BALLS)
def test_starts_lie_in_the_ball_and_depend_on_the_seed(x, ball):
    start = BALLS[ball].start
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


# the model comes back untouched

CALLS = {
    'attack': lambda net, x, y: Attack('l2', .3, 'ce', 2, .2, random_start=True)(net, x, y),
    'any': lambda net, x, y: robust_correct(net, x, y, ATTACKS['l2', 'ce'], batch_size=9),
    'last': lambda net, x, y: robust_correct(net, x, y, ATTACKS['linf', 'cw'], reading='last'),
    'gradient': lambda net, x, y: input_gradient(net, x, y),
    'plain gradient': lambda net, x, y: input_gradient(net, x, y, stable=False),
    'vanished': lambda net, x, y: vanished(net, x, y),
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
def test_the_caller_finds_everything_as_it_was(x, call):
    net, y = untidy(), torch.arange(len(x)) % 5
    before = everything(net, x, y)
    call(net, x, y)
    assert same(everything(net, x, y), before)


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_also_when_something_fails(x, call):
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


def test_the_model_judged_is_the_one_in_eval_mode(x):
    net = conv_net()
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    want = robust_correct(net, x, y, a), a(net, x, y)
    net.train()
    assert torch.equal(robust_correct(net, x, y, a), want[0]) and torch.equal(a(net, x, y), want[1])


# gradients that do not vanish

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


def test_saturated_logits_stop_others_not_us():
    torchattacks = pytest.importorskip('torchattacks')
    net, x = conv_net().float(), batch(60).float()
    y, a = answers(net, x), Attack('l2', 1., 'ce', 10, .25)
    loud = Scaled(net, 1e5).eval()
    plain = torchattacks.PGDL2(loud, eps=a.eps, alpha=a.step_size, steps=a.steps, random_start=False)(x, y)
    quiet, ours = (robust_correct(m, x, y, a, reading='last').float().mean() for m in (net, loud))
    assert ours <= quiet + .05 < .6
    assert (answers(loud, plain) == y).float().mean() > ours + .25
    assert vanished(loud, x, y).float().mean() > .8 and not vanished(net, x, y).any()


def test_a_saturated_image_reads_as_in_float64():
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


def test_a_short_gradient_still_gives_a_whole_step(x):
    faint = Scaled(conv_net().float(), 1e-25)
    y, a = torch.arange(len(x)) % 5, Attack('l2', .5, 'ce', 1, .1)
    assert size(a, a(faint, x.float(), y) - x.float()).min() > .05


def test_a_model_that_ignores_the_image(x):
    class Constant(nn.Module):
        def forward(self, x): return torch.eye(5, dtype=x.dtype)[:1].expand(len(x), 5)
    y = torch.zeros(len(x), dtype=torch.long)
    assert not input_gradient(Constant(), x, y).any() and vanished(Constant(), x, y).all()
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
    assert robust_correct(net, x, y, ATTACKS['l2', 'ce']).shape == (0,) == vanished(net, x, y).shape


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
    with pytest.raises(TypeError, match='pass an nn.Module'): input_gradient(lambda v: v, x, Y)
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
    ('reading', dict(reading='first')), ('batch_size', dict(batch_size=0)), ('target', dict(target=Y))])
def test_bad_options_are_named(x, word, options):
    with pytest.raises(ValueError, match=word): robust_correct(conv_net(), x, Y, ATTACKS['l2', 'ce'], **options)
    with pytest.raises(ValueError, match='target'):
        robust_correct(conv_net(), x, Y, replace(ATTACKS['l2', 'ce'], targeted=True))
    with pytest.raises(ValueError, match='loss'): input_gradient(conv_net(), x, Y, loss='mse')


# the fast copy

def batchnorms(net): return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


def check_copy(net, x, norms_left):
    "The copy gives the same logits and gradients, and has this many batch norms left."
    with prepared(net, x) as fast:
        torch.testing.assert_close(fast(x), net(x), rtol=0, atol=1e-8 * net(x).abs().max().item())
        torch.testing.assert_close(input_gradient(fast, x, Y), input_gradient(net, x, Y), rtol=0, atol=1e-8)
        assert batchnorms(fast) == norms_left
    check_answers(net, x)
    return fast


def check_answers(net, x):
    "Folded or not, `robust_correct` says what the attack itself says."
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    want = answers(net, a(net, x, y)) == y
    assert torch.equal(robust_correct(net, x, y, a, reading='last'), want)


def test_batch_norm_is_folded_and_the_original_kept(x):
    net = conv_net()
    fast = check_copy(net, x, 0)
    assert batchnorms(net) == 2 and fast is not net
    assert [type(m) for m in fast.net][2:4] == [nn.MaxPool2d, nn.ReLU]


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
    'control flow': (lambda m, x: m.bn(m.conv(x)) if float(x.detach().sum()) > 0 and len(x) else x, {}, 0),
    'view': (lambda m, x: m.pool(m.relu(m.bn(m.conv(x)))).view(len(x), -1), {}, 0),   # refuses channels last
}


@pytest.mark.filterwarnings('ignore:Lazy')
@pytest.mark.parametrize('forward, options, left', ODD.values(), ids=ODD)
def test_odd_networks_are_folded_rightly_or_not_at_all(forward, options, left):
    check_copy(Block(forward, **options), batch(channels=3), left)


def test_linear_layers_and_shared_weights_and_hooks(x):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)).double().eval()
    check_copy(net, x, 0)
    nn.utils.parametrizations.spectral_norm(net[1])
    check_copy(net, x, 1)
    seen = []
    net[1].register_forward_hook(lambda m, args, out: seen.append(len(out)))
    check_copy(net, x, 1)
    assert seen


def test_a_model_that_cannot_be_copied_is_attacked_as_it_is(x):
    class Stubborn(nn.Module):
        def __init__(self): super().__init__(); self.net = conv_net()
        def __deepcopy__(self, memo): raise RuntimeError('there is but one of me')
        def forward(self, x): return self.net(x)
    net = Stubborn()
    y, a = answers(net, x), ATTACKS['l2', 'ce']
    with frozen(net): assert fast_copy(net, x) is net
    assert torch.equal(robust_correct(net, x, y, a), robust_correct(net.net, x, y, a))


def test_runs_under_autocast():
    net, x = conv_net().float(), batch().float()
    with torch.autocast('cpu', torch.bfloat16):
        adv = Attack('l2', 3., 'ce', 5, 1.)(net, x, answers(net, x))
    assert adv.dtype == torch.float32 and (answers(net, adv) != answers(net, x)).float().mean() > .8


# the benchmark's rivals do the same work

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
    about = dict(network='net bn', attack='a', steps=6)
    assert bench.table([about | r for r in rows]).count('\n') == len(rows) + 1


# gradients in bfloat16

@pytest.mark.parametrize('reading', ['any', 'last'])
def test_gradients_in_bfloat16_change_no_verdict_but_by_chance(net, x, reading):
    y = answers(net, x)
    for key, a in ATTACKS.items():
        fine, rough = (robust_correct(net, x, y, a, reading=reading, bf16=b) for b in (False, True))
        assert (fine != rough).float().mean() <= .15, key
        assert not any(p.dtype == torch.bfloat16 for p in net.parameters())
        nothing = replace(a, eps=0., random_start=False, restarts=1)
        assert robust_correct(net, x, y, nothing, reading=reading, bf16=True).all()


SEEN = set()    # the precisions in which it was asked

class Twofold(nn.Module):
    "Right in float32; in bfloat16 always wrong."
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.eye(2))
    def forward(self, x):
        z = x.flatten(1)[:, :2] @ self.w
        SEEN.add(z.dtype)
        return -z if z.dtype == torch.bfloat16 else z


def test_the_word_of_the_rough_copy_is_not_enough():
    x = torch.tensor([[.9, .1], [.2, .8]])
    y = torch.tensor([0, 1])
    a = Attack('linf', .01, 'cw', steps=3, step_size=.01)
    SEEN.clear()
    assert robust_correct(Twofold(), x, y, a).all() and SEEN == {torch.float32}
    assert robust_correct(Twofold(), x, y, a, bf16=True).all() and SEEN == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize('steps, fine', [(1, 1), (9, 1), (10, 1), (11, 2), (50, 5)])
@pytest.mark.parametrize('reading', ['any', 'last'])
def test_the_last_tenth_of_the_steps_is_taken_in_full_precision(steps, fine, reading):
    asked = []
    class Noted(Twofold):
        def forward(self, x):
            asked.append((x.dtype, x.requires_grad))      # a gradient is asked for where the input wants one
            return super().forward(x).abs() * torch.tensor([1., -1.], dtype=x.dtype)     # always class 0: nobody falls
    x, y = torch.tensor([[.9, .1]]), torch.tensor([0])
    assert robust_correct(Noted(), x, y, Attack('linf', .01, 'cw', steps, .001), reading=reading, bf16=True).all()
    climbs = [dtype for dtype, wanted in asked if wanted][-steps:]
    assert climbs == [torch.bfloat16] * (steps - fine) + [torch.float32] * fine
