"""Measuring any classifier: loading, rows, checks and the page."""
import argparse
import os
import re
import subprocess
import sys
import types
from argparse import ArgumentParser
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import forked
from nrf_repro import measure as m
from nrf_repro.measure import measurement
from nrf_repro.attacks import PAPER_ATTACKS, PERTURBATION_SETS, Attack, robust_correct
from nrf_repro.data import load
from nrf_repro.models import build_model, load_model, save_model
from nrf_repro.results.intervals import wilson
from nrf_repro.measure.command import _check_writable
from nrf_repro.measure.inputs import _norm_kind
from nrf_repro.training.evaluation import check_classifier, evaluate
from nrf_repro.results.rows import FIELDS, read_rows, write_rows
from nrf_repro.models.weights import load_weights, read_weights, scale_advice

QUICK = m.attacks_at(l2=.5, linf=8 / 255, steps=3)


class Linear(nn.Module):
    "The nearest of k fixed patterns: accurate, with a gradient that never vanishes."
    def __init__(self, k=4, scale=20.):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(scale * torch.randn(k, 3 * 8 * 8, generator=g) / (3 * 8 * 8) ** .5)
    def forward(self, x): return (x.flatten(1) - .5) @ self.w.T


class Rounded(nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(torch.round(x * 255) / 255)


class Scaled(nn.Module):
    def __init__(self, net, by): super().__init__(); self.net, self.by = net, by
    def forward(self, x): return self.by * self.net(x)


class Lots(nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x + .2 * torch.randn_like(x))


class Undone(nn.Module):
    "Wants pixels in [0, 255]."
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x / 255) if x.max() > 1 else -self.net(x)


@pytest.fixture(scope='module')
def images():
    "32 noisy images of four patterns, as tensors."
    y, w = torch.arange(32) % 4, Linear().w.detach()
    noise = torch.randn(32, 3 * 64, generator=torch.Generator().manual_seed(1))
    return (.5 + .1 * w[y].sign() + .03 * noise).clamp(0, 1).view(-1, 3, 8, 8), y


def measured(model, images, **more): return m.measure(model, images, **dict(attacks=QUICK, progress=False) | more)


def test_numbers_are_those_of_the_parts(images):
    x, y = images
    net = Linear()
    seen = measured(net, images)
    assert seen['clean_accuracy'] == (net(x).argmax(1) == y).double().mean().item() == 1
    for name, a in QUICK.items(): assert seen[name] == pytest.approx(robust_correct(net, x, y, a).double().mean().item())
    assert seen['ligs'] > .9 and seen['vanished'] == 0 and len(seen.rows.columns) == len(FIELDS)
    row = seen.frame.iloc[0]
    assert (row.low, row.high) == wilson(32, 32)[1:3] and row.n == 32 and row.norm == 'none'


def test_nothing_of_the_model_changes(images):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Linear()).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    measured(net, images)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and net[1].training and all(p.requires_grad and p.grad is None for p in net.parameters())


def test_batches_do_not_change_the_numbers(images):
    a, b = (measured(Linear(), images, batch_size=n, checks=0).frame.value for n in (5, 256))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_rows_can_be_written_and_read(images, tmp_path):
    seen = measured(Linear(), images)
    again = read_rows(write_rows(tmp_path / 'rows.jsonl', seen.rows))
    assert sorted(again.value) == sorted(seen.rows.value) and set(again.experiment) == {'measure', 'adequacy'}


@pytest.mark.parametrize('spoil, check', [
    (lambda net: nn.Sequential(net, nn.Softmax(1)), 'logits'),
    (Rounded, 'zero gradient'), (Rounded, 'large ball, PGD ℓ2'), (Rounded, 'large ball, PGD ℓ∞'),
    (lambda net: Scaled(net, 1e4), 'underflow'), (Lots, 'deterministic'),
    (lambda net: Scaled(net, -1), 'above chance'), (Undone, 'input scale')])
def test_each_kind_of_gradient_masking_is_flagged(images, spoil, check):
    assert check in measured(spoil(Linear()), images).flagged


def test_an_unmodified_model_passes(images):
    assert measured(Linear(), images, attacks=m.attacks_at(l2=.5, linf=8 / 255, steps=10)).flagged == []


def test_an_attack_that_has_not_converged_is_flagged(images):
    slow = {'own': replace(PAPER_ATTACKS['pgd_l2'], eps=2., step_size=.15, steps=2)}
    assert 'more steps, own' in measured(Linear(), images, attacks=slow).flagged


def test_noise_that_does_as_well_as_the_attack_is_flagged(images):
    blind = {'own': replace(PAPER_ATTACKS['pgd_linf'], eps=.5, step_size=1e-6, steps=1)}
    assert 'noise, own' in set(measured(Linear(scale=1.), images, attacks=blind).flagged)


def test_labels_of_other_classes_are_flagged(images):
    x, y = images
    im = m.eval_images((x, y))
    from nrf_repro.data import Images
    seven = Images((x * 255).round().to(torch.uint8), y, tuple('abcdefg'), im.mean, im.std, 'seven', 'test')
    assert 'classes' in measured(Linear(), seven).flagged and 'classes' not in measured(Linear(), (x, y)).flagged


def test_a_model_with_a_masked_gradient_has_undefined_ligs_and_is_flagged(images):
    seen = measured(Rounded(Linear()), images)
    assert np.isnan(seen['ligs']) and 'LIGS is undefined' in seen.to_markdown() and 'do not quote these numbers' in seen.to_markdown()


def test_random_models_of_no_parameters_and_double_models(images):
    class Bare(nn.Module):
        def forward(self, x): return x.mean((2, 3))
    x, y = images
    assert measured(Bare(), (x, y % 3)).name == 'model'
    assert measured(Linear().double(), images)['clean_accuracy'] == 1
    with pytest.raises(ValueError, match='model.float'): measured(Linear().half(), images)


class InNumpy(nn.Module):
    "Leaves torch, so it runs without a gradient only."
    def forward(self, x): return torch.from_numpy(x.numpy().mean((2, 3)))


class Alone(nn.Module):
    "Cannot process a single image."
    def forward(self, x): return F.batch_norm(x.mean((2, 3)), None, None, training=True)


@pytest.mark.parametrize('model, message', [(InNumpy(), 'no gradient in the images .*numpy'), (Alone(), 'It must take a single image')])
def test_a_model_that_cannot_be_attacked_is_named(model, message):
    with pytest.raises(ValueError, match=message): check_classifier(model, torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))


def test_no_images_are_an_error_of_evaluate():
    with pytest.raises(ValueError, match='images holds no images'): next(evaluate(nn.Flatten(), load('digits', 'test', limit=1)[[]], {}, .1))


@pytest.mark.parametrize('bad, message', [
    (dict(images=(torch.rand(3, 8, 8), torch.zeros(3).long())), 'n c h w'),
    (dict(images=(torch.rand(2, 1, 8, 8), torch.zeros(2).long())), 'does not take images of shape'),
    (dict(images=(2 + torch.rand(2, 3, 8, 8), torch.zeros(2).long())), 'x has values outside'),
    (dict(images=(torch.rand(2, 3, 8, 8), torch.tensor([0, 9]))), 'y holds 9'), (dict(images='nowhere'), 'is no folder'),
    (dict(limit=0), 'limit=0'), (dict(attacks=dict(a=3)), 'name -> Attack'), (dict(standardize='cifar'), 'choose one of'),
    (dict(images=(torch.rand(0, 3, 8, 8), torch.zeros(0).long())), 'no images'), (dict(sigma=0), 'sigma=0')])
