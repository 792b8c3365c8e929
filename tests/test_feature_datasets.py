"""Feature data sets: made by closed forms where there are any, kept whole, and rows as claim C7 wants them."""
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from nrf_repro.studies import feature_datasets as F
from nrf_repro.attacks import PERTURBATION_SETS, Attack
from nrf_repro.data import Images, load
from nrf_repro.experiment.plan import plan
from nrf_repro.experiment.profile import load_profile
from nrf_repro.experiment.run import train_network
from nrf_repro.models import build_model
from nrf_repro.results.claims import decide_part, load_claims
from nrf_repro.results.rows import FIELDS, frame, paper_rows
from nrf_repro.studies.base import Run

PUSH = Attack('l2', .5, 'ce', steps=4, step_size=.25, targeted=True)


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


def made(images, norm='bn'): return F.push('d_rand', network(norm).eval(), images, F.random_labels(images, 0), PUSH)


def test_a_push_on_a_linear_model_goes_straight_to_the_label_and_stays_in_the_ball():
    model, images = Linear(), grey()
    s = F.push('d_det', model, images, F.next_labels(images), PUSH)
    delta = ((s.images.x.float() - s.start.float()) / 255).flatten(1)
    way = (model.w[s.images.y] - model.w[s.origin]).detach()
    assert torch.allclose(delta, .5 * way / way.norm(dim=1, keepdim=True), atol=1 / 255)   # in grey levels
    assert (s.moved <= .5 + 1e-6).all() and s.moved.min() > .99 * .5
    assert s.images.y.equal((images.y + 1) % 2) and s.origin.equal(images.y) and s.start.equal(images.x)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('levels', [.3, .999, 1, 1.5, 2, 3.7, 8, 16.2, 40])
@pytest.mark.parametrize('ball', ['l2', 'linf'])
def test_pushed_pixels_are_whole_levels_inside_the_ball(ball, levels, channels):
    g = torch.Generator().manual_seed(0)
    start = torch.randint(0, 256, (60, channels, 8, 8), generator=g).to(torch.uint8)
    eps = levels / 255 * (1 if ball == 'linf' else 8)
    attack = Attack(ball, eps, 'ce', steps=1, step_size=eps)
    v = torch.randn(start.shape, generator=g) * (torch.rand(start.shape, generator=g) < .5)
    x = (start / 255 + PERTURBATION_SETS[ball].project(eps * PERTURBATION_SETS[ball].steepest(v), eps)).clamp(0, 1)
    made = F.levels_within(x, start, attack)
    change = (made.double() - start.double()).flatten(1) / 255
    size = change.abs().amax(1) if ball == 'linf' else change.norm(dim=1)
    assert made.dtype == torch.uint8 and (size <= eps * (1 + 1e-9)).all()
    assert ((made.double() - 255 * x.double()).abs() < 1.001).all()   # a level next to it
    near = F.nearest_levels(x)
    nearest = (near.double() - start.double()).flatten(1) / 255
    fits = (nearest.abs().amax(1) if ball == 'linf' else nearest.norm(dim=1)) <= eps * (1 + 1e-9)
    assert made[fits].equal(near[fits])                               # where the nearest levels are inside, they are taken
    if ball == 'l2' and levels >= 8: assert (size > .98 * (x - start / 255).flatten(1).norm(dim=1)).all()  # hardly any length is lost
    if ball == 'linf' and levels in (1, 2, 8, 40): assert fits.all()


def test_images_that_were_not_moved_stay_and_other_sets_are_respected():
    start, attack = grey(n=5).x, Attack('l2', .5, 'ce', steps=1, step_size=.5)
    assert F.levels_within(start / 255, start, attack).equal(start)
    patch = torch.zeros(3, 4, 4, dtype=torch.float64)
    patch[:, :2] = 1
    own = PERTURBATION_SETS['linf']._replace(project=lambda delta, eps: delta.clamp(-eps, eps) * patch)
    moved = F.levels_within(start / 255 + 2.6 / 255 * patch.float(), start, replace(attack, ball=own, eps=2.6 / 255))
    assert (moved.double() - start.double()).equal(2 * patch.expand(5, 3, 4, 4))


