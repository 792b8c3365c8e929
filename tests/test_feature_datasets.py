"""Feature data sets: closed forms where they are known, storage, and the rows that claim C7 needs."""
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from nrf_repro.features import datasets as D, invert_representation, targeted_perturbation
from nrf_repro.studies import feature_datasets as F
from nrf_repro.attacks import PERTURBATION_SETS, Attack
from nrf_repro.data import Images, load
from nrf_repro.experiment.plan import plan
from nrf_repro.experiment.profile import load_profile
from nrf_repro.experiment.run import train_network
from nrf_repro.models import build_model
from nrf_repro.results.rules import load_claims
from nrf_repro.results.claims import decide_part
from nrf_repro.results.rows import FIELDS, frame, paper_rows
from nrf_repro.studies.base import Run

TARGETED = Attack('l2', .5, 'ce', steps=4, step_size=.25, targeted=True)


class Linear(nn.Module):
    "Logits and representation are linear in the pixels."
    def __init__(self, k=2, d=48):
        super().__init__()
        self.w = nn.Parameter(torch.randn(k, d, generator=torch.Generator().manual_seed(0)))

    def features(self, x): return x.flatten(1) @ self.w.T
    def forward(self, x): return self.features(x)


def grey(n=6, low=100, high=156, k=2):
    "Images far from black and white, so that nothing is clipped."
    g = torch.Generator().manual_seed(1)
    return Images(torch.randint(low, high, (n, 3, 4, 4), generator=g).to(torch.uint8), torch.arange(n) % k, tuple('abcdefghij'[:k]), (.5,) * 3, (.2,) * 3, 'grey', 'train')


@pytest.fixture(scope='module')
def digits(): return load('digits', 'train', limit=30)


def network(norm='bn'): return build_model('vgg11', norm, in_channels=1, width=.0625, seed=0)


def made(images, norm='bn'): return targeted_perturbation(network(norm).eval(), images.x, images.y, D.random_labels(len(images), 10, 0), TARGETED)


def test_on_a_linear_model_the_perturbation_points_to_the_label_and_stays_in_the_ball():
    model, images = Linear(), grey()
    s = targeted_perturbation(model, images.x, images.y, D.next_labels(images.y, 2), TARGETED)
    delta = ((s.x.float() - s.start.float()) / 255).flatten(1)
    way = (model.w[s.y] - model.w[s.start_y]).detach()
    assert torch.allclose(delta, .5 * way / way.norm(dim=1, keepdim=True), atol=1 / 255)   # in grey levels
    assert (s.distance <= .5 + 1e-6).all() and s.distance.min() > .99 * .5
    assert s.y.equal((images.y + 1) % 2) and s.start_y.equal(images.y) and s.start.equal(images.x)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('levels', [.3, .999, 1, 1.5, 2, 3.7, 8, 16.2, 40])
@pytest.mark.parametrize('ball', ['l2', 'linf'])
def test_perturbed_pixels_are_whole_levels_inside_the_ball(ball, levels, channels):
    g = torch.Generator().manual_seed(0)
    start = torch.randint(0, 256, (60, channels, 8, 8), generator=g).to(torch.uint8)
    eps = levels / 255 * (1 if ball == 'linf' else 8)
    attack = Attack(ball, eps, 'ce', steps=1, step_size=eps)
    v = torch.randn(start.shape, generator=g) * (torch.rand(start.shape, generator=g) < .5)
    x = (start / 255 + PERTURBATION_SETS[ball].project(eps * PERTURBATION_SETS[ball].steepest(v), eps)).clamp(0, 1)
    made = D.levels_within(x, start, attack)
    change = (made.double() - start.double()).flatten(1) / 255
    size = change.abs().amax(1) if ball == 'linf' else change.norm(dim=1)
    assert made.dtype == torch.uint8 and (size <= eps * (1 + 1e-9)).all()
    assert ((made.double() - 255 * x.double()).abs() < 1.001).all()   # a level next to it
    near = D.nearest_levels(x)
    nearest = (near.double() - start.double()).flatten(1) / 255
    fits = (nearest.abs().amax(1) if ball == 'linf' else nearest.norm(dim=1)) <= eps * (1 + 1e-9)
    assert made[fits].equal(near[fits])                               # where the nearest levels are inside, they are taken
    if ball == 'l2' and levels >= 8: assert (size > .98 * (x - start / 255).flatten(1).norm(dim=1)).all()  # hardly any length is lost
    if ball == 'linf' and levels in (1, 2, 8, 40): assert fits.all()


