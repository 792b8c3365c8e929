"""Same seed, same weights; killed and resumed, same weights; recipes mean what they say."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nrf_repro.attacks import Attack
from nrf_repro.data import load
from nrf_repro.models import build_model
from nrf_repro.training import RECIPES, Monitor, Recipe, correct, cross_entropy, fit, lr_at, random_crop, random_flip

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
def test_killed_after_an_epoch_and_resumed_is_undisturbed(train, tmp_path, attack):
    recipe = replace(RECIPE, epochs=3, attack=attack)
    whole, broken = network(), network()
    fit(whole, train, recipe, progress=False)

    def kill(epoch, model, record):
        if epoch == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(broken, train, recipe, folder=tmp_path, on_epoch=kill, progress=False)
    seen = []
    broken = network(seed=9)  # whatever it holds, the folder's state replaces it
    history = fit(broken, train, recipe, folder=tmp_path, on_epoch=lambda e, *_: seen.append(e), progress=False)
    assert seen == [3] and list(history.epoch) == [1, 2, 3] and equal(whole, broken)


def test_another_recipe_in_the_same_folder_starts_afresh(train, tmp_path):
    fit(network(), train, RECIPE, folder=tmp_path, progress=False)
    seen = []
    fit(network(), train, replace(RECIPE, lr=.01), folder=tmp_path, on_epoch=lambda e, *_: seen.append(e), progress=False)
    assert seen == [1, 2]


def test_learns_and_the_monitor_sees_it(train):
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


def test_a_loss_of_ones_own_is_used(train):
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


def test_schedules():
    paper = RECIPES['paper']
    assert [round(lr_at(paper, e), 5) for e in (0, 49, 50, 99, 100, 149)] == [.1, .1, .01, .01, .001, .001]
    short = RECIPES['short']
    rates = [lr_at(short, short.epochs * i / 100) for i in range(101)]
    assert max(rates) == pytest.approx(short.lr) and rates[-1] == pytest.approx(0, abs=1e-9) and rates[0] < .1 * short.lr


def test_crop_moves_each_image_by_itself_and_flip_mirrors_half():
    g = torch.Generator().manual_seed(0)
    x = torch.arange(1, 1 + 64 * 32 * 32).view(64, 1, 32, 32).float()
    corners = random_crop(x, g)[:, 0, 16, 16] - x[:, 0, 16, 16]
    assert corners.unique().numel() > 20 and corners.abs().max() <= 4 * 32 + 4
    flipped = random_flip(x, g)
    same = (flipped == x).flatten(1).all(1)
    assert 15 < same.sum() < 49 and torch.equal(flipped[~same], x[~same].flip(-1))


def test_correct_leaves_the_mode_alone(train):
    model = network().train()
    model.body[0][1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ok = correct(model, train.pixels(), train.y, batch_size=7)
    assert ok.shape == (160,) and model.training and not model.body[0][1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('wrong, sentence', [(dict(epochs=0), 'at least 1'), (dict(lr=0), 'lr=0'), (dict(schedule='step'), 'Unknown schedule'),
                                             (dict(augment='cutout'), 'Unknown augment')])
def test_bad_recipes_get_a_sentence(train, wrong, sentence):
    with pytest.raises(ValueError, match=sentence): fit(network(), train, replace(RECIPE, **wrong))


def test_divergence_is_an_error_and_not_a_result(train):
    with pytest.raises(FloatingPointError, match='diverged in epoch 1'):
        fit(network('none'), train, replace(RECIPE, lr=1e12, clip=None), progress=False)


def test_compile_is_asked_for_and_only_when_asked(train, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, 'compile', lambda model: asked.append(model) or model)
    model = network()
    fit(model, train, replace(RECIPE, epochs=1), progress=False)
    assert asked == []
    fit(model, train, replace(RECIPE, epochs=1, compile=True), progress=False)
    assert asked == [model]
