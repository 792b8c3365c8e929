"""Networks have the norm that was asked for, and differ in nothing else."""
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from nrf_repro import models
from nrf_repro.attacks import Attack
from nrf_repro.data import load
from nrf_repro.features import ligs
from nrf_repro.models import ARCHS, CONTROLS, build_model, load_model, model_config, save_model, save_tensors
from nrf_repro.models.build import Residual
from nrf_repro.models.checkpoint import dequantize, quantize
from nrf_repro.models.controls import SCALAR_RATE, Scalar, Scale, Shift, StandardWeights
from nrf_repro.models.norms import NORMS, count_norms
from nrf_repro.results.rows import CONTROLS as NAMED_CONTROLS
from nrf_repro.training.loop import fit
from nrf_repro.training.recipe import RECIPES

ROOT = Path(__file__).parent.parent
CONVS = dict(vgg11=8, vgg16=13, vgg19=16, resnet18=20, resnet50=53)
PLAIN = tuple(CONVS)
BUILDS = [(arch, norm) for arch in ARCHS for norm in (('none',) if arch in CONTROLS else NORMS)]


def convs_of(model): return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize('arch', PLAIN)
@pytest.mark.parametrize('norm', NORMS)
def test_every_convolution_has_the_norm_it_was_asked_for(arch, norm):
    model = build_model(arch, norm, width=1/8)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == CONVS[arch]
    assert count_norms(model) == ({} if norm == 'none' else {norm: CONVS[arch]})
    assert all((c.bias is not None) == arch.startswith('vgg') for c in convs)
    statistics = 3 * CONVS[arch] if norm == 'bn' else 0     # running mean, running variance, batches seen
    assert len(list(model.buffers())) == 2 + statistics     # and the two of layer 0


@pytest.mark.parametrize('arch', PLAIN)
def test_one_seed_gives_all_norms_the_same_weights(arch):
    def weights(norm): return [m.weight for m in build_model(arch, norm, width=1/16, seed=5).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for norm in NORMS:
        assert all(torch.equal(a, b) for a, b in zip(weights(norm), weights('bn'), strict=True))
    other = build_model(arch, 'bn', width=1/16, seed=6)
    assert not torch.equal(next(m.weight for m in other.modules() if isinstance(m, nn.Conv2d)), weights('bn')[0])


def test_the_seed_leaves_the_callers_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    build_model('vgg11', 'none', width=1/16, seed=3)
    assert torch.rand(1) == expected


@pytest.mark.parametrize('arch, norm', BUILDS)
def test_trains_and_evaluates_at_28_and_32_pixels(arch, norm):
    for size in (28, 32):
        model = build_model(arch, norm, width=1/16, in_channels=1, seed=0)
        x = torch.rand(3, 1, size, size)
        loss = nn.functional.cross_entropy(model.train()(x), torch.tensor([0, 1, 2]))
        loss.backward()
        assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize('arch', ARCHS)
def test_activations_of_a_network_without_norm_keep_their_scale(arch):
    model = build_model(arch, 'none', width=1/4, seed=0, mean=(.5,) * 3, std=(.25,) * 3)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad(): z = model.features(torch.rand(32, 3, 32, 32, generator=g))
    assert .05 < z.pow(2).mean().sqrt() < 20


def test_standardisation_is_in_the_model():
    x = torch.rand(2, 3, 32, 32)
    a = build_model('vgg11', 'none', width=1/16, seed=0)
    b = build_model('vgg11', 'none', width=1/16, seed=0, mean=(.5,) * 3, std=(.2,) * 3)
    torch.testing.assert_close(a((x - .5) / .2), b(x))


def test_imagenet_stem_takes_224_pixels():
    for arch in ('vgg11', 'resnet18'):
        model = build_model(arch, 'bn', width=1/16, stem='imagenet', num_classes=7).eval()
        assert model(torch.rand(1, 3, 224, 224)).shape == (1, 7)


def test_a_file_of_weights_comes_back_and_a_broken_one_is_named(tmp_path):
    model, path = build_model('resnet18', 'gn', width=1/8, seed=0).eval(), tmp_path / 'a/net.safetensors'
    save_model(model, path)
    x = torch.rand(2, 3, 32, 32)
    twin = load_model(path)
    assert torch.equal(twin(x), model(x)) and not twin.training and [p.name for p in path.parent.iterdir()] == ['net.safetensors']
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match='net.safetensors is not a valid checkpoint'): load_model(path)
    path.write_bytes(b'\x80\x04\x95a pickle, say')
    with pytest.raises(ValueError, match='is not a valid checkpoint'): load_model(path)
    with pytest.raises(FileNotFoundError, match='Train the network first'): load_model(tmp_path / 'none.safetensors')