def test_a_wrong_argument_is_an_error_in_one_line(images, bad, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as e: measured(Linear(), **dict(images=images) | bad)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('bad, message', [
    (dict(batch_size=0), 'batch_size=0: pass a whole number from 1 upwards'), (dict(batch_size=2.5), 'batch_size=2.5'),
    (dict(checks=-3), 'checks=-3: pass a whole number from 0 upwards'), (dict(seed=-1), 'seed=-1: pass a whole'),
    (dict(limit=0), 'limit=0'), (dict(size=0), 'size=0'), (dict(sigma=0), 'sigma=0'), (dict(sigma=float('nan')), 'sigma=nan'),
    (dict(model='gone.safetensors'), 'No network at gone.safetensors. Correct the path'), (dict(model='no/such/net'), 'No network at no/such/net'),
    (dict(model='vgg11', weights='gone.pth'), 'No weights at gone.pth. Correct the path'),
    (dict(model='timms_net', weights='gone.pth'), 'No weights at gone.pth')])
def test_a_wrong_argument_is_an_error_before_the_first_image(monkeypatch, images, bad, message):
    def read(*a): raise AssertionError('images were read')
    monkeypatch.setattr(measurement, 'eval_images', read)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as e: measured(**dict(model=Linear(), images=images) | bad)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('words, message', [
    ('--l2 1/0', "argument --l2: '1/0' is no number"), ('--linf eight', "'eight' is no number"), ('--l2 1e999', "'1e999' is no number"),
    ('--l2=-1', 'must be above 0'), ('--steps 0', 'steps=0'), ('--checks -3', 'checks=-3'), ('--batch-size 0', 'batch_size=0'),
    ('--seed -1', 'seed=-1'), ('--out .', '--out . is a folder: name a file'), ('--rows .', '--rows . is a folder'),
    ('--out file.txt/page.html', r'file.txt/page.html cannot be written \(Not a directory\)'),
    ('--rows file.txt/new/rows.jsonl', r'rows.jsonl cannot be written')])
def test_a_wrong_argument_of_the_command_is_an_error_before_anything_is_read(monkeypatch, capsys, tmp_path, words, message):
    from nrf_repro.cli import main
    def touched(*a, **k): raise AssertionError('a network or images were read')
    for part in ('find_model', 'eval_images'): monkeypatch.setattr(measurement, part, touched)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file.txt').write_text('')
    try: status = main(['measure', 'vgg11', 'digits', *words.split()])
    except SystemExit as e: status = e.code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and re.search(message, said) and [p.name for p in tmp_path.iterdir()] == ['file.txt']


def test_a_file_in_a_new_folder_can_be_written_and_trying_leaves_nothing(tmp_path):
    _check_writable('--out', tmp_path / 'new/er/page.html'), _check_writable('--out', None)
    assert not list(tmp_path.iterdir())
    (tmp_path / 'old.html').write_text('old')
    _check_writable('--out', tmp_path / 'old.html')
    assert (tmp_path / 'old.html').read_text() == 'old'


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root writes everywhere')
def test_a_folder_that_takes_no_files_is_found_first(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match='choose a folder'): _check_writable('--out', tmp_path / 'page.html')


def test_outputs_that_are_no_tensor(images):
    class Wrapped(nn.Module):
        def forward(self, x): return dict(logits=x)
    with pytest.raises(TypeError, match='returns a dict'): measured(Wrapped(), images)


@pytest.mark.parametrize('layer, norm', [
    (nn.GroupNorm(1, 3), 'ln'), (nn.GroupNorm(3, 3), 'in'), (nn.SyncBatchNorm(3), 'bn'), (nn.BatchNorm2d(3), 'bn'),
    (nn.LayerNorm([3, 8, 8]), 'ln'), (nn.Identity(), 'none'), (nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3)), None)])
def test_the_norm_is_named_by_what_its_layers_compute(images, layer, norm):
    seen = measured(nn.Sequential(layer, Linear()).eval(), images, checks=0, attacks={})
    assert (seen.frame.norm == norm).all() if norm else seen.frame.norm.isna().all()
    said = {'none': 'none', None: 'several kinds'}.get(norm, str(norm).upper())
    assert seen.facts['Model'].endswith(f'norm layers: {said}')


@pytest.mark.parametrize('norm', ['none', 'bn', 'in', 'ln', 'gn'])
def test_networks_of_the_package_have_the_norm_they_were_built_with(norm):
    assert _norm_kind(build_model('vgg11', norm, width=1 / 16)) == norm


def test_weights_that_would_run_code_are_an_error(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path / 'ran'), 'w'))
    torch.save(dict(w=Evil()), tmp_path / 'evil.pt')
    with pytest.raises(ValueError, match='without running its code'): read_weights(tmp_path / 'evil.pt')
    assert not (tmp_path / 'ran').exists()
    (tmp_path / 'cut.safetensors').write_bytes(b'123')
    with pytest.raises(ValueError, match='cut.safetensors'): read_weights(tmp_path / 'cut.safetensors')


def test_torchvision_by_name_with_a_local_file(tmp_path):
    from torchvision.models import squeezenet1_1
    net = squeezenet1_1(num_classes=3)
    torch.save(dict(model=net.state_dict()), tmp_path / 'w.pth')
    found, stats, _ = m.find_model('squeezenet1_1', tmp_path / 'w.pth')
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(found.eval()(x), net.eval()(x))
    with pytest.raises(ValueError, match='another network'): m.find_model('resnet18', tmp_path / 'w.pth')
    with pytest.raises(FileNotFoundError, match='No weights at'): m.find_model('resnet18', str(tmp_path / 'gone.pth'))


def test_library_weights_come_with_their_scale_or_an_error(monkeypatch, tmp_path):
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1
    state = squeezenet1_1().state_dict()
    asked = []
    def get(self, *a, **k): asked.append(k.get('weights_only')); return state
    monkeypatch.setattr(SqueezeNet1_1_Weights, 'get_state_dict', get)
    net, (mean, std), _ = m.find_model('squeezenet1_1', 'DEFAULT')
    assert asked[0] is True and list(mean) == [.485, .456, .406] and torch.equal(net.features[0].weight, state['features.0.weight'])
    def offline(self, *a, **k): raise OSError('no route')
    monkeypatch.setattr(SqueezeNet1_1_Weights, 'get_state_dict', offline)
    with pytest.raises(FileNotFoundError, match='cannot be downloaded .OSError.: fetch https.*--standardize imagenet'):
        m.find_model('squeezenet1_1', 'DEFAULT')


