"Noise that belongs to the image: equal on all devices, in all layouts, batches and precisions."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from nrf_repro.attacks import Attack
from nrf_repro.data import load
from nrf_repro.features import NOISES, ligs
from nrf_repro.attacks.noise import image_keys, image_noise, image_uniform, random_words
from nrf_repro.experiment.published import load_published

shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))

def grey(shape, seed, levels=256): return torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed))

def moved_by_one_ulp(x, seed):
    "Each pixel up, down, or as it is, and in [0, 1]."
    way = torch.randint(3, x.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(way == 0, x, torch.nextafter(x, torch.where(way == 1, 2., -2.).to(x))).clamp(0, 1)

@given(shape=shapes, seed=st.integers(0, 2**31), levels=st.sampled_from([256, 65536]))
@settings(deadline=None, max_examples=60)
def test_a_change_in_the_last_bit_does_not_change_the_noise(shape, seed, levels):
    x = grey(shape, seed, levels) / (levels - 1)
    for draw in (image_noise, image_uniform): assert torch.equal(draw(moved_by_one_ulp(x, seed), seed), draw(x, seed))

@given(shape=shapes, seed=st.integers(0, 2**31), cut=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_batch_order_layout_and_precision_do_not_change_the_noise(shape, seed, cut):
    x = grey(shape, seed) / 255
    v = image_noise(x, seed)
    assert torch.equal(torch.cat([image_noise(x[:cut], seed), image_noise(x[cut:], seed)]), v)
    assert torch.equal(image_noise(x.flip(0), seed).flip(0), v)
    assert torch.equal(image_noise(x.to(memory_format=torch.channels_last), seed), v)
    assert torch.equal(image_noise(x.double(), seed).float(), v)
    assert v.isfinite().all() and v.shape == x.shape

def test_images_that_differ_in_one_grey_level_have_different_keys():
    x = grey((1, 1, 32, 32), 0).repeat(2048, 1, 1, 1)
    place = torch.arange(1024)
    x[place, 0, place // 32, place % 32] += 1                                  # one pixel each
    x[1024 + place, 0, place // 32, place % 32] += 2
    assert len(image_keys(x / 260.).unique()) == 2048

def test_words_of_two_images_are_independent_bit_by_bit():
    words = random_words(image_keys(grey((2000, 1, 8, 8), 0) / 255), 8)
    bits = (words[..., None] >> torch.arange(32)) & 1                          # images, words, bits
    share = bits.double().mean(0)
    assert (share - .5).abs().max() < 5 * .5 / 2000**.5
    flipped = (bits[1:] ^ bits[:-1]).double().mean(0)
    assert (flipped - .5).abs().max() < 5 * .5 / 2000**.5

@pytest.mark.parametrize('norm', ['none', 'bn'])
def test_ligs_is_the_same_when_a_gpu_divides_by_multiplying(norm):
    images = load('digits', 'test', limit=400)
    net, raw = load_published(norm=norm, arch='vgg11'), images.x.float()
    cpu, gpu = raw / 255, raw * torch.tensor(1 / 255.)
    assert (cpu != gpu).float().mean() > .05                                   # the pixels do differ
    for noise in NOISES:
        a, b = (ligs(net, x, images.y, sigma=.05, noise=noise) for x in (cpu, gpu))
        assert abs(a.nanmean() - b.nanmean()) < 1e-4 and (a - b).abs().nanmedian() < 1e-5

@pytest.mark.parametrize('ball', ['l2', 'linf'])
def test_a_random_start_is_the_same_when_a_gpu_divides_by_multiplying(ball):
    x = grey((9, 3, 8, 8), 3).float()
    a, b = (Attack(ball, .1, 'ce', 1, 1e-12, random_start=True)(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), x_, torch.arange(9) % 3)
            for x_ in (x / 255, x * torch.tensor(1 / 255.)))
    assert (a - b).abs().max() < 1e-6 and (a - x / 255).abs().max() > .001

@pytest.mark.parametrize('name', ['seed', 'draw'])
@pytest.mark.parametrize('value', [-1, 2**32, .5])
def test_a_seed_or_a_draw_out_of_range_is_an_error(name, value):
    with pytest.raises(ValueError, match=f'{name}={value} is out of range'): random_words(torch.zeros(1, dtype=torch.int64), 3, **{name: value})

@pytest.mark.parametrize('kind', [np.int32, np.uint8, np.int64, float])
def test_a_seed_of_another_type_gives_the_words_of_the_same_number(kind):
    keys = torch.arange(5)
    assert torch.equal(random_words(keys, 3, seed=kind(7)), random_words(keys, 3, seed=7))

def test_large_images_are_drawn_in_parts(monkeypatch):
    x = grey((5, 3, 8, 8), 1) / 255
    whole = image_noise(x)
    monkeypatch.setattr('nrf_repro.attacks.noise.BLOCK', 200)
    assert torch.equal(image_noise(x), whole)

def test_the_uniform_noise_covers_the_interval_evenly():
    u = image_uniform(grey((50, 3, 32, 32), 2) / 255)
    counts = np.histogram(u, 20, (0, 1))[0]
    assert abs(counts / counts.mean() - 1).max() < 5 * (20 / u.numel())**.5