@pytest.mark.parametrize('eps', [.5 / 255, 3 / 255, 8.5 / 255])
@pytest.mark.parametrize('ball', ['l2', 'linf'])
def test_a_push_never_leaves_its_ball(digits, ball, eps):
    attack = replace(PUSH, ball=ball, eps=eps * (32 if ball == 'l2' else 1), step_size=eps * (16 if ball == 'l2' else .5))
    s = F.push('d_det', network('none').eval(), digits, F.next_labels(digits), attack)
    change = (s.images.x.double() - s.start.double()).flatten(1) / 255
    size = change.norm(dim=1) if ball == 'l2' else change.abs().amax(1)
    assert (size <= attack.eps * (1 + 1e-9)).all() and (eps < 1 / 255 and ball == 'linf' or size.max() > .8 * attack.eps)


def test_inversion_copies_what_the_network_sees_and_leaves_the_rest():
    model, images = Linear(k=4), grey()
    s = F.invert('d_nr', model, images, steps=60, step_size=.01)
    x, start, goal = (t.float() / 255 for t in (s.images.x, s.start, s.goal))
    left = (model.features(x) - model.features(goal)).norm(dim=1) / (model.features(start) - model.features(goal)).norm(dim=1)
    assert (left < .15).all() and (s.moved > .05).all()
    assert (x - goal).flatten(1).norm(dim=1).min() > .5 * (start - goal).flatten(1).norm(dim=1).min()
    assert s.images.y.equal(images.y) and s.goal.equal(images.x) and not s.start.equal(s.goal)


def test_no_image_starts_from_itself_and_every_image_is_a_start_once(digits):
    s = F.invert('d_r', network(), digits, steps=1, step_size=.1)
    assert not (s.start == s.goal).flatten(1).all(1).any()
    assert sorted(t.numpy().tobytes() for t in s.start) == sorted(t.numpy().tobytes() for t in digits.x)
    with pytest.raises(ValueError, match='two or more'): F.apart(1, 0)


def test_batches_do_not_matter_and_the_maker_is_untouched(digits):
    for norm in ('none', 'bn'):
        model = network(norm).train()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        sets = [F.invert('d_r', model, digits, steps=2, step_size=.3, batch_size=b).images.x.int() for b in (7, 256)]
        assert (sets[0] - sets[1]).abs().max() <= 1 and (sets[0] != sets[1]).float().mean() < .01   # a grey level, where rounding decides
        assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
        assert all(v.equal(before[k]) for k, v in model.state_dict().items())


def test_random_labels_are_seeded_and_independent_of_the_images(digits):
    a, b = F.random_labels(digits, 0), F.random_labels(digits, 1)
    assert a.equal(F.random_labels(digits, 0)) and not a.equal(b) and set(a.tolist()) <= set(range(10))


def test_wrong_models_and_attacks_are_refused(digits):
    with pytest.raises(TypeError, match='has no features'): F.invert('d_r', nn.Linear(2, 2), digits, steps=1, step_size=.1)
    with pytest.raises(ValueError, match='must be targeted'): F.push('d_rand', network(), digits, digits.y, replace(PUSH, targeted=False))


def test_a_set_is_read_as_it_was_written(tmp_path, digits):
    for s in (made(digits), F.invert('d_r', network(), digits, steps=1, step_size=.1)):
        F.save_set(s, tmp_path / 'sets/s.safetensors')
        again = F.load_set(tmp_path / 'sets/s.safetensors')
        assert F.digest(F.tensors_of(again)) == F.digest(F.tensors_of(s)) and again.how == s.how
        assert (again.goal is None) == (s.goal is None)
        assert (again.images.classes, again.images.mean, again.images.name) == (s.images.classes, s.images.mean, s.images.name)
        assert [p.name for p in (tmp_path / 'sets').iterdir()] == ['s.safetensors']


