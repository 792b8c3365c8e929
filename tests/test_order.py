"""Which feature is learned first: the images, the monitor and the rows are those that claim C4 needs."""
import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from nrf_repro.data import patterns, testbed as make_bed
from nrf_repro.experiment.runs import Cell, load_profile, profiles
from nrf_repro.studies import order   # its names that begin with "test" would be collected
from nrf_repro.studies.order import CURRICULA, ligs_reading, measure_testbed, predictor, regime_of, show_testbed, train_curriculum, trend_text
from nrf_repro.results.claims import decide_parts
from nrf_repro.results.paired import effects
from nrf_repro.results.rules import load_claims
from nrf_repro.results.rows import frame, make_row
from nrf_repro.studies.base import Run

TINY = load_profile('tiny')
C4 = load_claims()['C4']


def run_at(folder, seed=0, profile=TINY, **settings):
    profile = copy.deepcopy(profile)
    profile['studies']['testbed'] |= settings
    return Run(profile, 'testbed', seed, folder, progress=False)


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    "A run with two stages, and its rows."
    run = run_at(tmp_path_factory.mktemp('order'), norms=['none', 'bn'], sources=['both', 'rf_only', 'warm_rf', 'rf_then_nrf'])
    return run, frame(measure_testbed(run))


def cell(run, norm): return Cell('synthetic', 'vgg11', .0625, norm, 'standard', run.seed)


def ideal(kind): # correlates with the patterns of one kind: 0 RF, 1 NRF
    net = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10, bias=False))
    net[1].weight.data = torch.tensor(patterns(32)[kind], dtype=torch.float32).flatten(1)
    return net.eval()


@pytest.mark.parametrize('kind', [0, 1])
def test_the_monitor_measures_the_reliance_of_an_ideal_classifier(kind):
    bed = make_bed('test', n=200, noise=0)
    seen = order.TestbedMonitor(bed.images[:20], None, None, None, bed=bed)(ideal(kind))
    assert [seen['rf_reliance'], seen['nrf_reliance']] == [1 - kind, kind]
    assert seen['clean_accuracy'] == pytest.approx(((bed.nrf if kind else bed.rf) == bed.y).mean())


def test_a_testbed_with_one_feature_has_no_reliance():
    bed = make_bed('test', n=40, amp_n=0)
    assert set(order.TestbedMonitor(bed.images, None, None, None, bed=bed)(ideal(0))) == {'clean_accuracy'}


def test_predictions_do_not_depend_on_the_batch_size():
    x, net = make_bed('test', n=30).images.pixels(), ideal(0)
    assert torch.equal(predictor(net, 7)(x), predictor(net)(x)) and torch.equal(predictor(net)(x), net(x).argmax(1))


def test_training_images_follow_the_seed_and_test_images_do_not(tmp_path):
    prints = {(split, seed): order.testbed_images(run_at(tmp_path, seed), split).images.fingerprint for split in ('train', 'test') for seed in range(3)}
    assert len({prints['train', s] for s in range(3)}) == 3 and len({prints['test', s] for s in range(3)}) == 1
    whole = copy.deepcopy(TINY)
    whole['data']['synthetic'] |= dict(train=None, test=None)
    assert [len(order.testbed_images(run_at(tmp_path, profile=whole), split).y) for split in ('train', 'test')] == [2000, 1000]


def test_no_test_image_is_a_training_image(tmp_path):
    for seed in range(10):
        train, test = (order.testbed_images(run_at(tmp_path, seed), split) for split in ('train', 'test'))
        assert not (train.images.x[:60] == test.images.x).flatten(1).all(1).any()


@pytest.mark.parametrize('name', profiles())
def test_every_profile_attacks_with_the_radius_of_the_testbed(name):
    profile = load_profile(name)
    if 'testbed' not in profile.get('studies', {}): pytest.skip(f'{name} has no testbed')
    data = profile['data']['synthetic']
    assert data['attacks'][data['watch']['attack']]['eps'] == pytest.approx(make_bed('train', n=10).eps, abs=1e-3)
    assert 'both' in profile['studies']['testbed']['sources'] and set(profile['studies']['testbed']['sources']) <= set(CURRICULA)


def test_the_claim_takes_training_from_scratch_on_both_features_and_nothing_else(measured):
    _, rows = measured
    assert effects(C4, rows)[['part', 'source', 'norm']].values.tolist() == [['testbed (none)', 'both', 'none'], ['testbed (bn)', 'both', 'bn']]
    asked = rows[rows.metric == 'nrf_reliance']
    assert set(zip(asked.source, asked.regime)) == {('both', 'untrained'), ('both', 'standard'), ('warm_rf', 'warm')}
    assert asked[asked.regime == 'standard'].epoch.min() == 1 and asked[asked.regime == 'untrained'].epoch.eq(0).all()


def test_regimes():
    assert [regime_of('both', 0), regime_of('both', 1), regime_of('warm_rf', 0), regime_of('warm_rf', 1)] == ['untrained', 'standard', 'warm', 'warm']