def test_a_file_of_the_librarys_weights_with_the_advised_scale_is_the_same_network(monkeypatch, images, tmp_path):
    from torchvision.models import Inception_V3_Weights, SqueezeNet1_1_Weights, squeezenet1_1
    state, im = squeezenet1_1().state_dict(), m.eval_images(images)
    torch.save(state, tmp_path / 'w.pth')
    monkeypatch.setattr(SqueezeNet1_1_Weights, 'get_state_dict', lambda self, *a, **k: state)
    (net, known, _), (bare, stats, _) = (m.find_model('squeezenet1_1', w) for w in ('DEFAULT', tmp_path / 'w.pth'))
    x = torch.rand(2, 3, 64, 64)
    both = m.with_standardize(net, None, known, im).eval()(x), m.with_standardize(bare, 'imagenet', stats, im).eval()(x)
    torch.testing.assert_close(*both)
    assert stats is None and not torch.allclose(both[0], bare(x))
    assert scale_advice('squeezenet1_1', SqueezeNet1_1_Weights.DEFAULT.transforms()) == '--standardize imagenet'
    assert '(0.5, 0.5, 0.5)' in scale_advice('inception_v3', Inception_V3_Weights.DEFAULT.transforms())


def test_the_help_says_that_a_files_network_is_taken_as_it_is():
    said = ' '.join(m.add_arguments(ArgumentParser()).format_help().split())
    assert "taken as it is (torchvision's want --standardize imagenet)" in said


def test_timm_is_asked_where_it_is_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ModuleNotFoundError, match='pip install timm'): m.find_model('nobody_net', 'DEFAULT')
    config = types.SimpleNamespace(resolve_model_data_config=lambda net: dict(mean=(.5,) * 3, std=(.5,) * 3))
    fake = types.SimpleNamespace(is_model=lambda name: name == 'linear_net', data=config,
                                 create_model=lambda name, pretrained=False, num_classes=4: Linear(num_classes))
    monkeypatch.setitem(sys.modules, 'timm', fake)
    assert m.find_model('linear_net', 'DEFAULT')[1] == ((.5,) * 3, (.5,) * 3)
    torch.save(Linear(6).state_dict(), tmp_path / 'w.pt')
    monkeypatch.setattr(fake, 'create_model', lambda name, num_classes=6, **k: Linear(6))
    assert m.find_model('linear_net', tmp_path / 'w.pt')[0].w.shape[0] == 6
    with pytest.raises(ValueError, match='neither'): m.find_model('nobody_net', 'DEFAULT')


@pytest.mark.parametrize('bits', [8, 32])
def test_a_published_network_can_be_measured(images, tmp_path, bits):
    file = tmp_path / 'net.safetensors'
    save_model(build_model('vgg11', 'ln', num_classes=4, width=1 / 16, seed=0), file, bits)
    seen, same = measured(str(file), images, checks=0), measured(load_model(file), images, checks=0)
    np.testing.assert_array_equal(seen.frame.value, same.frame.value)
    assert seen.name == 'net' and set(seen.frame.norm) == {'ln'}


def test_each_file_that_holds_no_network_has_its_own_error(tmp_path):
    from safetensors.torch import save_file
    net = build_model('vgg11', 'none', width=1 / 32, seed=0)
    save_model(net, tmp_path / 'whole.safetensors', 8), save_file(net.state_dict(), tmp_path / 'bare.safetensors')
    (tmp_path / 'cut.safetensors').write_bytes((tmp_path / 'whole.safetensors').read_bytes()[:-9])
    with pytest.raises(ValueError, match='does not say which network'): m.find_model(tmp_path / 'bare.safetensors')
    with pytest.raises(ValueError, match='cut.safetensors cannot be read'): m.find_model(tmp_path / 'cut.safetensors')


def test_weights_beside_a_file_of_a_network_are_used(tmp_path):
    one, two = (build_model('vgg11', 'none', width=1 / 32, seed=s) for s in (0, 1))
    save_model(one, tmp_path / 'one.safetensors'), torch.save(two.state_dict(), tmp_path / 'two.pt')
    found = m.find_model(tmp_path / 'one.safetensors', tmp_path / 'two.pt')
    assert all(torch.equal(v, found.model.state_dict()[k]) for k, v in two.state_dict().items())
    with pytest.raises(FileNotFoundError, match='No weights at DEFAULT'): m.find_model(tmp_path / 'one.safetensors', 'DEFAULT')


def test_a_function_of_the_user(images, monkeypatch, tmp_path):
    code = 'from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))\nnothing = 3\n'
    (tmp_path / 'own_models_for_test.py').write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert measured('own_models_for_test:make', images, checks=0).name == 'own_models_for_test:make'
    with pytest.raises(ValueError, match='names no function'): m.find_model('own_models_for_test:gone')
    with pytest.raises((TypeError, ValueError)): m.find_model('own_models_for_test:nothing')


def test_folders_in_three_layouts(tmp_path):
    def fill(place):
        for c in ('cat', 'dog'):
            (place / c).mkdir(parents=True)
            for i in range(3): Image.new('RGB', (20, 10), (80 * i, 90, 90)).save(place / c / f'{i}.png')
    fill(tmp_path / 'plain'), fill(tmp_path / 'only/test'), fill(tmp_path / 'both/train'), fill(tmp_path / 'both/val')
    for name in ('plain', 'only', 'both'):
        s = m.eval_images(tmp_path / name, size=8, limit=4)
        assert s.x.shape == (4, 3, 8, 8) and sorted(s.y.tolist()) == [0, 0, 1, 1] and s.classes == 2
    (tmp_path / 'plain/cat/0.png').write_text('no image')
    with pytest.raises(ValueError, match='0.png: not a readable image'): m.eval_images(tmp_path / 'plain')


def test_standardising_layer_is_put_before_the_model(images):
    im = m.eval_images(images)
    net = m.with_standardize(Linear(), 'data', None, im)
    mean, std = (torch.tensor(t).view(1, -1, 1, 1) for t in (im.mean, im.std))
    torch.testing.assert_close(net(images[0]), Linear()((images[0] - mean) / std), atol=1e-4, rtol=1e-4)
    assert isinstance(m.with_standardize(Linear(), 'none', ((.5,) * 3, (.5,) * 3), im), Linear)


def test_the_page_is_whole_and_escaped(images, tmp_path):
    html = measured(Rounded(Linear()), images, name='<x>').to_html(tmp_path / 'new/page.html').read_text()
    assert '&lt;x&gt;' in html and '<x>' not in html and 'src="http' not in html and html.count('<h1>') == 1
    for text in ('id="numbers"', 'id="checks"', 'rows.jsonl', 'undefined', 'Read with care'): assert text in html
    marks = re.findall(r'href="#check-(\d+)"', html)
    assert marks and all(f'id="check-{i}"' in html for i in marks)                       # a questioned number leads to the check


def test_command_line_on_a_model_of_ours(tmp_path, capsys):
    d = load('digits', 'test', limit=10)
    save_model(build_model('vgg11', 'none', in_channels=1, width=1 / 32, mean=d.mean, std=d.std, seed=0), tmp_path / 'net.safetensors')
    words = [str(tmp_path / 'net.safetensors'), 'digits', '--limit', '10', '--l2', '1', '--linf', '8/255', '--steps', '1', '--checks', '10',
             '--out', str(tmp_path / 'page.html'), '--rows', str(tmp_path / 'rows.jsonl'), '--strict']
    assert m.run(m.add_arguments(ArgumentParser()).parse_args(words)) == 1  # untrained: not better than guessing
    assert '✗ flagged' in capsys.readouterr().out and (tmp_path / 'page.html').is_file()
    rows = read_rows(tmp_path / 'rows.jsonl')
    assert set(rows.arch) == {'net'} and rows.eps.dropna().isin([1, 8 / 255, .5, 16]).all()


# --- what users bring: files of weights ---

def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4))