def test_a_changed_foreign_or_missing_file_is_refused(tmp_path, digits):
    path = tmp_path / 's.safetensors'
    with pytest.raises(FileNotFoundError, match='make it first'): F.load_set(path)
    F.save_set(made(digits), path)
    whole = path.read_bytes()
    for broken in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:len(whole) // 2], b'', b'no safetensors'):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match='no feature data set of ours .*: delete it'): F.load_set(path)
    path.write_bytes(whole)
    with safe_open(path, 'pt') as f: about, tensors = json.loads(f.metadata()['about']), {k: f.get_tensor(k) for k in f.keys()}
    for change in (dict(y=tensors['y'] + 20), dict(start=tensors['start'][:3]), dict(origin=tensors['origin'].float())):
        other = tensors | change
        save_file(other, path, dict(about=json.dumps(about | dict(digest=F.digest(other)))))       # even with the right digest
        with pytest.raises(ValueError, match='no feature data set of ours'): F.load_set(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match='no feature data set of ours'): F.load_set(path)


def test_parts_of_a_set_must_fit(digits):
    s = made(digits)
    for change in (dict(start=s.start[:2]), dict(origin=s.origin.int()), dict(goal=s.start.float())):
        with pytest.raises(ValueError, match='pass one for each'): replace(s, **change)


def test_statistics_anew_change_bn_alone_and_a_copy_only(digits):
    net, x = network('bn').eval(), digits.pixels()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    anew = F.with_statistics_of(net, digits, batch_size=29)                    # the last batch would be one image
    assert all(v.equal(before[k]) for k, v in net.state_dict().items()) and not anew.training
    changed = {k.rsplit('.', 1)[1] for k, v in anew.state_dict().items() if not v.equal(before[k])}
    assert {'running_mean', 'running_var'} <= changed <= {'running_mean', 'running_var', 'num_batches_tracked'}
    first = next(m for m in anew.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad(): seen = net.body[0][0](net.standardize(x[:29]))
    assert torch.allclose(first.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    plain = network('none').eval()
    assert F.with_statistics_of(plain, digits)(x).equal(plain(x)) and not F.has_bn(plain)
    with pytest.raises(ValueError, match='two or more'): F.with_statistics_of(net, digits[:1])


def test_the_two_routes():
    y = torch.arange(10)
    for source, kind in F.SETS.items():
        ways = F.routes(source, y, 10)
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


def test_a_second_run_reads_and_an_interrupted_one_goes_on(run, rows):
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


def test_learners_begin_elsewhere_than_makers(run):
    cell = run.cells()[0]
    one, two = run.untrained(cell).state_dict(), F.network_of(replace(cell, seed=cell.seed + F.ELSEWHERE), run.images('train')).state_dict()
    assert not one['body.0.0.weight'].equal(two['body.0.0.weight'])


def test_settings_that_mean_nothing_are_named(run):
    s = run.settings
    for change, words in ((dict(makers=dict(d_x=['bn'])), "unknown set 'd_x'"), (dict(makers=dict(d_r=['gn'])), "'gn' is not among"),
                          (dict(learn={}), 'says nothing of d_r'), (dict(learn=s['learn'] | dict(d_r=dict(rate=1))), "unknown key 'rate'")):
        with pytest.raises(ValueError, match=words): F.check_settings(s | change)


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
    as_printed = said(lambda r: F.READ_BY_EYE[r['source'], r['label_route']][r['norm'] == 'bn'])
    assert 'BN learns more' in as_printed and 'None: NRF − RF answer −72' in as_printed
    assert 'BN: NRF − RF answer +16.5' in as_printed
    other = said(lambda r: .5 - .3 * (r['norm'] == 'bn') + .2 * (r['label_route'] == 'rf'))
    assert 'None learns more' in other and 'BN learns more' not in other and 'the non-robust feature' not in other


def test_triptychs_show_start_made_and_difference(digits):
    for s, lines in ((made(digits), 3), (F.invert('d_r', network(), digits, steps=1, step_size=.1), 4)):
        fig = F.draw_triptychs(s, range(5))
        assert len(fig.axes) == 5 * lines
        shown = fig.axes[-15].images[0].get_array()
        assert abs(shown - s.start[0, 0].numpy() / 255).max() < 1e-6
