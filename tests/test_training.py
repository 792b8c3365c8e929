"""Training depends on the seed alone, also after an interruption, and follows the recipe."""
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import forked
from nrf_repro.attacks import Attack
from nrf_repro.data import load
from nrf_repro.models import build_model, save_tensors
from nrf_repro.studies.regularization import LigsLoss
from nrf_repro.training import loop
from nrf_repro.training.loop import Monitor, SingleProcess, correct, fit
from nrf_repro.training.recipe import RECIPES, Recipe, batches, cross_entropy, lr_at, random_crop, random_flip, random_flips, random_shifts
from nrf_repro.training.state import AnotherRun, described, key_difference, run_key

ROOT = Path(__file__).parent.parent

RECIPE = replace(RECIPES['digits'], epochs=2, batch_size=32, augment='crop', seed=0)


@pytest.fixture(scope='module')
def train(): return load('digits', 'train', limit=160)


def network(norm='bn', seed=0): return build_model('vgg11', norm, in_channels=1, width=1/16, seed=seed)


def equal(a, b): return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_one_seed_one_result_and_another_seed_another(train):
    a, b, c = network(), network(), network()
    for model, recipe in ((a, RECIPE), (b, RECIPE), (c, replace(RECIPE, seed=1))): fit(model, train, recipe, progress=False)
    assert equal(a, b) and not equal(a, c)


@pytest.mark.parametrize('attack', [None, Attack('l2', .5, 'ce', 1, .5, targeted=True)])
def test_a_training_that_is_killed_and_resumed_ends_with_the_same_weights(train, tmp_path, attack):
    recipe = replace(RECIPE, epochs=3, attack=attack)
    whole, broken = network(), network()
    fit(whole, train, recipe, progress=False)

    def kill(epoch, model, record):
        if epoch == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(broken, train, recipe, folder=tmp_path, on_epoch=kill, progress=False)
    seen = []
    broken = network()  # a new process knows the seed and the folder
    history = fit(broken, train, recipe, folder=tmp_path, on_epoch=lambda e, *_: seen.append(e), progress=False)
    assert seen == [2, 3] and list(history.epoch) == [1, 2, 3] and equal(whole, broken)


@dataclass(frozen=True)
class Times:
    factor: float
    def __call__(self, model, x, y): return self.factor * cross_entropy(model, x, y)


def squares(model, x, y): return F.mse_loss(model(x).softmax(1), F.one_hot(y, 10).float())


def line(seed=0, k=10):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, k))


def closure(factor):
    def loss(model, x, y): return factor * cross_entropy(model, x, y)
    return loss


@pytest.mark.parametrize('change, named', [
    (dict(recipe=replace(RECIPE, lr=.01)), r'recipe\.lr \(0\.05 there, 0\.01 now\)'), (dict(recipe=replace(RECIPE, seed=5)), r'recipe\.seed'),
    (dict(recipe=replace(RECIPE, attack=Attack('l2', .5, 'ce', 1, .5))), r'recipe\.attack'),
    (dict(loss=squares), r'loss \("nrf_repro\.training\.recipe\.cross_entropy" there, "squares" now\)'), (dict(loss=Times(2.)), 'loss'),
    (dict(loss=closure(2.)), 'loss'), (dict(seed=7), 'initial weights'), (dict(limit=96), 'images'),
    (dict(monitor=True), 'monitor'), (dict(frozen=True), 'frozen')])
def test_another_run_in_the_same_folder_is_an_error_that_names_the_difference(train, tmp_path, change, named):
    def run(recipe=RECIPE, loss=cross_entropy, seed=0, limit=160, monitor=False, frozen=False):
        model = line(seed)
        if frozen: model[1].bias.requires_grad_(False)
        fit(model, train[:limit], recipe, loss=loss, monitor=Monitor(train[:9], sigma=None) if monitor else None, folder=tmp_path, progress=False)
        return model
    first, kept = run(), (tmp_path / 'state.safetensors').read_bytes()
    with pytest.raises(AnotherRun, match=f'state.safetensors holds another run: they differ in {named}'): run(**change)
    assert (tmp_path / 'state.safetensors').read_bytes() == kept
    assert equal(run(), first)  # the run itself is kept


