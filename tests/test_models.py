"""The norm under test is the one that was built, and nothing else differs."""
import pytest
import torch
from torch import nn

from nrf_repro.models import ARCHS, build_model, load_model, save_model
from nrf_repro.norms import NORMS, count_norms

CONVS = dict(vgg11=8, vgg16=13, vgg19=16, resnet18=20, resnet50=53)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('norm', NORMS)
def test_every_convolution_has_the_norm_it_was_asked_for(arch, norm):
    model = build_model(arch, norm, width=1/8)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == CONVS[arch]
    assert count_norms(model) == ({} if norm == 'none' else {norm: CONVS[arch]})
    assert all((c.bias is not None) == arch.startswith('vgg') for c in convs)
    statistics = 3 * CONVS[arch] if norm == 'bn' else 0     # running mean, running variance, batches seen
    assert len(list(model.buffers())) == 2 + statistics     # and the two of layer 0


@pytest.mark.parametrize('arch', ARCHS)
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


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('norm', NORMS)
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
    with torch.no_grad(): z = model(torch.rand(32, 3, 32, 32, generator=g))
    assert .05 < z.std(0).mean() < 20


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
    with pytest.raises(ValueError, match='net.safetensors holds no weights of ours'): load_model(path)
    path.write_bytes(b'\x80\x04\x95a pickle, say')
    with pytest.raises(ValueError, match='holds no weights of ours'): load_model(path)
    with pytest.raises(FileNotFoundError, match='train the network first'): load_model(tmp_path / 'none.safetensors')


@pytest.mark.parametrize('words, sentence', [
    (dict(arch='alexnet', norm='bn'), 'Unknown arch'), (dict(arch='vgg11', norm='None'), 'Unknown norm'),
    (dict(arch='vgg11', norm='bn', stem='tiny'), 'Unknown stem'), (dict(arch='vgg11', norm='bn', width=.3), 'multiple of 1/32'),
    (dict(arch='vgg11', norm='bn', mean=(.5,)), 'one number per channel')])
def test_bad_words_get_a_sentence(words, sentence):
    with pytest.raises(ValueError, match=sentence): build_model(**words)


def test_norm_is_required():
    with pytest.raises(TypeError): build_model('vgg11')