def under(head, state=None): return {f'{head}{k}': v for k, v in (state or small(1).state_dict()).items()}


def saved(tmp_path, content, **how):
    torch.save(content, tmp_path / 'w.pth', **how)
    return tmp_path / 'w.pth'


GOOD, OTHER = small(1).state_dict(), small(2).state_dict()
FILES = {
    'plain': GOOD, 'DataParallel': under('module.'), 'compiled': under('_orig_mod.'), 'compiled, parallel': under('module._orig_mod.'),
    'Lightning': dict(state_dict=under('model.'), epoch=3, hyper_parameters=argparse.Namespace(lr=.1), optimizer_states=[dict(state={0: dict(momentum=torch.rand(9999))})]),
    'Lightning with a metric and a teacher of another shape': dict(state_dict=under('net.') | {'loss.weight': torch.rand(4), 'acc.tp': torch.zeros(1)}),
    'compiled inside': {f'{k.split(".")[0]}._orig_mod.{k.split(".", 1)[1]}': v for k, v in GOOD.items()},
    'parallel inside': {f'{k.split(".")[0]}.module.{k.split(".", 1)[1]}': v for k, v in GOOD.items()},
    'EMA beside': dict(state_dict=OTHER, state_dict_ema=GOOD), 'EMA of timm': dict(model=OTHER, model_ema=under('module.')),
    'EMA in the same dict': under('model.', OTHER) | under('ema_model.'), 'EMA of lucidrains': under('online_model.', OTHER) | under('ema_model.') | dict(initted=torch.ones(1), step=torch.ones(1)),
    'EMA deep inside': dict(net=OTHER, ema=dict(decay=.9, module=GOOD)), 'averaged': under('module.') | dict(n_averaged=torch.tensor(3)),
    'EMA without statistics does not fit': dict(model=GOOD, ema={k: v for k, v in OTHER.items() if 'running' not in k}),
    'basicsr': dict(params=OTHER, params_ema=GOOD), 'thop': GOOD | dict(total_ops=torch.zeros(1)) | {'0.total_params': torch.zeros(1)},
    'without counters': {k: v for k, v in GOOD.items() if 'num_batches' not in k}, 'an epoch as a tensor': dict(epoch=torch.tensor(3), network=GOOD),
    'NumPy numbers': dict(net=GOOD, acc=np.float64(.9), best=[np.float32(1)]), 'an optimiser': dict(model_state=GOOD, optimizer=dict(state={'a': GOOD | OTHER})),
    'one unknown name': dict(mine=GOOD), 'several that fit not': dict(generator=GOOD, critic=dict(w=torch.rand(200)))}


@pytest.mark.parametrize('name', FILES)
def test_files_of_common_trainers_are_read(tmp_path, name):
    for how in (dict(), dict(_use_new_zipfile_serialization=False)):
        net = small(3)
        load_weights(net, read_weights(saved(tmp_path, FILES[name], **how)))
        assert all(torch.equal(v, GOOD[k]) for k, v in net.state_dict().items() if 'num_batches' not in k)


def test_the_report_says_which_entry_was_used_and_entry_chooses(images, tmp_path):
    file = saved(tmp_path, dict(state_dict=under('model.', OTHER), state_dict_ema=under('model.')))
    said = {entry: measured(small(), images, weights=file, entry=entry, attacks={}, checks=0).facts['Weights'] for entry in (None, 'state_dict')}
    assert said[None] == 'w.pth; entry state_dict_ema; prefix model. removed from the names; not used: state_dict'
    assert said['state_dict'] == 'w.pth; entry state_dict; prefix model. removed from the names'
    for entry, good in ((None, GOOD), ('state_dict_ema', GOOD), ('state_dict', OTHER), ('state_dict/model', OTHER)):
        net = small()
        m.find_model(net, file, entry)
        assert torch.equal(net[0].weight, good['0.weight']), entry
    with pytest.raises(ValueError, match="has no entry 'gone': it has state_dict_ema, state_dict|has no entry 'gone': it has state_dict, state_dict_ema"): m.find_model(small(), file, 'gone')
    with pytest.raises(ValueError, match='is for a file of weights'): m.find_model(small(), entry='gone')


@pytest.mark.parametrize('content, entry', [
    (under('student.') | under('teacher.', OTHER), 'student'), (dict(student=GOOD, teacher=OTHER), 'student'),
    (dict(first=under('a.'), second=under('a.', OTHER)), 'first'), (dict(prototypes=torch.rand(300), model=dict(w=torch.rand(200)), student=GOOD, teacher=OTHER), 'student')])
def test_where_several_entries_fit_the_user_must_choose(tmp_path, content, entry):
    file = saved(tmp_path, content)
    with pytest.raises(ValueError, match=r'several .* that fit \(.*\): choose one by entry= \(--entry\)'): m.find_model(small(), file)
    net = small()
    m.find_model(net, file, entry)
    assert torch.equal(net[0].weight, GOOD['0.weight'])


@pytest.mark.parametrize('content, message', [
    (dict(model=argparse.Namespace(a=1)), "'model' is a Namespace.*Save model.state_dict"), (dict(epoch=3, acc=.5), "'epoch' is a int, 'acc' is a float"),
    ([1, 2], 'it is a list'), ({}, 'no state dict'), (dict(optimizer=GOOD), 'no state dict'), (small(), 'Save model.state_dict')])
def test_files_without_weights_name_what_they_hold(tmp_path, content, message):
    with pytest.raises(ValueError, match=message): read_weights(saved(tmp_path, content))


def test_a_part_of_another_network_is_an_error(tmp_path):
    net = nn.Sequential(small(), nn.Linear(4, 4), nn.Linear(4, 2000))
    with pytest.raises(ValueError, match='weights of another network'): m.find_model(nn.Linear(4, 4), saved(tmp_path, net.state_dict()))


def test_names_of_old_densenets(tmp_path):
    from torchvision.models import DenseNet
    torch.manual_seed(0)
    net = DenseNet(4, (2, 2), 8, num_classes=5)
    old = {re.sub(r'(denselayer\d+\.(?:norm|relu|conv))([12])\.', r'\1.\2.', k): v for k, v in net.state_dict().items()}
    assert set(old) != set(net.state_dict())
    again = DenseNet(4, (2, 2), 8, num_classes=5)
    load_weights(again, read_weights(saved(tmp_path, dict(state_dict=under('module.', old)))))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


# --- images, labels, numbers ---

@pytest.mark.parametrize('labels', [list, tuple, lambda y: y.numpy(), lambda y: y.numpy().astype(np.uint8), lambda y: y.numpy().astype('>i2'), lambda y: y.numpy().astype(np.uint64),
                                    lambda y: y.byte(), lambda y: y.int(), lambda y: y.tolist(), lambda y: y.numpy()[::-1].copy()[::-1]])
def test_labels_of_any_integer_type(images, labels):
    x, y = images
    assert measured(Linear(), (x, labels(y)), checks=0)['clean_accuracy'] == 1
    assert measured(Linear(), (x.numpy(), labels(y)), checks=0, attacks={})['clean_accuracy'] == 1