@pytest.mark.parametrize('arguments, message', [
    (dict(arch='alexnet', norm='bn'), 'arch=.alexnet. is not known'), (dict(arch='vgg11', norm='None'), 'norm=.None. is not known'),
    (dict(arch='vgg11', norm='bn', stem='tiny'), 'stem=.tiny. is not known'), (dict(arch='vgg11', norm='bn', width=.3), 'multiple of 1/32'),
    (dict(arch='vgg11', norm='bn', mean=(.5,)), 'mean has 1 numbers, std 3, .* one number for each channel')])
def test_invalid_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message): build_model(**arguments)


@pytest.mark.parametrize('change, message', [
    (lambda t, q, scale: t | {'more': q}, 'its weight more belongs to another network'),
    (lambda t, q, scale: {k: v for k, v in t.items() if k != 'head.0.bias'}, 'its weight head.0.bias is missing'),
    (lambda t, q, scale: t | {'head.0.bias': torch.zeros(3)}, r'its weight head.0.bias has the shape \[3\]'),
    (lambda t, q, scale: t | {'head.0.weight': q, 'head.0.weight.scale': scale[:1]}, 'its weight head.0.weight: .* not one float32 for each output'),
    (lambda t, q, scale: t | {'head.0.weight': q.float(), 'head.0.weight.scale': scale}, 'its weight head.0.weight: .* integers of torch.float32'),
    (lambda t, q, scale: t | {'standardize.std': t['standardize.std'] * 1.01}, 'its standardize.std is'),
    (lambda t, q, scale: t | {'standardize.mean': t['standardize.mean'] * torch.nan}, 'its standardize.mean is')])
def test_weights_of_another_network_are_refused(change, message, tmp_path):
    model = build_model('vgg11', 'bn', width=1/16, mean=(.4, .5, .6), std=(.2,) * 3, seed=0)
    save_tensors(tmp_path / 'net.safetensors', change(model.state_dict(), *quantize(model.head[0].weight.detach())), config=json.dumps(model.config))
    with pytest.raises(ValueError, match=f'net.safetensors is not a valid checkpoint .{message}'): load_model(tmp_path / 'net.safetensors')


def test_a_mean_that_was_rounded_to_eight_bits_is_read_exactly(tmp_path):
    model = build_model('vgg11', 'bn', width=1/16, mean=(.4914, .4822, .4465), std=(.2023, .1994, .2010), seed=0)
    q, scale = quantize(model.standardize.mean)
    assert not torch.equal(dequantize(q, scale), model.standardize.mean)
    for name, rounded in (('int8', {'standardize.mean': q, 'standardize.mean.scale': scale}), ('float', {'standardize.mean': dequantize(q, scale)})):
        save_tensors(tmp_path / name, model.state_dict() | rounded, config=json.dumps(model.config))
        assert all(torch.equal(w, model.state_dict()[k]) for k, w in load_model(tmp_path / name).state_dict().items())


def test_eight_bits_round_weight_matrices_alone(tmp_path):
    model = build_model('resnet18_fixup', 'none', width=1/16, seed=0)
    save_model(model, tmp_path / 'net.safetensors', bits=8)
    exact = model.state_dict()
    changed = {k for k, w in load_model(tmp_path / 'net.safetensors').state_dict().items() if not torch.equal(w, exact[k])}
    zero = {k for k, w in exact.items() if w.ndim > 1 and not w.any()}                # Fixup's zero weights have no rounding error
    assert changed == {k for k, w in exact.items() if w.ndim > 1 and not k.startswith('standardize')} - zero
    with pytest.raises(ValueError, match='bits=4 is not supported. Pass 8 or 32'): save_model(model, tmp_path / 'other.safetensors', bits=4)
    assert [p.name for p in tmp_path.iterdir()] == ['net.safetensors']


