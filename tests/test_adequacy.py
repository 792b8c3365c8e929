"""Checks of an attack: one that was too weak is detected, a strong one passes, and the network is unchanged."""

import pytest
import torch
from torch import nn

from nrf_repro.studies import attack_strength as A
from nrf_repro.attacks import Attack
from nrf_repro.report.checks import CHECKS, doubts, judged
from nrf_repro.experiment.plan import run_spec
from nrf_repro.experiment.profile import NetworkId, load_profile
from nrf_repro.experiment.run import train_network
from nrf_repro.report.rendering import render_report
from nrf_repro.results.rules import load_claims
from nrf_repro.results.rows import frame, make_row, read_rows
from nrf_repro.studies.base import run_study
from made_up import made_up_rows
from nrf_repro.report.tables import table_1, to_html, wide
from nrf_repro.report.text import COLUMNS

BUDGET = A.AttackBudget(times=5, restarts=2, draws=2, curve=(.1, .5, 4), few=12, steps=10, fab=3, queries=20)


class Linear(nn.Module):
    "The nearest of k patterns: in the linf ball the best attack is one step along the sign of a difference of rows."
    def __init__(self, k=4, scale=20.):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(scale * torch.randn(k, 3 * 64, generator=g) / (3 * 64) ** .5)
        self.seen = nn.BatchNorm1d(k, affine=False)      # would change, were the network ever in training mode
    def forward(self, x): return self.seen((x.flatten(1) - .5) @ self.w.T)


def images(k=4, n=24):
    y, w = torch.arange(n) % k, Linear(k).w.detach()
    noise = torch.randn(n, 3 * 64, generator=torch.Generator().manual_seed(1))
    return (.5 + .05 * w[y].sign() + .1 * noise).clamp(0, 1).view(-1, 3, 8, 8), y


def pair(**more): # both losses, alike
    return {name: Attack(**dict(ball='linf', eps=.1, loss=loss, steps=5, step_size=.05) | more) for name, loss in dict(pgd_linf='ce', cw_linf='cw').items()}


def checked(attacks, k=4, net=None, budget=BUDGET):
    x, y = images(k)
    common = dict(experiment='adequacy', dataset='made', arch='linear', width=1., regime='standard', norm='none', seed=0)
    return frame(make_row(**common, **row) for row in A.reevaluate((net or Linear(k)).eval(), x, y, k, attacks, budget))


@pytest.fixture(scope='module')
def strong(): return checked(pair())


def failed(rows): return set(judged(rows).query('verdict == "fails"').check)


def test_a_strong_attack_passes_every_check(strong):
    assert set(judged(strong).check) == set(CHECKS) and not failed(strong)
    assert set(doubts(strong).values()) == {''}


def test_an_attack_with_one_small_step_is_detected():
    weak = checked(pair(steps=1, step_size=.02))
    assert {'more steps', 'autoattack'} <= failed(weak)
    assert '5 steps fool' in doubts(weak)[('made', 'linear', '1.0', 'standard', 'none', 'pgd_linf')]


def test_a_weak_loss_is_detected_by_the_other_one():
    attacks = pair()
    class WeakLoss(Linear): # its cross-entropy depends on a class that is never predicted
        def forward(self, x): return torch.cat([super().forward(x), 1e-3 * x.flatten(1).sum(1, keepdim=True)], 1)
    rows = checked(attacks, net=WeakLoss())
    two = rows[(rows.source == 'two losses')]
    assert set(two.target) == set(attacks) and set(two.metric) == {'missed'}
    first = rows[rows.source == 'table'].set_index('attack').value
    assert two.set_index('target').value.pgd_linf >= first.pgd_linf - first.cw_linf   # at least the difference of the two


def test_a_network_without_gradient_is_detected():
    class Rounded(Linear):
        def forward(self, x): return super().forward(torch.round(x * 4) / 4)
    rows = checked(pair(), net=Rounded())
    assert {'large ball', 'zero gradient'} <= failed(rows)
    assert '100.0 % have a zero gradient' in doubts(rows)[('made', 'linear', '1.0', 'standard', 'none', 'cw_linf')]