@pytest.mark.parametrize('spoil, message', [
    (lambda x, y: (x, y.float()), 'y is torch.float32.*whole number'), (lambda x, y: (x, y[:, None]), 'y is torch.int64 of shape'), (lambda x, y: (x, y - 1), 'y holds -1'),
    (lambda x, y: (x, ['a'] * len(y)), 'y is a list that is no array of numbers'), (lambda x, y: (x, y == 1), 'y is torch.bool'),
    (lambda x, y: (x, torch.cat([y[:-1], torch.tensor([7])])), 'y holds 7, the model knows 0 to 3'),
    (lambda x, y: (x / x.max() * 1.0000001, y), r'x has values outside \[0, 1\] \(largest 1 \+ 1\.2e-07\)\. Pass x\.clamp\(0, 1\)'),
    (lambda x, y: (x - .5, y), r'outside \[0, 1\] \(smallest'), (lambda x, y: (torch.where(x > x.mean(), float('nan'), x), y), 'x holds NaN or infinite values in'),
    (lambda x, y: ((x * 255).int(), y), 'x is torch.int32')])
def test_images_and_labels_that_are_none_are_named(images, spoil, message):
    with pytest.raises((ValueError, TypeError), match=message): measured(Linear(), spoil(*images))


@pytest.mark.parametrize('numbers', [dict(batch_size=np.int64(5)), dict(batch_size=5.), dict(limit=8.), dict(limit=np.float32(8)), dict(seed=np.int32(1)), dict(checks=np.uint8(4))])
def test_whole_numbers_may_come_as_floats_or_numpys(images, numbers):
    plain = {k: int(v) for k, v in numbers.items()}
    a, b = (measured(Linear(), images, **dict(checks=0, attacks={}) | n).frame for n in (numbers, plain))
    np.testing.assert_array_equal(a.value, b.value)


@pytest.mark.parametrize('numbers', [dict(batch_size=True), dict(limit=8.5), dict(limit='8'), dict(checks=float('nan')), dict(seed=None)])
def test_what_is_no_whole_number_is_named(images, numbers):
    with pytest.raises(ValueError, match=f'{[*numbers][0]}=.*: pass a whole number from'): measured(Linear(), images, **numbers)


def test_a_large_eps_is_probably_in_grey_levels(images, tmp_path, capsys, monkeypatch):
    with pytest.warns(m.LargeEps, match=r"'pgd_linf' has eps 8 in linf.*Write 8/255"): measured(Linear(), images, attacks=m.attacks_at(linf=8, steps=1), checks=0)
    with pytest.warns(m.LargeEps, match='in l2'): measured(Linear(), images, attacks=m.attacks_at(l2=128, steps=1), checks=0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own_net_eps.py').write_text('from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))\n')
    for linf, said in (('8', True), ('8/255', False)):
        m.run(m.add_arguments(ArgumentParser()).parse_args(f'own_net_eps:make digits --limit 10 --steps 1 --checks 0 --linf {linf}'.split()))
        assert ('nrf-repro: attack' in capsys.readouterr().err) == said


def test_the_package_can_be_called(images):
    import inspect

    import nrf_repro
    one, two = (f(Linear(), images, attacks={}, checks=0, progress=False) for f in (nrf_repro.measure, m.measure))
    assert one['clean_accuracy'] == two['clean_accuracy'] and isinstance(one, nrf_repro.Measurement)
    assert inspect.signature(nrf_repro.measure) == inspect.signature(m.measure) and 'measure' in nrf_repro.__all__
    code = 'import sys, nrf_repro; assert "torch" not in sys.modules; assert callable(nrf_repro.measure); from nrf_repro import measure; assert callable(measure)'
    subprocess.run([sys.executable, '-c', code], check=True)


# --- models ---

class Batchy(nn.Module):
    def __init__(self, f): super().__init__(); self.net, self.f = Linear(), f
    def forward(self, x): return self.net(self.f(x))


def trained_mode(x): return torch.nn.functional.batch_norm(x, None, None, training=True) * .2 + .5


@pytest.mark.parametrize('mix', [trained_mode, lambda x: x - x.mean(0) + .5, lambda x: .7 * x + .3 * x.roll(1, 0), lambda x: .7 * x + .3 * x.flip(0), lambda x: x / x.amax()])
@pytest.mark.parametrize('batch_size', [1, 5, 256])
def test_predictions_that_depend_on_the_batch_are_named(images, mix, batch_size):
    assert 'batch' in measured(Batchy(mix), images, batch_size=batch_size, attacks={}).flagged


@pytest.mark.parametrize('net', [Linear(), small().eval(), nn.Sequential(nn.InstanceNorm2d(3), Linear()), nn.Sequential(nn.GroupNorm(3, 3), Linear())])
def test_predictions_that_depend_on_their_image_alone_are_not(images, net): assert 'batch' not in measured(net, images, attacks={}).flagged


def test_one_image_is_enough_to_see_it(images):
    x, y = images
    assert 'batch' in measured(Batchy(lambda x: x - x.mean(0) + .5), (x[:1], y[:1]), attacks={}).flagged


class Of(nn.Module):
    def __init__(self, f): super().__init__(); self.net, self.f = Linear(), f
    def forward(self, x): return self.f(self.net, x)


class Stateful(Linear):
    def get_extra_state(self): return dict(version=1)
    def set_extra_state(self, state): pass


@pytest.mark.parametrize('made, message', [
    (lambda: Of(lambda n, x: n(x).squeeze()), 'squeeze'), (lambda: torch.jit.script(Linear()), 'TorchScript'),
    (lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), {nn.Linear}), 'quantised layer'),
    (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), 'Run the model once'),
    (lambda: Of(lambda n, x: torch.utils.checkpoint.checkpoint(n, x, use_reentrant=True)), 'use_reentrant=False')])
def test_a_module_that_cannot_be_measured_is_an_error_in_one_line(images, made, message):
    before = images[0].clone()
    with pytest.raises((ValueError, TypeError), match=message): measured(made(), images)
    assert torch.equal(images[0], before)


@pytest.mark.parametrize('in_place, apart', [(lambda n, x: n(x.sub_(.1)), lambda n, x: n(x - .1)), (lambda n, x: n(x.mul_(2)), lambda n, x: n(x * 2)),
                                             (lambda n, x: n(x.clamp_(.2, .8)), lambda n, x: n(x.clamp(.2, .8)))])
def test_a_forward_that_overwrites_its_images_changes_no_number_and_no_image(images, in_place, apart):
    before = images[0].clone()
    a, b = (measured(Of(f), images) for f in (in_place, apart))
    assert torch.equal(images[0], before)
    assert a.rows.value.equals(b.rows.value) and a.checks.equals(b.checks)


def test_extra_state_is_no_obstacle(images): assert measured(Stateful(), images, checks=0, attacks={})['clean_accuracy'] == 1


@pytest.mark.parametrize('text, message', [
    ('import a_package_that_is_not_here', "cannot be imported .ModuleNotFoundError: No module named 'a_package_that_is_not_here'"), ('def make(:', 'cannot be imported .SyntaxError'),
    ('def make(): return 1 / 0', r'fails \(ZeroDivisionError'), ('def make(size): pass', r'without arguments'), ('made = 3', "has no 'make'")])
def test_the_error_of_a_module_of_the_user_names_the_cause(monkeypatch, tmp_path, text, message):
    name = f'own_{abs(hash(text))}'
    (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=message): m.find_model(f'{name}:make')


def test_the_standardising_layer_is_where_the_model_is(images):
    layer = m.with_standardize(nn.Linear(2, 2, device='meta'), 'data', None, m.eval_images(images))[0]
    assert layer.mean.device.type == layer.std.device.type == 'meta'