@pytest.mark.parametrize('old, new', [('save_whole', save_tensors), ('pack_model', save_model)])
def test_old_names_work_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f'{old} is now {new.__name__}'): assert getattr(models, old) is new
    with pytest.raises(AttributeError, match='no attribute .gone.'): models.gone


def test_norm_is_required():
    with pytest.raises(TypeError): build_model('vgg11')


# Controls: no norm, and as well trained

def test_the_controls_are_known_where_torch_is_not():
    assert NAMED_CONTROLS == {name: plain for name, (plain, _) in CONTROLS.items()} and set(CONTROLS) < set(ARCHS)


@pytest.mark.parametrize('arch', CONTROLS)
def test_a_control_takes_no_norm(arch):
    model = build_model(arch, 'none', width=1/8)
    assert count_norms(model) == {} and len(list(model.buffers())) == 2 and len(convs_of(model)) == CONVS[CONTROLS[arch][0]]
    for norm in NORMS[1:]:
        with pytest.raises(ValueError, match=f"{arch} is a control .* Pass norm='none', or arch='{CONTROLS[arch][0]}' for '{norm}'"):
            build_model(arch, norm, width=1/8)


@pytest.mark.parametrize('arch, shifts, scales', [('resnet18_fixup', 20 + 1 + 17, 8), ('resnet50_fixup', 53 + 1 + 49, 16)])
def test_fixup_has_a_bias_before_each_convolution_linear_layer_and_relu_and_a_multiplier_a_branch(arch, shifts, scales):
    model, plain = (build_model(a, 'none', width=1/8, seed=1) for a in (arch, arch.removesuffix('_fixup')))
    count = {kind: sum(type(m) is kind for m in model.modules()) for kind in (Shift, Scale)}
    assert count == {Shift: shifts, Scale: scales}
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters()) + shifts + scales


@pytest.mark.parametrize('arch, L, m', [('resnet18_fixup', 8, 2), ('resnet50_fixup', 16, 3)])
def test_fixup_starts_as_its_paper_says(arch, L, m):
    model, plain = (build_model(a, 'none', width=1/4, seed=1) for a in (arch, arch.removesuffix('_fixup')))
    blocks, others = ([b for b in net.modules() if isinstance(b, Residual)] for net in (model, plain))
    assert len(blocks) == L
    for block, other in zip(blocks, others):
        *first, last = [convs_of(layer)[0].weight for layer in block.branch]
        assert last.eq(0).all() and len(first) == m - 1
        for w, layer in zip(first, other.branch): torch.testing.assert_close(w, layer[0].weight * L ** (-1 / (2 * m - 2)))
        x = torch.rand(2, convs_of(block.branch[0])[0].in_channels, 8, 8)
        assert block.branch(x).eq(0).all()                                     # a branch adds nothing at first
    assert model.head[-1].weight.eq(0).all() and model.head[-1].bias.eq(0).all()
    for scalar in (s for s in model.modules() if isinstance(s, Scalar)): assert scalar.value == (1 if type(scalar) is Scale else 0)
    shortcuts = [(convs_of(b.shortcut)[0].weight, convs_of(o.shortcut)[0].weight) for b, o in zip(blocks, others) if convs_of(b.shortcut)]
    assert len(shortcuts) == (3 if L == 8 else 4) and all(a.equal(b) for a, b in shortcuts)


def test_every_scalar_of_fixup_is_used_where_it_stands():
    model = build_model('resnet18_fixup', 'none', width=1/8, seed=0).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 4 and p.eq(0).all() or p.ndim == 2: p.normal_(0, .1)     # away from the start, where gradients are zero
    model(torch.rand(2, 3, 32, 32).double()).square().sum().backward()
    assert all(s.stored.grad.abs() > 0 for s in model.modules() if isinstance(s, Scalar))