def test_two_classes_go_without_the_targeted_margin():
    x, y = images(2)
    assert [type(a).__name__ for _, a in A.gradient_attacks(Linear(2).eval(), x, 'linf', .1, 2, 10, 3)].count('APGDT') == 0
    assert 'autoattack' in set(judged(checked(pair(), 2)).check)


def test_the_network_and_the_random_generator_are_unchanged():
    net = Linear().eval()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    first, again = checked(pair(), net=net), checked(pair(), net=net)
    assert first.value.equals(again.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    assert not any(m.training for m in net.modules()) and all(p.requires_grad and p.grad is None for p in net.parameters())


def test_the_best_bound_is_below_all_others():
    few = A.AttackBudget(**BUDGET.__dict__ | dict(few=24))
    all_of_them = checked(pair(), budget=few)
    robust = all_of_them[(all_of_them.metric == 'robust_accuracy') & (all_of_them.eps == .1)].groupby('source').value.min()
    assert robust['strongest'] == min(robust['strongest'], *robust.drop('strongest')) and robust['strongest'] < 1
    assert robust['noise'] > robust['table']


def test_curves_fall_to_zero(strong):
    curve = strong[strong.source == 'eps'].sort_values('eps').value.tolist()
    assert len(curve) == 3 and curve == sorted(curve, reverse=True) and curve[-1] == 0 < curve[0]


def test_by_hand():
    t = lambda *bits: torch.tensor(bits, dtype=torch.bool)
    assert A._missed(t(1, 1, 0, 0), t(1, 0, 1, 0)) == .25
    assert A._noise_ratio(t(1, 1, 1, 1), t(0, 0, 1, 1), t(1, 1, 1, 0)) == .5
    assert A._noise_ratio(t(1, 1, 1, 1), t(1, 1, 1, 1), t(1, 1, 1, 1)) is None
    assert A._noise_ratio(t(1, 1), t(1, 1), t(0, 1)) == 1    # noise misclassifies one, the attack none: counted as one
    delta = torch.zeros(2, 1, 2, 2)
    delta[0, 0, 0] = torch.tensor([3., 4.])
    assert A._within(delta, 'l2', 5).tolist() == [True, True] and A._within(delta, 'linf', 3.9).tolist() == [False, True]


def test_a_perturbation_larger_than_eps_does_not_count():
    x, y = images()
    net = Linear().eval()
    inverse = lambda x, y: 1 - x
    assert A.robust_under(net, x, y, inverse, 'linf', .05).equal(A.is_correct(net, x, y))
    assert not A.robust_under(net, x, y, inverse, 'linf', 1.).any()


def test_rescaled_logits_give_the_same_predictions():
    x, _ = images()
    confident = Linear(scale=1e4).eval()
    confident.seen = nn.Identity()
    rescaled = A.RescaledLogits(confident, x)
    assert rescaled(x).abs().max() <= 10 < confident(x).abs().max() and rescaled(x).argmax(1).equal(confident(x).argmax(1)) and not rescaled.training


# the study

def profile():
    study = dict(dataset='digits', archs={'vgg11': .0625}, norms=['none', 'bn'], seeds=[0], images=10,
        attacks=['pgd_l2', 'cw_l2'], effort=dict(times=2, restarts=2, draws=2, curve=[1, 2, 8], few=4, steps=3, fab=2, queries=5))
    return load_profile('tiny').with_changes({'data.digits.train': 100, 'data.digits.test': 30, 'data.digits.watch': dict(images=10, attack='pgd_l2', epochs=None),
                                              'data.digits.recipes.standard.epochs': 1, 'studies': dict(adequacy=study)})


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('adequacy')
    for norm in ('none', 'bn'): train_network(run_spec(profile(), NetworkId('digits', 'vgg11', .0625, norm, 'standard', 0)), place, progress=False)
    return place


def test_the_study_is_measured_once_and_states_its_limits(folder, capsys):
    assert run_study(profile(), 'adequacy', 0, folder, progress=False) == 'measured'
    assert 'APGD in 3 steps and FAB in 2 (published: 100), Square with 5 queries (published: 5000)' in capsys.readouterr().out
    assert run_study(profile(), 'adequacy', 0, folder, progress=False) == 'kept'
    rows = read_rows(folder / 'studies' / 'adequacy-s0')
    parts = list(A.show_adequacy(rows))
    assert [p['title'].split(':')[0].split('?')[0] for p in parts] == ['Are the attacks strong enough', 'Bounds under all attacks', 'Robust accuracy against eps']
    assert 'AutoAttack with 3 steps (published: 100)' in parts[0]['caption'] and len(parts[0]['table']) == 4
    assert any('one seed, no interval' in line for line in parts[0]['reading'])


def test_the_report_copes_with_missing_rows(folder):
    rows = read_rows(folder / 'studies' / 'adequacy-s0')
    one = list(A.show_adequacy(rows[rows.norm == 'bn']))
    assert len(one) == 3 and not any('robust to all attacks' in line for line in one[0]['reading'])
    assert list(A.show_adequacy(rows.iloc[:0])) == []
    two = frame([*rows.to_dict('records'), *rows.assign(arch='resnet18', seed=1).to_dict('records')])
    assert len(list(A.show_adequacy(two))) == 6
    assert list(A.show_adequacy(rows.assign(source=None))) == []     # rows of `measure` without checks


@pytest.mark.parametrize('change, says', [
    (dict(attacks=['pgd_l3']), "unknown attack 'pgd_l3'. digits has pgd_l2"), (dict(effort=dict(step=3)), "effort: unknown key 'step'; known are curve, draws")])
def test_an_unknown_setting_is_an_error(folder, change, says):
    p = profile().with_changes({f'studies.adequacy.{name}': value for name, value in change.items()})
    with pytest.raises(ValueError, match=says): run_study(p, 'adequacy', 0, folder, progress=False)


# marks

def check_row(check='more steps', value=.1, norm='bn', target='pgd_l2', seed=0, **more):
    return make_row(**dict(experiment='adequacy', dataset='digits', arch='vgg11', width=.125, regime='standard', norm=norm, seed=seed, n=100,
        profile='made-up', metric=CHECKS[check].metric, source=check, target=target, attack=target, steps=50, draws=5, eps=1., reading='any', value=value) | more)


@pytest.mark.parametrize('values, verdict', [((.02, .03, .04), 'passes'), ((.03, .03, .031), 'fails'), ((.0, .0, .2), 'fails'), ((None, None, None), 'open')])
def test_limits_are_on_the_mean_over_seeds(values, verdict):
    assert judged(frame(check_row(value=v, seed=s) for s, v in enumerate(values))).verdict.tolist() == [verdict]


def test_a_mark_is_shown_at_its_cell_and_at_the_difference(tmp_path):
    rows = frame([*made_up_rows(['none', 'bn', 'gn']), check_row(), check_row(norm='none', value=.0)])
    marks = {(c.norm, c.base, c.column): c.marks for c in table_1(rows).itertuples()}
    assert {key for key, texts in marks.items() if texts} == {('bn', None, 'pgd_l2'), ('bn', 'none', 'pgd_l2')}
    assert to_html(table_1(rows), 'x').count('⚠1') == 3 and wide(table_1(rows)).to_string().count('⚠1') == 2
    page = render_report(rows, load_claims(), tmp_path / 'report.html', profile='made-up').read_text()
    assert '50 steps fool 10.0 % of the images more' in page
    assert '⚠1' not in to_html(table_1(rows[rows.experiment == 'final']), 'x')


def test_every_attack_on_a_network_without_gradient_is_marked():
    rows = frame([*made_up_rows(['none', 'bn']), *(check_row('square', .0, target=a) for a in COLUMNS if a not in ('clean', 'ligs')), check_row('zero gradient', .5, target=None)])
    cells = table_1(rows)
    assert set(cells[(cells.norm == 'bn') & cells.base.isna() & (cells.marks.map(len) > 0)].column) == {'pgd_l2', 'pgd_linf', 'cw_l2', 'cw_linf'}