# --- folders ---

class ReadsBrightness(nn.Module):
    def __init__(self, places): super().__init__(); self.places = torch.tensor(places).float()
    def forward(self, x): return -(x.mean((1, 2, 3))[:, None] * 255 / 20 - self.places) ** 2


def numbered(folder):
    for i in range(12):
        (folder / str(i)).mkdir()
        for k in range(4): Image.new('RGB', (8, 8), (20 * i,) * 3).save(folder / str(i) / f'{k}.png')
    (folder / '.ipynb_checkpoints').mkdir()
    return folder


def test_numbered_folders_are_labels_by_number_and_another_order_is_named(tmp_path):
    folder = numbered(tmp_path)
    by_number, by_text = (measured(ReadsBrightness(order), folder, size=8, attacks={}) for order in (range(12), sorted(range(12), key=str)))
    assert by_number['clean_accuracy'] == 1 and by_number.flagged == [] and by_number.facts['Classes by label'].startswith('0, 1, 2, 3')
    assert by_text['clean_accuracy'] < 1 and 'class order' in by_text.flagged


# --- channels, several networks, and models of other libraries ---

def folder_of_images(place, mode, size=(16, 16), n=3):
    colours = np.random.default_rng(0).integers(0, 256, (2, n, *size, 3), dtype=np.uint8)
    for c, of_class in zip('ab', colours):
        (place / c).mkdir(parents=True)
        for i, pixels in enumerate(of_class): Image.fromarray(pixels).convert(mode).save(place / c / f'{i}.png')
    return place


@pytest.mark.parametrize('make', [lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, 2)), lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 2))])
@pytest.mark.parametrize('standardize', [None, 'data'])
def test_a_grey_folder_fits_a_model_of_one_channel(tmp_path, make, standardize):
    net, folder = make(), folder_of_images(tmp_path / 'grey', 'L')
    seen = measured(net, folder, size=16, standardize=standardize)
    assert '1 × 16 × 16' in seen.facts['Images']
    im = m.eval_images(folder, size=16)
    x = im.pixels()[:, :1]
    layered = m.with_standardize(net, standardize, None, replace(im, x=im.x[:, :1], mean=im.mean[:1], std=im.std[:1]))
    assert seen['clean_accuracy'] == (layered(x).argmax(1) == im.y).double().mean().item()
    same = measured(net, (x, im.y), standardize=standardize)
    np.testing.assert_allclose(seen.frame.value, same.frame.value, atol=1e-6)


def test_a_grey_folder_keeps_three_channels_for_a_model_that_takes_them(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 2))
    assert '3 × 16 × 16' in measured(net, folder_of_images(tmp_path / 'grey', 'L'), size=16).facts['Images']


def test_colours_are_not_made_grey_in_silence(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, 2))
    with pytest.raises(ValueError, match='the model takes one channel, and colour holds images in colour. Save them as grey images'):
        measured(net, folder_of_images(tmp_path / 'colour', 'RGB'), size=16)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    "Two networks, a file of bare weights, a file that is none, and grey images."
    for name in 'ab': save_model(build_model('vgg11', 'none', in_channels=1, num_classes=2, width=1 / 32, seed='ab'.index(name)), tmp_path / f'nets/{name}.safetensors')
    torch.save(nn.Linear(256, 2).state_dict(), tmp_path / 'bare.pt'), (tmp_path / 'cut.pt').write_text('no network')
    folder_of_images(tmp_path / 'grey', 'L', (32, 32))
    (tmp_path / 'own_linear.py').write_text('from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))\n')
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)).state_dict(), tmp_path / 'linear.pt')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def measure_command(capsys, words, quick='--size 32 --steps 1 --checks 0'):
    from nrf_repro.cli import main
    try: status = main(['measure', *words.split(), *quick.split()])
    except SystemExit as e: status = e.code
    said = capsys.readouterr()
    assert 'Traceback' not in said.err
    return status, said.out, said.err


@pytest.mark.parametrize('words', ['nets/a.safetensors nets/b.safetensors --data grey', 'nets --data grey', 'nets grey', '--data grey nets/a.safetensors --seed 0 nets/b.safetensors'])
def test_several_checkpoints_have_one_table(checkpoints, capsys, words):
    status, out, _ = measure_command(capsys, f'{words} --rows rows.jsonl --out page.html')
    lines = [line for line in out.splitlines() if line.startswith('| ')]
    assert status == 0 and [line.split(' | ')[0] for line in lines] == ['| Network', '| ---', '| a', '| b']
    rows = read_rows('rows.jsonl')
    for line, name in zip(lines[2:], 'ab'):
        one = measured(f'nets/{name}.safetensors', 'grey', size=32, checks=0, attacks=m.attacks_at(steps=1))
        assert f'{100 * one["clean_accuracy"]:.1f} %' in line and f'{one["ligs"]:.3f}' in line
        np.testing.assert_array_equal(sorted(rows.value[rows.arch == name]), sorted(one.rows.value))
    page = Path('page.html').read_text()
    for text in (out, page): assert 'PGD ℓ2: eps 0.25, ' in text and 'LIGS: sigma ' in text      # numbers without their settings say little
    assert page.count('<tr>') == 3 and 'src="http' not in page and 'rows.jsonl' in page


def test_an_error_in_one_checkpoint_is_named_and_the_others_are_kept(checkpoints, capsys):
    import json
    status, out, err = measure_command(capsys, 'cut.pt nets/a.safetensors bare.pt gone.pt --data grey --json --rows rows.jsonl')
    found = {one['name']: one for one in json.loads(out)['networks']}
    assert status == 2 and list(found) == ['cut', 'a', 'bare', 'gone.pt'] and set(read_rows('rows.jsonl').arch) == {'a'}
    for name, message in dict(cut='cut.pt holds no weights', bare='bare.pt does not say which network it is of. Name the network: measure(NAME, images, weights=FILE), or --model NAME',
                              **{'gone.pt': 'No network at gone.pt'}).items():
        assert message in found[name]['error'] and f'nrf-repro: {name}: ' in err and message in err
    assert found['a']['results'][0]['n'] == 6
    status, out, _ = measure_command(capsys, 'cut.pt nets/a.safetensors --data grey')
    assert status == 2 and '| cut | ' in out and 'not measured: cut.pt holds no weights' in out and '| a | 6 |' in out


def test_files_of_weights_of_one_network(checkpoints, capsys):
    (checkpoints / 'other').mkdir()
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)).state_dict(), 'other/linear.pt')
    status, out, _ = measure_command(capsys, 'linear.pt other/linear.pt bare.pt --data grey --model own_linear:make')
    assert status == 2 and [line.split(' | ')[0] for line in out.splitlines()[2:5]] == ['| linear.pt', '| other/linear.pt', '| bare']
    assert 'weights of another network' in out.splitlines()[4]
    status, out, _ = measure_command(capsys, 'linear.pt grey --model own_linear:make')
    assert status == 0 and out.startswith('## linear\n')