@pytest.mark.parametrize('other, named', [(Times(3.), 'loss'), (closure(3.), 'loss'), (partial(closure(2.)), 'loss'), (nn.CrossEntropyLoss(), 'loss')])
@pytest.mark.parametrize('mine', [Times(2.), closure(2.)])
def test_losses_are_distinguished_by_what_they_compute(mine, other, named):
    key = run_key(line(), load('digits', 'train', limit=20), RECIPE, loss=mine)
    again = type(mine)(2.) if isinstance(mine, Times) else closure(2.)
    assert run_key(line(), load('digits', 'train', limit=20), RECIPE, loss=again) == key
    assert named in key_difference(key, run_key(line(), load('digits', 'train', limit=20), RECIPE, loss=other))


def test_two_networks_of_one_shape_are_distinguished_by_their_code():
    def made(f):
        class Net(nn.Linear):
            def forward(self, x): return super().forward(f(x.flatten(1)))
        torch.manual_seed(0)
        return Net(1024, 10)
    class Other(nn.Linear):
        def forward(self, x): return 2 * super().forward(x.flatten(1))
    Other.__qualname__ = type(made(torch.relu)).__qualname__
    train = load('digits', 'train', limit=20)
    torch.manual_seed(0)
    keys = [run_key(m, train, RECIPE) for m in (made(torch.relu), made(torch.relu), Other(1024, 10))]
    assert keys[0] == keys[1] != keys[2]


def test_a_key_is_the_same_in_another_process(tmp_path):
    (tmp_path / 'own_loss.py').write_text('from dataclasses import dataclass\nimport torch.nn.functional as F\nNAMES = {"a", "b", "c"}\nWEIGHT = 2.\n'
        '@dataclass(frozen=True)\nclass Loss:\n    power: int = 2\n    def __call__(self, model, x, y):\n'
        '        return WEIGHT * F.cross_entropy(model(x), y) ** self.power * (len(NAMES) in {"x", "y", 3})\n')
    code = 'import json; from own_loss import Loss; from nrf_repro.training.state import described; print(json.dumps(described(Loss())))'
    def said(seed, code=code):
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=path, PYTHONHASHSEED=seed), capture_output=True, text=True, check=True).stdout
    one = said('1')
    assert one == said('2') and one != said('1', code.replace('Loss()', 'Loss(3)'))
    own = (tmp_path / 'own_loss.py').read_text()
    assert forked.printed(code, tmp_path) == one
    for a, b in (('WEIGHT = 2.', 'WEIGHT = 3.'), ('** self', '* self'), ('"a", ', '')):
        (tmp_path / 'own_loss.py').write_text(own.replace(a, b))
        assert forked.printed(code, tmp_path) != one, a


def test_a_loss_without_a_description_is_an_error_before_anything_is_written(train, tmp_path):
    lines = iter('abc')
    def loss(model, x, y): return cross_entropy(model, x, y) * bool(lines)
    with pytest.raises(TypeError, match='Make the loss a frozen dataclass'): fit(line(), train, RECIPE, loss=loss, folder=tmp_path / 'new', progress=False)
    assert not (tmp_path / 'new').exists()


def test_a_network_that_holds_the_weights_of_the_folder_resumes(train, tmp_path):
    model, whole = line(), line()
    fit(whole, train, RECIPE, progress=False)
    def stop(epoch, *_): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(model, train, RECIPE, folder=tmp_path, on_epoch=stop, progress=False)
    history = fit(model, train, RECIPE, folder=tmp_path, progress=False)  # the same object, after its first epoch
    assert list(history.epoch) == [1, 2] and equal(model, whole)


def test_a_file_of_an_earlier_version_is_named_and_kept(train, tmp_path):
    save_tensors(tmp_path / 'state.safetensors', line().state_dict(), key='0123456789abcdef', history='[]')
    with pytest.raises(AnotherRun, match='which another version wrote'): fit(line(), train, RECIPE, folder=tmp_path, progress=False)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(1024, 8), nn.Linear(1024, 8), nn.Linear(8, 10)
        self.b.weight = self.a.weight
    def forward(self, x): return self.head(self.a(x.flatten(1)) + self.b(x.flatten(1)))


@pytest.mark.parametrize('change', [dict(), dict(momentum=0.)])
def test_tied_weights_are_kept_and_resumed(train, tmp_path, change):
    recipe = replace(RECIPE, **change, nesterov=False)
    whole, broken = Tied(), Tied()
    fit(whole, train, recipe, progress=False)
    def stop(epoch, *_): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(broken, train, recipe, folder=tmp_path, on_epoch=stop, progress=False)
    broken = Tied()
    fit(broken, train, recipe, folder=tmp_path, progress=False)
    assert equal(whole, broken) and broken.b.weight is broken.a.weight