def test_a_second_stage_starts_from_the_weights_of_the_first(measured):
    run, rows = measured
    for norm in ('none', 'bn'):
        first, _ = train_curriculum(run, cell(run, norm), 'rf_only')
        bed = order.testbed_images(run, 'test').conflict()
        share = (predictor(first)(bed.images.pixels()).numpy() == bed.rf).mean()
        start = rows[(rows.norm == norm) & (rows.source == 'warm_rf') & (rows.epoch == 0) & (rows.metric == 'rf_reliance')].value.item()
        assert start == pytest.approx(share)
        last, _ = train_curriculum(run, cell(run, norm), 'warm_rf')
        assert not all(torch.equal(p, q) for p, q in zip(first.parameters(), last.parameters()))


def test_all_networks_standardise_their_input_alike(measured):
    run, _ = measured
    nets = [train_curriculum(run, cell(run, 'none'), source)[0] for source in ('both', 'rf_only', 'rf_then_nrf')]
    assert len({net.config['std'] for net in nets}) == 1


def test_trained_networks_are_stored_and_reused(measured):
    run, rows = measured
    before = {p: p.stat().st_mtime_ns for p in run.place.glob('*.safetensors')}
    again = frame(measure_testbed(run))
    assert before == {p: p.stat().st_mtime_ns for p in run.place.glob('*.safetensors')}
    same = ['metric', 'norm', 'source', 'regime', 'epoch', 'value']
    pd.testing.assert_frame_equal(*(r[same].sort_values(same[:5], ignore_index=True) for r in (rows, again)))


def test_an_unknown_curriculum_is_named(tmp_path):
    with pytest.raises(ValueError, match="Unknown source 'warm' in study testbed: choose among both, rf_only"):
        list(measure_testbed(run_at(tmp_path, sources=['warm'])))


def made_up(metric, values, seeds=3, **fields): # one value per epoch, from epoch 1
    base = dict(experiment='testbed', dataset='synthetic', arch='vgg11', width=.1, norm='bn', regime='standard', source='both', profile='made-up', n=100)
    more = dict(sigma=.01) if metric == 'ligs' else {}
    return [make_row(**base | more | dict(metric=metric, seed=s, epoch=e, value=v + .01 * s * (e > 1)) | fields) for s in range(seeds) for e, v in enumerate(values, 1)]


def study(ligs=(.5, .5), seeds=3, **fields):
    return [*made_up('nrf_reliance', (.1, .6), seeds, **fields), *made_up('rf_reliance', (.9, .3), seeds, **fields),
            *made_up('ligs', ligs, seeds, **fields), *made_up('clean_accuracy', (.8, .9), seeds, **fields)]


def test_directions_are_those_of_the_intervals():
    rows = frame(study(ligs=(.9, .2)))
    assert trend_text(rows, 'nrf_reliance') == '10.0 → 61.0, +51.0 points [+48.5, +53.5] (rises)'  # t(.975; 2) = 4.303, sem .00577
    assert trend_text(rows, 'ligs').endswith('(falls)') and trend_text(rows, 'robust_accuracy') == ''
    assert trend_text(frame(study(seeds=1)), 'nrf_reliance').endswith('(one seed, no interval)')


def test_the_reading_counts_where_ligs_falls_while_the_reliance_rises():
    for ligs, n in (((.9, .2), 1), ((.2, .9), 0), ((.5, .49), 0)):
        assert f'for 1 pairs of normalisation and curriculum. LIGS falls in {n} of them' in ligs_reading(frame(study(ligs)))


def test_parts_are_shown_for_what_there_is():
    assert list(show_testbed(frame([]))) == []
    one = list(show_testbed(frame(study(seeds=1))))
    assert [bool(p['fig']) for p in one] == [True, False] and 'no interval' in one[0]['caption']
    two = list(show_testbed(frame(study() + study(arch='resnet18', norm='none'))))
    assert len(two) == 4 and {'VGG11', 'ResNet18'} <= {w for p in two for w in p['title'].replace('×', ' ').split()}


def test_all_parts_of_the_whole_study():
    rows = [r for norm in ('none', 'bn') for source in CURRICULA for r in study(source=source, norm=norm, regime='warm' if len(CURRICULA[source]) > 1 else 'standard')]
    rows = frame(r for r in rows if not (r['metric'].endswith('_reliance') and r['source'] not in ('both', 'warm_rf', 'warm_nrf')))
    parts = list(show_testbed(rows))
    assert [p['title'].split(':')[0] for p in parts] == ['Which feature first', 'One feature alone', 'Three starts', 'LIGS beside reliance']
    assert len(parts[0]['fig'].axes) == 6 and len(parts[3]['table']) == 12


def test_warm_starts_do_not_change_the_verdict():
    rows = [r for norm in ('none', 'bn') for r in study(norm=norm)]
    falling = [r for norm in ('none', 'bn') for r in made_up('nrf_reliance', (.9, .1), norm=norm, regime='warm', source='warm_rf')]
    lines = [decide_parts({'C4': C4}, frame(r)).query('part.str.startswith("testbed")') for r in (rows, rows + falling)]
    assert lines[0].verdict.tolist() == ['reproduced'] * 2 and lines[0].effect.tolist() == pytest.approx([.51] * 2)
    assert lines[1].effect.tolist() == lines[0].effect.tolist()


def test_another_seed_is_another_study(measured):
    run, _ = measured
    assert replace(run, seed=1).hash != run.hash
