"Corruptions and batch statistics: closed forms, what must not change, and what the report says."
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from nrf_repro.studies import base as studies
from nrf_repro.studies import corruptions as c
from nrf_repro.attacks import Attack
from nrf_repro.data import Images
from nrf_repro.experiment.profile import load_profile
from nrf_repro.experiment.plan import study_specs
from nrf_repro.experiment.run import train_network
from nrf_repro.models import build_model
from nrf_repro.results.rows import frame, read_rows
from nrf_repro.training.loop import correct


def images(channels=1, n=6):
    x = torch.randint(40, 200, (n, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x, torch.arange(n) % 2, ('a', 'b'), (.5,) * channels, (.2,) * channels, 'made', 'test')


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('levels', c.LEVELS)
@pytest.mark.parametrize('source', c.CORRUPTIONS)
def test_a_corruption_moves_every_image_by_itself(source, levels, channels):
    im = images(channels)
    for severity in c.SEVERITIES:
        out = c.corrupted(im, source, severity, levels)
        assert out.x.dtype == torch.uint8 and out.x.shape == im.x.shape and out.y.equal(im.y)
        assert (out.x != im.x).flatten(1).any(1).all()
        if source in ("brightness", "darkness"): assert ((out.x >= im.x) if source == "brightness" else (out.x <= im.x)).all()   # nothing overflows
        assert out[2:4].x.equal(c.corrupted(im[2:4], source, severity, levels).x)    # it does not depend on the rest of the batch


def test_the_noise_has_its_standard_deviation_and_its_own_seed():
    grey = replace(images(), x=torch.full((6, 1, 32, 32), 128, dtype=torch.uint8))
    for severity, sd in zip(c.SEVERITIES, c.LEVELS['natural']['gaussian_noise']):
        moved = c.corrupted(grey, 'gaussian_noise', severity, 'natural').pixels()
        assert moved.std().item() == pytest.approx(sd, rel=.05) and moved.mean().item() == pytest.approx(128 / 255, abs=.01)
    one, other = (c.corrupted(images(), 'gaussian_noise', 3, 'natural', seed).x for seed in (0, 1))
    assert not one.equal(other)


@pytest.mark.parametrize('source, severity, levels, word', [('fog', 1, 'strong', 'fog'), ('jpeg', 0, 'strong', '0'), ('jpeg', 6, 'strong', '6'), ('jpeg', 1, 'weak', 'weak')])
def test_an_unknown_setting_is_an_error_that_names_the_choices(source, severity, levels, word):
    with pytest.raises(ValueError, match=f'Unknown .*{word}.*Choose from'): c.corrupted(images(), source, severity, levels)


def net(norm): return build_model('vgg11', norm, in_channels=1, num_classes=2, width=1/32, seed=0).eval()


def test_batch_statistics_are_those_of_the_batch_and_the_stored_ones_are_restored():
    bn, x = nn.BatchNorm2d(3).eval(), 5 + 3 * torch.randn(8, 3, 4, 4)
    with c.using_batch_statistics(bn): out = bn(x)
    assert out.mean((0, 2, 3)).abs().max() < 1e-5 and (out.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert bn(x).mean() > 4 and bn.running_mean.eq(0).all() and int(bn.num_batches_tracked) == 0
    with pytest.raises(KeyboardInterrupt):
        with c.using_batch_statistics(bn): raise KeyboardInterrupt
    assert bn.running_mean is not None and bn(x).mean() > 4


def test_only_bn_has_statistics_to_change():
    x, y = images(n=40).pixels(), images(n=40).y
    for norm in ('none', 'in', 'ln', 'gn'): assert c.accuracy_with(net(norm), x, y, 'stored', 20) == c.accuracy_with(net(norm), x, y, 'batch', 20)
    bn = net('bn')
    with torch.no_grad():
        with c.using_batch_statistics(bn): whole, half = bn(x), bn(x[:20])
    assert not torch.allclose(whole[:20], half, atol=1e-3)   # the prediction depends on the other images


def test_an_attack_with_eps_zero_changes_nothing_and_one_with_eps_above_zero_does():
    im, bn = images(n=20), net('bn')
    x, y = im.pixels(), correct(net('bn'), im.pixels(), torch.zeros(20, dtype=torch.long)).logical_not().long()   # what the net says
    attack = Attack('linf', .2, 'ce', steps=3, step_size=.1)
    assert c.attacked_accuracy(bn, x, y, replace(attack, eps=0.), 'stored', 10) == 1.
    assert c.attacked_accuracy(bn, x, y, attack, 'stored', 10) < 1.
    with c.using_batch_statistics(bn): aware = torch.cat([attack(bn, a, b) for a, b in zip(x.split(10), y.split(10))])
    assert c.attacked_accuracy(bn, x, y, attack, 'aware', 10) == c.accuracy_with(bn, aware, y, 'batch', 10)
    assert not torch.allclose(aware, attack(bn, x, y))       # it differentiated through other statistics
    assert all(m.running_mean is not None for m in bn.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_last_batch_that_would_be_smaller_is_an_error(tmp_path):
    p = load_profile('tiny').with_changes({'studies.corruptions.batch': 7})
    with pytest.raises(ValueError, match='no multiple of batch .7.'): next(c._test_sets(studies.Run(p, 'corruptions', 0, tmp_path)))


@pytest.fixture(scope='module')
def corruptions(tmp_path_factory):
    folder, p = tmp_path_factory.mktemp('corruptions'), load_profile('tiny')
    for spec in study_specs(p, 'corruptions'): train_network(spec, folder, progress=False)
    studies.run_study(p, 'corruptions', 0, folder, progress=False)
    return read_rows(folder / 'studies')


def test_corruption_rows(corruptions):
    count = corruptions.groupby(['metric', 'norm', 'reading']).size().to_dict()
    each = len(c.CORRUPTIONS) * len(c.SEVERITIES)
    assert count == {('corruption_accuracy', 'none', 'stored'): each, ('corruption_accuracy', 'bn', 'stored'): each, ('corruption_accuracy', 'bn', 'batch'): each,
                     ('clean_accuracy', 'none', 'stored'): 1, ('clean_accuracy', 'bn', 'stored'): 1, ('clean_accuracy', 'bn', 'batch'): 1,
                     ('robust_accuracy', 'none', 'last'): 1, ('robust_accuracy', 'bn', 'last'): 3}
    assert corruptions[corruptions.reading == 'batch'].batch_size.eq(20).all()


def seeds_of(rows, shift): # three seeds made of one, with a known effect of BN
    def seed(k): return rows.assign(seed=k, value=(.5 + .01 * k + shift * (rows.norm == 'bn') * (rows.reading != 'batch') * (1 + .01 * k)))
    return frame(pd.concat([seed(k) for k in range(3)]).to_dict('records'))


def test_findings_follow_the_rows(corruptions):
    rows = corruptions[corruptions.metric != 'robust_accuracy']
    for shift, word in ((-.2, 'worse'), (.2, 'better')):
        figure, table = c.show_corruptions(seeds_of(rows, shift))
        assert len(figure['fig'].axes) == 8 and all(ax.lines for ax in figure['fig'].axes)
        assert f'severities: {"−" if shift < 0 else "+"}20.' in figure['reading'][0] and f'({word}); on clean images' in figure['reading'][0]
        assert table['table'].set_index('Network').loc['BN', 'Mean − None'].startswith('−20.' if shift < 0 else '+20.')
    same = seeds_of(rows, 0)
    same['value'] += [.02 * (i % 2) * (-1) ** k for i, k in enumerate(same.seed)]
    assert 'no clear difference' in next(iter(c._corruption_findings(same.assign(value=.5 + .05 * ((same.seed * (same.norm == 'bn')) % 2).astype(float)))))


def check_parts(parts):
    for p in parts:
        if p['table'] is not None: assert p['table'].map(lambda v: isinstance(v, str)).all(axis=None) and 'nan' not in p['table'].to_string()
        assert 'nan' not in ' '.join([p['caption'], *p['reading']])


def test_the_report_copes_with_one_seed_missing_norms_and_several_archs(corruptions):
    several = frame([*corruptions.to_dict('records'), *corruptions.assign(arch='resnet18').to_dict('records')])
    for rows, parts in ((corruptions, 2), (several, 4), (corruptions[corruptions.norm == 'bn'], 2), (corruptions[corruptions.norm == 'none'], 2)):
        shown = list(c.show_corruptions(rows))
        assert len(shown) == parts and 'no interval over seeds' in shown[0]['caption']
        check_parts(shown)