@pytest.mark.parametrize('words, message', [
    ('nets/a.safetensors', 'give one MODEL and IMAGES, or any number of them and --data IMAGES.'), ('a.pt b.pt c.pt', 'or any number of them and --data IMAGES'),
    ('empty --data grey', 'empty is a folder without checkpoints (.pt, .pth, .ckpt, .bin, .tar, .safetensors). Name a file'), ('nets grey --name x', '--name x: there are several networks'),
    ('linear.pt grey --model own_linear:make --weights x.pt', '--model says that every MODEL is a file of weights: leave --weights out.'),
    ('nets/a.safetensors nets/a.safetensors --data grey', 'nets/a.safetensors is given twice'), ('nets gone', 'gone is no folder, nor one of the data sets'),
    ('nets grey --batch-size 0', 'batch_size=0: pass a whole number'), ('nets grey --l2 -1', 'must be above 0')])
def test_wrong_words_about_several_networks_are_one_error(checkpoints, capsys, words, message):
    (checkpoints / 'empty').mkdir()
    status, out, err = measure_command(capsys, words.replace('--l2 -1', '--l2=-1'))
    errors = [line for line in err.splitlines() if line.startswith('nrf-repro: ') and 'other processes' not in line]   # a busy machine is mentioned too
    assert status == 2 and not out and len(errors) == 1 and message in errors[0]


def test_an_interruption_keeps_the_networks_that_were_measured(checkpoints, capsys, monkeypatch):
    from nrf_repro.measure import command as measuring
    usual = measuring.measure
    def interrupted(model, *a, **k):
        if 'b.safe' in model: raise KeyboardInterrupt
        return usual(model, *a, **k)
    monkeypatch.setattr(measuring, 'measure', interrupted)
    status, out, err = measure_command(capsys, 'nets grey --rows rows.jsonl')
    assert status == 130 and err.endswith('Interrupted; measured before: a; rows.jsonl was written.\n') and '| a | 6 |' in out
    assert set(read_rows('rows.jsonl').arch) == {'a'}


def test_strict_and_a_warning_for_all(checkpoints, capsys):
    assert measure_command(capsys, 'nets grey --strict', '--size 32 --steps 1 --checks 6')[0] == 1    # not trained
    assert measure_command(capsys, 'nets grey --linf 8')[2].count('has eps 8 in linf') == 2           # of two attacks, not of two networks


PAGE = (Path(__file__).parent.parent / 'docs/pages/test_a_model.md').read_text(encoding='utf-8')
EXAMPLES = dict(re.findall(r'\*\*([\w ]+)\*\*[^`]*(?:`[^`]+`[^`]*)*```python\n(.*?)```', PAGE.partition('## Models of other libraries')[2], re.S))


def like_timm():
    config = types.SimpleNamespace(resolve_model_data_config=lambda net: dict(mean=(.4,) * 3, std=(.2,) * 3))
    make = lambda name, pretrained=False, num_classes=2: nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
    return types.SimpleNamespace(is_model=lambda name: name == 'resnet10t', data=config, create_model=make)


class LikeHuggingFace(nn.Module):
    def __init__(self): super().__init__(); self.net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
    def forward(self, pixel_values, labels=None): return types.SimpleNamespace(logits=self.net(pixel_values), loss=None)


@pytest.mark.parametrize('library', EXAMPLES)
def test_the_examples_of_the_documentation_run(monkeypatch, tmp_path, library):
    "With the library itself where it is locked, else with a small module that has the same interface."
    from torchvision.models import resnet18
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path / 'photos', 'RGB', (64, 64), n=1)
    net = resnet18(num_classes=2)
    torch.save(net.state_dict(), 'resnet18.pt')
    torch.save(dict(state_dict=under('model.', net.state_dict()), epoch=1, global_step=9, hyper_parameters=argparse.Namespace(lr=.1), optimizer_states=[]), 'last.ckpt')
    monkeypatch.setitem(sys.modules, 'timm', like_timm())
    hub = types.SimpleNamespace(from_pretrained=lambda folder: LikeHuggingFace())
    scale = types.SimpleNamespace(from_pretrained=lambda folder: types.SimpleNamespace(image_mean=[.5] * 3, image_std=[.5] * 3))
    monkeypatch.setitem(sys.modules, 'transformers', types.SimpleNamespace(AutoModelForImageClassification=hub, AutoImageProcessor=scale))
    quick = measurement.measure
    monkeypatch.setattr('nrf_repro.measure', lambda *a, **k: quick(*a, **k, attacks=m.attacks_at(steps=1), checks=0, progress=False), raising=False)
    exec(EXAMPLES[library], space := {})
    assert space['result'].frame.n.max() == 2 and 0 <= space['result']['clean_accuracy'] <= 1
    if library == 'Lightning':
        assert torch.equal(space['net'].fc.weight, net.fc.weight) and 'prefix model. removed' in space['result'].facts['Weights']


def test_every_library_has_an_example(): assert set(EXAMPLES) == {'torchvision', 'timm', 'Lightning', 'Hugging Face'}


def test_an_output_with_logits_names_the_wrapper(images):
    with pytest.raises(TypeError, match=r'returns a SimpleNamespace. Wrap it so that it returns logits: nrf_repro.measure.Logits\(model\)'): measured(LikeHuggingFace(), images)


# --- what is printed, pipes and devices ---

OWN = 'from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))\n'
WORDS = 'measure own_net:make digits --limit 10 --steps 1 --checks 0 --rows rows.jsonl --out page.html'


def command(tmp_path, words=WORDS, **how):
    (tmp_path / 'own_net.py').write_text(OWN)
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)) | how.pop('env', {})
    return subprocess.Popen([sys.executable, '-m', 'nrf_repro', *words.split()], cwd=tmp_path, env=env, **how)


def test_a_terminal_that_knows_ascii_alone_loses_nothing(tmp_path):
    run = command(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(PYTHONIOENCODING='ascii', PYTHONUTF8='0', LC_ALL='C'))
    out, err = run.communicate()
    assert run.returncode == 0 and b'PGD ?2' in out and len(read_rows(tmp_path / 'rows.jsonl')) == 8 and 'ℓ' in (tmp_path / 'page.html').read_text()


def test_closed_pipes_lose_nothing(tmp_path):
    run = command(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close(), run.stderr.close()
    assert run.wait() == 0
    assert len(read_rows(tmp_path / 'rows.jsonl')) == 8 and (tmp_path / 'page.html').is_file()


def test_rows_into_stdout_a_file_descriptor_and_a_pipe(tmp_path):
    (tmp_path / 'own_net.py').write_text(OWN)
    words = WORDS.replace('rows.jsonl', '/dev/stdout').split()
    status, seen = forked.piped(words, 'cat', tmp_path)
    assert status == 0 and seen.count('"metric": "') == 8
    with open(tmp_path / 'log', 'wb') as log, open(tmp_path / 'err', 'wb') as err:
        log.write(b'before\n'), log.flush()
        assert forked.run(words, tmp_path, {}, log.fileno(), err.fileno()) == 0
    said = (tmp_path / 'log').read_text()
    assert said.startswith('before\n{') and said.count('"metric": "') == 8 and '# own_net:make' in said


@pytest.mark.parametrize('path', ['/dev/null', '/dev/stdout', '/dev/fd/1'])
def test_devices_and_streams_may_be_written_to(path): _check_writable('--rows', path)


# --- in a browser ---

@pytest.fixture(scope='module')
def page_url(images, tmp_path_factory):
    "A model that fails some checks."
    return measured(Rounded(Linear()), images).to_html(tmp_path_factory.mktemp('measure') / 'page.html').as_uri()


@pytest.mark.parametrize('width', [1280, 390, 320])
def test_page_fits(opened, width): assert opened(width).evaluate('document.documentElement.scrollWidth') <= width


@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (1280, 'dark'), (390, 'light')])
def test_page_is_legible(opened, faint_of, width, scheme): assert not faint_of(opened(width, color_scheme=scheme))


