"""The LIGS penalty: its gradient, its noise, and the networks and statistics that it leaves unchanged."""
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from nrf_repro.attacks import Attack
from nrf_repro.models.norms import make_norm
from nrf_repro.studies.regularization import LigsLoss, ligs_penalty, preserve_running_stats, torchattacks_robust_correct
from nrf_repro.training.recipe import cross_entropy

ATTACK = Attack('l2', .2, 'ce', steps=5, step_size=.05)


def smooth_net(norm):
    "A network without kinks, so that central differences apply."
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), make_norm(norm, 4), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 10)).double().train()


def batch(n=20):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 16, 16, generator=g).double(), torch.randint(0, 10, (n,), generator=g)


def penalty(net, x, y, seed=0):
    x = x.clone().requires_grad_()
    return ligs_penalty(net, net(x), x, y, .05, seed)


@pytest.mark.parametrize('norm', ['none', 'bn'])
def test_the_gradient_of_the_penalty_equals_central_differences(norm, h=1e-5):
    net, (x, y) = smooth_net(norm), batch()
    penalty(net, x, y).backward()
    for k in range(3):
        g = torch.Generator().manual_seed(k)
        step = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in net.parameters()]
        slope = sum((p.grad * d).sum() for p, d in zip(net.parameters(), step)).item()
        ends = []
        for sign in (1, -1):
            other = deepcopy(net)
            for p, d in zip(other.parameters(), step): p.data += sign * h * d
            ends.append(penalty(other, x, y).item())
        assert slope != 0 and (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope, rel=1e-5)


def test_the_noise_depends_on_image_batch_and_seed():
    net, (x, y) = smooth_net('none'), batch()
    value = penalty(net, x, y).item()
    assert penalty(net, x, y).item() == value and penalty(net, x, y, seed=1).item() != value
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert penalty(net, x[order], y[order]).item() == pytest.approx(value)   # of the batch, not of its order
    assert penalty(net, x[:10], y[:10]).item() != pytest.approx(value)


def test_running_statistics_leave_out_the_noisy_images():
    net, (x, y) = smooth_net('bn'), batch()
    alone = deepcopy(net)
    alone(x)
    LigsLoss(3, .05)(net, x, y)
    assert all(a.equal(b) for a, b in zip(net.buffers(), alone.buffers()))
    with pytest.raises(RuntimeError), preserve_running_stats(net): raise RuntimeError
    assert net[1].track_running_stats


def test_with_weight_zero_the_loss_is_the_cross_entropy():
    (x, y), gradients = batch(), []
    for loss in (cross_entropy, LigsLoss(0, .05), LigsLoss(1, .05)):
        net = smooth_net('bn')
        loss(net, x, y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert gradients[0].equal(gradients[1]) and not gradients[0].allclose(gradients[2])


@pytest.mark.parametrize('values, said', [((-1, .05), 'lam=-1'), ((float('nan'), .05), 'lam=nan'), ((3, 0), 'sigma=0'), ((1, .05, .5), 'seed=0.5')])
def test_invalid_values_raise(values, said):
    with pytest.raises(ValueError, match=said): LigsLoss(*values)


@pytest.mark.parametrize('queries', [None, 20])
def test_the_library_attacks_do_not_depend_on_the_memory_layout(queries):
    pytest.importorskip('torchattacks')
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 10)).eval()
    x = torch.rand(20, 3, 16, 16)
    y = net(x).argmax(1)
    attack = replace(ATTACK, eps=.2 if queries is None else 3.)
    found = [torchattacks_robust_correct(deepcopy(net).to(memory_format=layout), x, y, attack, queries)
             for layout in (torch.contiguous_format, torch.channels_last)]
    assert found[0].equal(found[1]) and 0 < found[0].sum() < 20