def test_unchanged_images_stay_and_a_custom_perturbation_set_is_respected():
    start, attack = grey(n=5).x, Attack('l2', .5, 'ce', steps=1, step_size=.5)
    assert D.levels_within(start / 255, start, attack).equal(start)
    patch = torch.zeros(3, 4, 4, dtype=torch.float64)
    patch[:, :2] = 1
    own = PERTURBATION_SETS['linf']._replace(project=lambda delta, eps: delta.clamp(-eps, eps) * patch)
    moved = D.levels_within(start / 255 + 2.6 / 255 * patch.float(), start, replace(attack, ball=own, eps=2.6 / 255))
    assert (moved.double() - start.double()).equal(2 * patch.expand(5, 3, 4, 4))


@pytest.mark.parametrize('eps', [.5 / 255, 3 / 255, 8.5 / 255])
@pytest.mark.parametrize('ball', ['l2', 'linf'])
def test_a_targeted_perturbation_stays_in_its_ball(digits, ball, eps):
    attack = replace(TARGETED, ball=ball, eps=eps * (32 if ball == 'l2' else 1), step_size=eps * (16 if ball == 'l2' else .5))
    s = targeted_perturbation(network('none').eval(), digits.x, digits.y, D.next_labels(digits.y, 10), attack)
    change = (s.x.double() - s.start.double()).flatten(1) / 255
    size = change.norm(dim=1) if ball == 'l2' else change.abs().amax(1)
    assert (size <= attack.eps * (1 + 1e-9)).all() and (eps < 1 / 255 and ball == 'linf' or size.max() > .8 * attack.eps)


def test_inversion_copies_the_representation_and_keeps_the_rest():
    model, images = Linear(k=4), grey()
    s = invert_representation(model, images.x, images.y, steps=60, step_size=.01)
    x, start, goal = (t.float() / 255 for t in (s.x, s.start, s.goal))
    left = (model.features(x) - model.features(goal)).norm(dim=1) / (model.features(start) - model.features(goal)).norm(dim=1)
    assert (left < .15).all() and (s.distance > .05).all()
    assert (x - goal).flatten(1).norm(dim=1).min() > .5 * (start - goal).flatten(1).norm(dim=1).min()
    assert s.y.equal(images.y) and s.goal.equal(images.x) and not s.start.equal(s.goal)


def test_no_image_starts_from_itself_and_every_image_is_a_start_once(digits):
    s = invert_representation(network(), digits.x, digits.y, steps=1, step_size=.1)
    assert not (s.start == s.goal).flatten(1).all(1).any()
    assert sorted(t.numpy().tobytes() for t in s.start) == sorted(t.numpy().tobytes() for t in digits.x)
    with pytest.raises(ValueError, match='two or more'): D.random_derangement(1, 0)


def test_the_batch_size_does_not_matter_and_the_generator_is_unchanged(digits):
    for norm in ('none', 'bn'):
        model = network(norm).train()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        sets = [invert_representation(model, digits.x, digits.y, steps=2, step_size=.3, batch_size=b).x.int() for b in (7, 256)]
        assert (sets[0] - sets[1]).abs().max() <= 1 and (sets[0] != sets[1]).float().mean() < .01   # a grey level, where rounding decides
        assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
        assert all(v.equal(before[k]) for k, v in model.state_dict().items())


def test_random_labels_are_seeded_and_independent_of_the_images(digits):
    a, b = D.random_labels(30, 10, 0), D.random_labels(30, 10, 1)
    assert a.equal(D.random_labels(30, 10, 0)) and not a.equal(b) and set(a.tolist()) <= set(range(10))


def test_wrong_models_and_attacks_are_refused(digits):
    with pytest.raises(TypeError, match='has no features'): invert_representation(nn.Linear(2, 2), digits.x, digits.y, steps=1, step_size=.1)
    with pytest.raises(ValueError, match='not targeted'): targeted_perturbation(network(), digits.x, digits.y, digits.y, replace(TARGETED, targeted=False))