@pytest.mark.parametrize('model, images, message', [
    (line(k=5), slice(None), r'the model has 5 outputs, and train has the label 9 \(10 classes\)\. Build the model with num_classes=10'),
    (nn.Sequential(nn.Flatten(), nn.Linear(99, 10)), slice(None), r'does not run on images of shape \(1, 32, 32\)'),
    (line(), [], 'train holds no images'), (nn.Flatten(), slice(0, 0), 'train holds no images')])
def test_what_cannot_be_trained_is_an_error_before_the_first_step(train, model, images, message):
    with pytest.raises(ValueError, match=message): fit(model, train[images], RECIPE, progress=False)


class Changed(nn.Module):
    "A network behind a change of its images."
    def __init__(self, change, seed=0):
        super().__init__()
        self.net, self.change = line(seed), change
    def forward(self, x): return self.net(self.change(x))


@pytest.mark.parametrize('loss', [cross_entropy, LigsLoss(1., .05)])
@pytest.mark.parametrize('attack', [None, Attack('l2', .5, 'ce', 1, .5, targeted=True)])
@pytest.mark.parametrize('in_place, apart', [(lambda x: x.mul_(2), lambda x: x * 2), (lambda x: x.clamp_(.2, .7), lambda x: x.clamp(.2, .7))])
def test_a_forward_that_overwrites_its_images_trains_the_same_network(train, in_place, apart, attack, loss):
    recipe, watch = replace(RECIPE, attack=attack), Monitor(train[:30], Attack('l2', .5, 'ce', 2, .25), sigma=.05)
    pixels, kept = train.pixels(), train.x.clone()
    nets = [Changed(in_place), Changed(apart)]
    a, b = (fit(net, train, recipe, loss=loss, monitor=watch, progress=False) for net in nets)
    assert equal(*nets) and a.drop(columns='seconds').equals(b.drop(columns='seconds'))
    before = pixels.clone()
    assert correct(nets[0], pixels, train.y).equal(correct(nets[1], pixels, train.y))
    cross_entropy(nets[0], pixels, train.y)
    assert torch.equal(pixels, before) and torch.equal(train.x, kept)


def quantised(net): return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
def conv(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(1800, 10))


def detached():
    "A network whose last layer lets no gradient through."
    net = Changed(lambda x: x)
    net.forward = lambda x: net.net(x).detach()
    return net


@pytest.mark.parametrize('loss', [cross_entropy, squares])
@pytest.mark.parametrize('model, message', [
    (lambda: quantised(line()), 'quantised layer'), (lambda: quantised(conv()), r'quantised layer \(2, a Linear\)'),
    (lambda: line().requires_grad_(False), 'no parameter that requires a gradient'), (lambda: nn.Flatten(), 'no parameter'),
    (detached, '(has|have) no gradient')])