@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (1280, 'dark'), (390, 'dark')])
def test_no_serious_accessibility_fault(faults_of, opened, width, scheme): assert not faults_of(opened(width, color_scheme=scheme))


def test_an_entry_that_two_parts_of_a_file_have_is_named_with_its_part(tmp_path):
    file = saved(tmp_path, dict(model=under('student.') | under('teacher.', OTHER), ema=under('student.', OTHER)))
    with pytest.raises(ValueError, match='several entries .student.*model/student, ema/student'): read_weights(file, 'student')
    assert torch.equal(read_weights(file, 'model/student')['0.weight'], GOOD['0.weight'])


@pytest.mark.parametrize('weights', [dict(state_dict=GOOD), GOOD | dict(epoch=3), Path('w.pt'), 'w.pt'])
def test_what_is_no_state_dict_is_named(weights):
    with pytest.raises(TypeError, match='state dict|read_weights'): load_weights(small(), weights)


def test_a_module_with_extra_state_loads_its_own_state_dict(): assert load_weights(Stateful(), Stateful().state_dict()) is not None


def test_a_damaged_file_is_not_called_code(tmp_path):
    file = Path(saved(tmp_path, GOOD))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match='cannot be read .*copy or download it again'): read_weights(file)


def test_names_of_timms_weights_are_not_ignored(monkeypatch):
    timm = types.SimpleNamespace(is_model=lambda name: True, create_model=lambda *a, **k: small())
    monkeypatch.setitem(sys.modules, 'timm', timm)
    with pytest.raises(ValueError, match='give vit_small.TAG and DEFAULT'): m.find_model('vit_small', 'augreg_in21k')


def test_a_size_for_a_data_set_of_one_size_is_an_error_and_a_path_is_a_folder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='fixed size'): m.eval_images('digits', size=64)
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        (tmp_path / 'digits' / name).mkdir(parents=True)
        Image.new('RGB', (40, 40), (90, 9, 9)).save(tmp_path / 'digits' / name / 'x.png')
    assert m.eval_images(Path('digits'), size=32).name == 'digits' and len(m.eval_images(Path('digits'))) == 2 and len(m.eval_images('digits')) > 2


def test_images_of_a_table_are_chosen_once(images):
    once = m.eval_images(images, 20)
    assert m.eval_images(once, 20) is once


@pytest.mark.parametrize('stats', [np.array([[.5], [.2]]), .5, ([.5],), ((.5,), (0.,)), ('a', 'b')])
def test_a_standardisation_that_is_no_pair_is_named_or_used(images, stats):
    if isinstance(stats, np.ndarray): return measured(Linear(), images, standardize=stats, attacks={}, checks=0)
    with pytest.raises(ValueError, match=r'give \(mean, std\)'): measured(Linear(), images, standardize=stats, attacks={}, checks=0)


def test_half_precision_behind_the_first_layer_is_an_error(images):
    class To(nn.Module):
        def forward(self, x): return x.bfloat16()
    mixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 20), To(), nn.Linear(20, 4).bfloat16())
    with pytest.raises(ValueError, match='model.float()'): measured(mixed, images)


def test_a_model_that_refuses_other_scales_is_measured(images):
    class Guard(nn.Module):
        def __init__(self): super().__init__(); self.net = Linear()
        def forward(self, x):
            if x.max() > 2: raise ValueError('divide by 255')
            return self.net(x)
    assert 'input scale' in set(measured(Guard(), images).checks.name)


def test_attacks_with_a_set_and_a_loss_of_the_user(images):
    own = Attack(ball=PERTURBATION_SETS['l2'], eps=.25, loss='ce', steps=1, step_size=.1)
    loss = Attack('l2', .25, lambda z, y: z.softmax(1) - F.one_hot(y, z.shape[1]), 1, .1)
    names = set(measured(Linear(), images, attacks=dict(own=own, loss=loss, cw=Attack('l2', .25, 'cw', 1, .1))).checks.name)
    assert {'more steps, own'} <= names


def test_a_constant_model_has_learned_nothing(images):
    class Constant(nn.Module):
        def forward(self, x): return torch.zeros(len(x), 1000).index_fill(1, torch.tensor([3]), 1.) + 0 * x.flatten(1).sum(1, keepdim=True)
    checks = measured(Constant(), images, attacks={}).checks.set_index('name').verdict
    assert checks['classes'] == 'open' and checks['above chance'] == 'flagged'


def test_a_grey_image_is_right_for_the_images_of_its_class():
    class Bright(nn.Module):
        def forward(self, x):
            bright = x.flatten(1).mean(1)
            return 20 * torch.stack([.25 - bright, bright - .25], 1)
    x = torch.cat([torch.rand(20, 1, 8, 8) * .08, 1 - torch.rand(20, 1, 8, 8) * .06])
    checks = measured(Bright(), (x, torch.arange(40) // 20), attacks=m.attacks_at(.25, 8 / 255, 5)).checks.set_index('name').verdict
    assert {checks[name] for name in checks.index if name.startswith('large ball')} == {'passed'}


def test_a_random_model_with_an_excluded_class_is_flagged(images):
    class Masked(nn.Module):
        def __init__(self): super().__init__(); self.net = Linear()
        def forward(self, x): return torch.cat([self.net(x + .3 * torch.randn_like(x)), torch.full((len(x), 1), -torch.inf)], 1)
    assert 'deterministic' in measured(Masked(), images, attacks={}).flagged


def test_one_file_for_page_and_rows_is_an_error(tmp_path, checkpoints):
    out = str(tmp_path / 'same.txt')
    words = [str(checkpoints / 'nets/a.safetensors'), 'digits', '--limit', '9', '--out', out, '--rows', out]
    with pytest.raises(ValueError, match='name the same file'): m.run(m.add_arguments(ArgumentParser()).parse_args(words))


@pytest.mark.parametrize('name', [0, '', 'clean', 'clean_accuracy', 'ligs'])
def test_names_that_an_attack_cannot_have(images, name):
    with pytest.raises(ValueError, match='choose another name'): measured(Linear(), images, attacks={name: QUICK['pgd_l2']})


def test_a_set_that_cannot_be_hashed_is_named(images):
    @dataclass
    class Own:
        project, steepest, random = PERTURBATION_SETS['l2']
    with pytest.raises(TypeError, match='frozen=True'): measured(Linear(), images, attacks=dict(own=replace(QUICK['pgd_l2'], ball=Own())))


def test_a_value_that_was_not_measured_is_named(images):
    result = measured(Linear(), images, checks=0)
    assert result['ligs'] == result.frame.value[result.frame.metric == 'ligs'].item()
    with pytest.raises(KeyError, match='choose one of clean_accuracy, pgd_l2'): result['pgd']


def test_a_model_may_be_named_by_its_path(images): assert measured(Linear(), images, attacks={}, checks=0, name=Path('a.pt')).name == 'a.pt'


def test_an_eps_that_is_text_is_named():
    with pytest.raises(ValueError, match="linf='8/255'"): m.attacks_at(linf='8/255')