def test_a_set_is_read_as_it_was_written(tmp_path, digits):
    for s in (made(digits), invert_representation(network(), digits.x, digits.y, steps=1, step_size=.1)):
        s = replace(s, how=s.how | dict(hash='1'))
        F.save_set(s, tmp_path / 'sets/s.safetensors')
        again = F.load_set(tmp_path / 'sets/s.safetensors', '1')
        assert again.how == s.how and (again.goal is None) == (s.goal is None)
        for name in ('x', 'y', 'start', 'start_y'): assert getattr(again, name).equal(getattr(s, name))
        assert F.load_set(tmp_path / 'sets/s.safetensors', '2') is None
        assert [p.name for p in (tmp_path / 'sets').iterdir()] == ['s.safetensors']


def test_a_broken_or_foreign_file_raises(tmp_path, digits):
    path = tmp_path / 's.safetensors'
    F.save_set(replace(made(digits), how=dict(hash='1')), path)
    whole = path.read_bytes()
    for broken in (whole[:len(whole) // 2], b'', b'no safetensors'):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match='not a feature data set .*Delete it'): F.load_set(path, '1')
    path.write_bytes(whole)
    with safe_open(path, 'pt') as f: tensors = {k: f.get_tensor(k) for k in f.keys()}
    for change in (dict(start=tensors['start'][:3]), dict(start_y=tensors['start_y'].float()), dict(other=tensors['x'].clone())):
        save_file(tensors | change, path, dict(about=json.dumps(dict(hash='1'))))
        with pytest.raises(ValueError, match='not a feature data set'): F.load_set(path, '1')
    save_file(tensors, path)
    with pytest.raises(ValueError, match='not a feature data set'): F.load_set(path, '1')


def test_parts_of_a_set_must_fit(digits):
    s = made(digits)
    for change in (dict(start=s.start[:2]), dict(start_y=s.start_y.int()), dict(goal=s.start.float())):
        with pytest.raises(ValueError, match='Pass one for each'): replace(s, **change)


def test_recomputed_statistics_change_only_bn_and_only_a_copy(digits):
    net, x = network('bn').eval(), digits.pixels()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    anew = F.with_recomputed_statistics(net, digits, batch_size=29)                    # the last batch would be one image
    assert all(v.equal(before[k]) for k, v in net.state_dict().items()) and not anew.training
    changed = {k.rsplit('.', 1)[1] for k, v in anew.state_dict().items() if not v.equal(before[k])}
    assert {'running_mean', 'running_var'} <= changed <= {'running_mean', 'running_var', 'num_batches_tracked'}
    first = next(m for m in anew.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad(): seen = net.body[0][0](net.standardize(x[:29]))
    assert torch.allclose(first.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    plain = network('none').eval()
    assert F.with_recomputed_statistics(plain, digits)(x).equal(plain(x))
    with pytest.raises(ValueError, match='two or more'): F.with_recomputed_statistics(net, digits[:1])


def test_target_mappings():
    y = torch.arange(10)
    for source, kind in D.SETS.items():
        ways = D.target_mappings(source, y, 10)
        assert set(ways) == ({'nrf', 'rf'} if kind.shifted else {None})
    assert ways['rf'][9] == 0 and ways['nrf'].equal(y)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    tiny, folder = load_profile('tiny'), tmp_path_factory.mktemp('features')
    for spec in plan(tiny): train_network(spec, folder, progress=False)
    return Run(tiny, 'features', 0, folder, progress=False)


@pytest.fixture(scope='module')
def rows(run): return frame(F.measure_features(run))


def test_rows_are_what_claim_c7_asks_for(rows):
    claim = load_claims()['C7']
    two = frame([*rows.to_dict('records'), *rows.assign(seed=1, value=lambda d: d.value * .9, images=None, outcomes=None).to_dict('records')])
    for part in claim.parts:
        found = decide_part(claim, part, two, paper_rows())
        assert found['verdict'] != 'not run' and found['n_seeds'] == 2, found
    rand = rows[(rows.source == 'd_rand') & (rows.metric == 'clean_accuracy')]
    assert rand.label_route.isna().all() and not rand.duplicated(['norm', 'target']).any() and set(rand.norm) == {'none', 'bn'}
    assert {c for c in rows} == set(FIELDS) and rows.n.notna().all()


def test_a_second_run_reads_the_files_and_an_interrupted_run_resumes(run, rows):
    def value(frame_): return [None if v != v else v for v in frame_.value]
    sets, nets = sorted((run.place / 'sets').iterdir()), sorted(run.place.glob('d_*.safetensors'))
    stamps = {p: p.stat().st_mtime_ns for p in sets + nets}
    for p in (sets[0], nets[0], nets[0].with_suffix('.json')): p.unlink()
    assert value(frame(F.measure_features(run))) == value(rows)
    assert {p for p in stamps if p.stat().st_mtime_ns != stamps[p]} == {sets[0], nets[0]}


def test_a_set_made_by_other_code_or_another_network_is_made_again(run, rows, monkeypatch):
    cell = next(c for c in run.cells() if c.norm == 'bn')
    hashes = [F.made_set(run, 'd_rand', cell).how['hash'] for _ in range(2)]
    monkeypatch.setattr(F, 'source_hash', lambda: '0123')
    hashes.append(F.made_set(run, 'd_rand', cell).how['hash'])
    monkeypatch.undo()
    monkeypatch.setattr(type(run), 'network', lambda run, cell: run.untrained(cell).eval())
    hashes.append(F.made_set(run, 'd_rand', cell).how['hash'])
    monkeypatch.undo()
    assert hashes[0] == hashes[1] == F.made_set(run, 'd_rand', cell).how['hash'] and len(set(hashes)) == 3


def test_students_start_from_other_weights_than_generators(run):
    cell = run.cells()[0]
    one, two = run.untrained(cell).state_dict(), F.network_of(replace(cell, seed=cell.seed + F.STUDENT_SEED_OFFSET), run.images('train')).state_dict()
    assert not one['body.0.0.weight'].equal(two['body.0.0.weight'])


def test_an_unknown_setting_raises(run):
    s = run.settings
    for change, words in ((dict(makers=dict(d_x=['bn'])), "unknown set 'd_x'"), (dict(makers=dict(d_r=['gn'])), "'gn' is not among"),
                          (dict(learn={}), 'no recipe for d_r'), (dict(learn=s['learn'] | dict(d_r=dict(rate=1))), "unknown field 'rate'")):
        with pytest.raises(ValueError, match=words): F._check_settings(s | change)


@pytest.mark.parametrize('cut', [lambda r: r, lambda r: r[r.norm != 'bn'], lambda r: r[r.norm != 'none'], lambda r: r[~r.metric.str.startswith('swept')],
                                 lambda r: r[r.source == 'd_r'], lambda r: r.assign(arch='resnet18')])
def test_shown_from_any_rows(rows, cut):
    cut_ = cut(rows)
    for seeds in (1, 3):
        many = frame(r | dict(seed=s) for s in range(seeds) for r in cut_.to_dict('records'))
        parts = list(F.show_features(many))
        assert len(parts) >= 2
        for p in parts:
            text = ' '.join([p['title'], p['caption'], *p['reading']])
            assert 'nan' not in text.split() and 'follows one seed' not in text
            if p['table'] is not None: assert len(p['table']) and all(isinstance(v, str) for v in p['table'].values.flat)


def test_readings_follow_the_rows(rows):
    clean = rows[(rows.metric == 'clean_accuracy') & rows.source.isin(['d_rand', 'conflicting'])]
    def with_values(f): return frame(r | dict(seed=s, value=min(1, max(0, f(r) + .01 * s))) for s in range(3) for r in clean.to_dict('records'))
    def said(f): return ' '.join(next(F.show_features(with_values(f)))['reading'])
    as_printed = said(lambda r: F.PAPER_VALUES[r['source'], r['label_route']][r['norm'] == 'bn'])
    assert 'BN learns more' in as_printed and 'None: NRF − RF predictions −72' in as_printed
    assert 'BN: NRF − RF predictions +16.5' in as_printed
    other = said(lambda r: .5 - .3 * (r['norm'] == 'bn') + .2 * (r['label_route'] == 'rf'))
    assert 'BN learns less' in other and 'BN learns more' not in other and 'the non-robust feature' not in other