def test_a_model_without_a_gradient_is_an_error(train, tmp_path, model, message, loss):
    with pytest.raises(ValueError, match=message): fit(model(), train, RECIPE, loss=loss, folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_accuracy_needs_no_gradient_and_a_monitor_without_attack_neither(train):
    net = quantised(line())
    assert correct(net, train.pixels(), train.y).shape == (160,)
    assert Monitor(train[:20], sigma=None)(net).keys() == {'clean_accuracy'}
    with pytest.raises(ValueError, match='quantised'): Monitor(train[:20], Attack('l2', .5, 'ce', 1, .5))(net)


def test_an_additional_output_is_allowed(train): fit(line(k=12), train, replace(RECIPE, epochs=1), progress=False)


def test_the_monitor_records_what_is_learned(train):
    model = network()
    monitor = Monitor(load('digits', 'test', limit=50), Attack('l2', .5, 'ce', 2, .25), .05, epochs=(1, 6))
    history = fit(model, train, replace(RECIPE, epochs=6), monitor=monitor, progress=False)
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    assert list(history.ligs.isna()) == [False, True, True, True, True, False]
    last = history.iloc[-1]
    assert last.clean_accuracy > .4 and 0 <= last.robust_accuracy <= last.clean_accuracy and -1 <= last.ligs <= 1
    assert not model.training


def test_first_step_is_torchs_sgd(train):
    recipe = Recipe(epochs=1, batch_size=160, lr=.1, momentum=0, weight_decay=.01, augment='none', milestones=(), channels_last=False, seed=0)
    ours, theirs = network('none'), network('none')
    fit(ours, train, recipe, progress=False)
    opt = torch.optim.SGD(theirs.parameters(), .1, weight_decay=.01)
    F.cross_entropy(theirs.train()(train.pixels()), train.y).backward()
    opt.step()
    for a, b in zip(ours.parameters(), theirs.parameters()): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_training_and_reading_a_checkpoint_import_neither_dynamo_nor_sympy(tmp_path):
    "Each takes more than a second in each process. scikit-learn, which has the digits, imports neither."
    code = f"""
import sys
from dataclasses import replace
from nrf_repro.attacks import Attack, robust_correct
from nrf_repro.data import load
from nrf_repro.models import build_model, load_model, save_model
from nrf_repro.training.loop import fit
from nrf_repro.training.recipe import RECIPES
train = load('digits', 'train', limit=64)
for arch in ('vgg11', 'resnet18'):
    net = build_model(arch, 'bn', in_channels=1, width=1/32, seed=0)
    fit(net, train, replace(RECIPES['digits'], epochs=1), progress=False)
    save_model(net, r'{tmp_path}/net.safetensors')
    robust_correct(load_model(r'{tmp_path}/net.safetensors'), train.pixels()[:8], train.y[:8], Attack('l2', .5, 'ce', steps=1, step_size=.5))
print(sorted({{'torch._dynamo', 'sympy'}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_a_custom_loss_is_used(train):
    calls = []

    def loss(model, x, y):
        calls.append(len(x))
        return cross_entropy(model, x, y)
    fit(network(), train, replace(RECIPE, epochs=1), loss=loss, progress=False)
    assert calls == [32] * 5


def test_bfloat16_and_adversarial_training_run(train):
    attack = Attack('linf', 8/255, 'ce', 2, 4/255)
    for recipe in (replace(RECIPE, amp=True), replace(RECIPE, attack=attack)):
        model = network()
        history = fit(model, train, recipe, progress=False)
        assert history.loss.isna().sum() == 0 and all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize('size', [1, 2])
def test_targets_are_wrong_classes_all_equally_likely(train, size):
    recipe = replace(RECIPE, attack=Attack('l2', .5, 'ce', 1, .5, targeted=True))
    pairs = torch.zeros(10, 10)
    for epoch in range(60):
        for rank in range(size):
            for _, y, target in batches(train, recipe, epoch, 'cpu', rank, size): pairs.index_put_((y, target), torch.ones(len(y)), accumulate=True)
    assert not pairs.diagonal().any() and pairs.sum() == 60 * (len(train) // recipe.batch_size * recipe.batch_size)
    wrong = pairs[~torch.eye(10, dtype=bool)].view(10, 9)
    expected = pairs.sum(1, keepdim=True) / 9
    assert ((wrong - expected).square() / expected).sum() < 130  # chi square, 80 degrees of freedom: p = .0004


def test_a_single_class_has_no_wrong_class(train):
    alone, recipe = replace(train, y=torch.zeros_like(train.y), classes=('0',)), replace(RECIPE, attack=Attack('l2', .5, 'ce', 1, .5, targeted=True))
    with pytest.raises(ValueError, match='train has 1 class, .* two or more'): fit(line(k=1), alone, recipe, progress=False)


def test_schedules():
    paper = RECIPES['paper']
    assert [round(lr_at(paper, e), 5) for e in (0, 49, 50, 99, 100, 149)] == [.1, .1, .01, .01, .001, .001]
    short = RECIPES['short']
    rates = [lr_at(short, short.epochs * i / 100) for i in range(101)]
    assert max(rates) == pytest.approx(short.lr) and rates[-1] == pytest.approx(0, abs=1e-9) and rates[0] < .1 * short.lr


def test_crop_moves_each_image_by_itself_and_flip_mirrors_half():
    g = torch.Generator().manual_seed(0)
    x = torch.arange(1, 1 + 64 * 32 * 32).view(64, 1, 32, 32).float()
    corners = random_crop(x, random_shifts(64, g))[:, 0, 16, 16] - x[:, 0, 16, 16]
    assert corners.unique().numel() > 20 and corners.abs().max() <= 4 * 32 + 4
    flipped = random_flip(x, random_flips(64, g))
    same = (flipped == x).flatten(1).all(1)
    assert 15 < same.sum() < 49 and torch.equal(flipped[~same], x[~same].flip(-1))


def test_correct_leaves_the_mode_alone(train):
    model = network().train()
    model.body[0][1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ok = correct(model, train.pixels(), train.y, batch_size=7)
    assert ok.shape == (160,) and model.training and not model.body[0][1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('y, message', [
    (torch.zeros(160, 1), 'one label per image'), (torch.zeros(1), 'one label per image'), (torch.full((160,), 10), 'y holds 10')])
def test_correct_needs_one_label_that_the_model_knows_for_each_image(train, y, message):
    with pytest.raises(ValueError, match=message): correct(network(), train.pixels(), y.long())


def test_correct_counts_no_logits_that_are_nan(train):
    with pytest.raises(ValueError, match='NaN or infinite logits for 160'): correct(Changed(lambda x: x * torch.nan), train.pixels(), train.y)


@pytest.mark.parametrize('wrong, message', [(dict(epochs=0), 'at least 1'), (dict(lr=0), 'lr=0'), (dict(epochs=2.), 'epochs=2.0 must be a whole number'), (dict(batch_size=32.), 'batch_size=32.0'), (dict(seed=.5), 'seed=0.5'), (dict(seed=2**60), 'seed=.* is out of range'), (dict(schedule='step'), 'Unknown schedule'),
                                             (dict(augment='cutout'), 'Unknown augment')])
def test_bad_recipes_are_errors(train, wrong, message):
    with pytest.raises(ValueError, match=message): fit(network(), train, replace(RECIPE, **wrong))


@pytest.mark.parametrize('recipe, message', [('digits', 'recipe is a str'), (replace(RECIPE, attack='pgd_l2'), 'attack is a str')])
def test_a_name_is_no_recipe_and_no_attack(train, recipe, message):
    with pytest.raises(TypeError, match=message): fit(network(), train, recipe, progress=False)


def test_a_seed_of_numpy_gives_the_batches_of_the_same_number(train):
    one, other = (next(batches(train, replace(RECIPE, seed=seed), 0, 'cpu'))[0] for seed in (3000, np.int32(3000)))
    assert torch.equal(one, other)


@pytest.mark.parametrize('loss', [lambda model, x, y: F.cross_entropy(model(x), y, reduction='none'), lambda model, x, y: 1.])
def test_a_loss_that_is_no_scalar_tensor_is_an_error(train, loss):
    with pytest.raises(ValueError, match='Return a scalar tensor'): fit(network(), train, RECIPE, loss=loss, progress=False)


def test_a_last_step_that_spoils_the_weights_is_an_error_and_nothing_is_stored(train, tmp_path):
    def loss(model, x, y): return cross_entropy(model, x, y) + sum((0 * p).sum().sqrt() for p in model.parameters())   # finite; its gradient is not
    with pytest.raises(FloatingPointError, match='diverged in epoch 1 .*weights not finite'):
        fit(network(), train[:32], RECIPE, loss=loss, folder=tmp_path, progress=False)
    assert not list(tmp_path.glob('*.safetensors'))


def test_divergence_is_an_error(train):
    with pytest.raises(FloatingPointError, match='diverged in epoch 1'):
        fit(network('none'), train, replace(RECIPE, lr=1e12, clip=None), progress=False)


def test_compile_is_used_only_if_the_recipe_says_so(train, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, 'compile', lambda model: asked.append(model) or model)
    model = network()
    fit(model, train, replace(RECIPE, epochs=1), progress=False)
    assert asked == []
    fit(model, train, replace(RECIPE, epochs=1, compile=True), progress=False)
    assert asked == [model]


def test_a_cuda_graph_is_recorded_once_and_changes_no_number(train, monkeypatch):
    recipe, recorded = replace(RECIPE, epochs=2, channels_last=False), []
    plain, graphed = network(), network()
    want = fit(plain, train, recipe, progress=False)

    def record(model, sample):
        "As make_graphed_callables: run the model, and set its forward for the mode it is in."
        usual, mode = model.forward, model.training
        for _ in range(3): model(*sample)
        model.forward = lambda x: (recorded.append(x.shape) if model.training == mode else None, usual(x))[1]
        return model

    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', record)
    monkeypatch.setattr(loop, '_on_gpu', lambda x: True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')          # autocast for a GPU that is not there
        got = fit(graphed, train, recipe, progress=False, cuda_graph=True)
    assert got.loss.tolist() == want.loss.tolist() and len(recorded) == 2 * (len(train) // recipe.batch_size)
    assert all(torch.equal(a, b) for a, b in zip(graphed.state_dict().values(), plain.state_dict().values()))
    assert 'forward' not in graphed.__dict__


def test_a_cuda_graph_needs_a_gpu_and_one_process(train):
    with pytest.raises(ValueError, match='needs a model on a GPU'): fit(network(), train, RECIPE, progress=False, cuda_graph=True)
    two = type('Two', (SingleProcess,), dict(size=2))()
    with pytest.raises(ValueError, match='is for one process'): fit(network(), train, RECIPE, progress=False, cuda_graph=True, team=two)


def test_a_hook_that_counts_forward_passes_counts_those_of_training_alone(train):
    model, passes = line(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    fit(model, train, replace(RECIPE, epochs=1), progress=False)
    assert len(passes) == 5


# --- the memory layout ---

@pytest.mark.parametrize('layer, safe', [
    (nn.Conv2d(4, 8, 1, stride=2), False), (nn.Conv2d(16, 8, 1, stride=2), True), (nn.Conv2d(4, 8, 1), True), (nn.Conv2d(4, 8, 3, stride=2), True),
    (nn.Conv2d(32, 32, 1, stride=2, groups=4), False)], ids=str)
def test_a_strided_1x1_convolution_of_few_channels_is_not_trained_channels_last(layer, safe, train):
    "oneDNN's gradient of its weights writes past a buffer; https://github.com/uxlfoundation/oneDNN/issues/6035."
    first = nn.Conv2d(2, layer.in_channels, 3, padding=1).to(memory_format=torch.channels_last)     # as a caller may have it
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), first, layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(layer.out_channels, 10))
    fit(net, train[:64], replace(RECIPES['digits'], epochs=1, batch_size=32), progress=False)
    assert first.weight.is_contiguous() != safe and first.weight.is_contiguous(memory_format=torch.channels_last) == safe


def test_the_weights_of_a_narrow_resnet_are_those_of_contiguous_training(train):
    "Both layouts that a recipe can ask for train the same network, bit by bit."
    def weights(channels_last):
        net = build_model('resnet18', 'bn', in_channels=1, width=1/16, seed=0)
        fit(net, train[:64], replace(RECIPES['digits'], epochs=1, batch_size=32, channels_last=channels_last), progress=False)
        return net.state_dict()
    one, other = weights(True), weights(False)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize('channels', [1, 3])
def test_a_crop_has_the_layout_of_the_recipe(train, channels):
    images = replace(train, x=train.x.expand(-1, channels, -1, -1), mean=train.mean * channels, std=train.std * channels)
    x = next(batches(images, replace(RECIPE, channels_last=False), 0, 'cpu'))[0]
    out = nn.Conv2d(channels, 4, 3)(x)
    assert x.stride()[1:] == (32 * 32, 32, 1) and out.is_contiguous()


class Focal(nn.Module):
    def __init__(self, gamma): super().__init__(); self.gamma = gamma
    def forward(self, model, x, y):
        ce = F.cross_entropy(model(x), y, reduction='none')
        return ((1 - (-ce).exp())**self.gamma * ce).mean()


def smooth(by):
    crit = nn.CrossEntropyLoss(label_smoothing=by)
    def loss(model, x, y): return crit(model(x), y)
    return loss


def times(factor):
    def of(loss):
        @wraps(loss)
        def scaled(*a): return factor * loss(*a)
        return scaled
    return of(closure(2.))


def kind(**members): return type('Own', (), dict(__module__='own', __call__=lambda self, model, x, y: cross_entropy(model, x, y)) | members)()


@pytest.mark.parametrize('mine, other', [
    (Focal(1.), Focal(5.)), (smooth(0.), smooth(.3)), (times(2), times(3)), (times(2), closure(2.)), (kind(w=(1., 2.)), kind(w=(5., 2.))),
    (kind(p=property(lambda self: 1)), kind(p=property(lambda self: 2))), (kind(p=staticmethod(lambda: 1)), kind(p=staticmethod(lambda: 2)))])
def test_settings_of_modules_decorators_and_members_of_classes_are_part_of_a_key(mine, other): assert described(mine) != described(other)


def test_own_numbers_and_base_classes_of_a_network_are_part_of_its_key():
    class Net(nn.Linear):
        def __init__(self, scale): super().__init__(1024, 10); self.scale = scale
        def forward(self, x): return self.scale * super().forward(x.flatten(1))
    def key(scale):
        torch.manual_seed(0)
        return run_key(Net(scale), load('digits', 'train', limit=20), RECIPE)
    assert key(1.) == key(1.) != key(9.)


def test_a_function_of_another_library_can_be_described():
    from math import log
    assert described(log) != described(sum)