def test_a_scalar_learns_a_tenth_as_fast():
    for scalar, gradient in ((Shift(), 1.), (Scale(), .5)):
        before = scalar.value.item()
        scalar(torch.full((3, 2), .5)).mean().backward()                        # d/db = 1, d/ds = mean of x
        torch.optim.SGD(scalar.parameters(), lr=.4).step()
        assert scalar.value.item() - before == pytest.approx(-SCALAR_RATE * .4 * gradient, rel=1e-5)


def test_a_fresh_control_can_be_attacked_and_has_no_ligs():
    model, x = build_model('resnet18_fixup', 'none', width=1/16, seed=0), torch.rand(3, 3, 32, 32)
    y = torch.tensor([0, 1, 2])
    assert Attack('l2', 1., 'ce', steps=2, step_size=.5)(model, x, y).isfinite().all()
    assert ligs(model, x, y, sigma=.01).isnan().all()                           # a zero classifier has no gradient


def test_standardised_weights_have_the_moments_that_are_claimed():
    torch.manual_seed(0)
    standard, w = StandardWeights(6), torch.randn(6, 4, 3, 3, dtype=torch.float64)
    v = standard(w)
    torch.testing.assert_close(v.mean((1, 2, 3)), torch.zeros(6, dtype=torch.float64))
    z = torch.randn(10**6, dtype=torch.float64).relu()
    torch.testing.assert_close(v.var((1, 2, 3), correction=0) * 36 * z.var(), torch.ones(6, dtype=torch.float64), rtol=.01, atol=0)
    torch.testing.assert_close(standard(3 * w - 2), v)
    with torch.no_grad(): standard.gain[2] = 5.
    torch.testing.assert_close(standard(w)[2], 5 * v[2])


def test_every_convolution_of_a_normaliser_free_network_is_standardised():
    model = build_model('vgg11_nf', 'none', width=1/8, seed=0)
    for conv in convs_of(model):
        assert conv.weight.mean((1, 2, 3)).abs().max() < 1e-6 and conv.bias is not None
    for conv in convs_of(model): conv.parametrizations.weight.original.data.mul_(3)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), build_model('vgg11_nf', 'none', width=1/8, seed=0)(x))


@pytest.mark.parametrize('arch', ['resnet18_fixup', 'vgg11_nf'])
def test_a_trained_control_comes_back_from_its_file(arch, tmp_path):
    model = build_model(arch, 'none', width=1/8, seed=0)
    with torch.no_grad():
        for p in model.parameters(): p.add_(.01 * torch.randn_like(p))
    save_model(model.eval(), tmp_path / 'net.safetensors')
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_model(tmp_path / 'net.safetensors')(x), model(x)) and model(x).std() > 0


@pytest.mark.parametrize('arch', ['resnet18_fixup', 'vgg11_nf'])
def test_a_control_learns_a_handful_of_images(arch):
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(16, 3, 16, 16, generator=g), torch.randint(10, (16,), generator=g)
    model = build_model(arch, 'none', width=1/8, seed=0)
    opt = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss < .5


@pytest.mark.parametrize('path', sorted((ROOT / 'reports/published').glob('*/networks/*.safetensors')), ids=lambda p: p.stem)
def test_published_networks_keep_the_exact_mean_and_standard_deviation(path):
    with safe_open(path, 'pt') as f:
        stored = {part: f.get_tensor(f'standardize.{part}').flatten().tolist() for part in ('mean', 'std')}
        assert not any(name.startswith('standardize') and name.endswith('.scale') for name in f.keys())
    config = model_config(path)
    assert stored == {part: torch.tensor(config[part]).tolist() for part in ('mean', 'std')}


def test_grey_images_are_not_taken_for_three_channels():
    net = build_model('vgg11', 'bn', width=1 / 32, seed=0).eval()
    with pytest.raises(ValueError, match='x has 1 channel, and the network takes 3'): net(torch.rand(2, 1, 32, 32))
    grey = load('digits', 'train', limit=20)
    with pytest.raises(ValueError, match='in_channels=1'): fit(net, grey, RECIPES['digits'], progress=False)
