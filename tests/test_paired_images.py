"The study of two networks on the same images: all parts, resuming, and the report."
import pytest

from nrf_repro.studies import paired_images as P, paired_measurement as M
from nrf_repro.experiment.published import load_published
from nrf_repro.experiment.profile import STUDIES, load_profile
from nrf_repro.experiment.profile import NetworkId
from nrf_repro.models import save_model
from nrf_repro.results.rows import read_rows
from nrf_repro.results.schema import Place, parse
from nrf_repro.studies.base import run_study

FEW = dict(table=20, strength=20, eps=20, sigma=20, corruptions=20, transfer=20)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "The study on two published networks for the digits: (profile, its settings, folder)."
    folder = tmp_path_factory.mktemp('paired_images')
    given = dict(dataset='digits', archs={'vgg11': .125}, norms=['none', 'bn'], seeds=[0], images=FEW,
                 strength=dict(pgd_l2=dict(steps=5, apgd=3, fab=2, queries=5, targets=2), pgd_linf=dict(steps=5, apgd=3, fab=0)),
                 eps=dict(attack='pgd_l2', times=[.5, 1, 2]), sigma=[.01, .05], levels='natural', severities=[1, 5], transfer_eps=.1)
    profile = load_profile('demo').with_changes({'studies': dict(paired_images=given)})
    for norm in ('none', 'bn'):
        cell = NetworkId('digits', 'vgg11', .125, norm, 'standard', 0)
        save_model(load_published('demo', norm=norm, arch='vgg11'), folder / 'runs' / cell.id / 'weights.safetensors')
    assert run_study(profile, 'paired_images', 0, folder) == 'measured'
    return profile, given, folder


def written(folder): return {p: p.stat().st_mtime_ns for p in folder.rglob('parts/*.json')}


def test_the_settings_are_those_of_the_registry(study):
    assert set(study[1]) - {'dataset', 'archs', 'norms', 'seeds'} == set(STUDIES['paired_images'].settings)


def test_the_report_shows_every_part(study):
    rows = read_rows(study[2] / 'studies')
    titles = [p['title'].split(',')[0] for p in P.show_paired_images(rows)]
    assert titles == ['Table 1 on the same images', 'Stronger attacks', 'Stronger attacks', 'Robust accuracy against eps', 'LIGS against sigma',
                      'Corrupted images', 'Transfer between the networks', 'Stored weights against float32']


def test_robust_accuracy_never_rises_along_the_sequence(study):
    rows = read_rows(study[2] / 'studies')
    tried = P._sequence(rows[rows.metric == 'robust_accuracy'])
    for _, of in tried.assign(stage=tried.source.str.split().str[0].astype(int)).groupby(['attack', 'norm']):
        values = of.sort_values('stage').value
        assert values.is_monotonic_decreasing and len(values) > 5 and values.iloc[-1] < values.iloc[0]


def test_the_difference_is_gained_minus_lost(study):
    rows = read_rows(study[2] / 'studies')
    for e in P.paired_effects(rows, 'corruption_accuracy').itertuples():
        here = rows[(rows.metric == 'corruption_accuracy') & (rows.source == e.source) & (rows.severity == e.severity)].set_index('norm').value
        assert e.effect == pytest.approx(here.bn - here.none) and e.low <= e.effect <= e.high


def test_an_interrupted_study_measures_only_the_missing_part(study):
    profile, given, folder = study
    first = written(folder)
    (folder / 'studies' / 'paired_images-s0' / 'study.json').unlink()     # the parts are complete, the study is not
    next(iter(first)).unlink()
    run_study(profile, 'paired_images', 0, folder)
    again = written(folder)
    assert sum(again[p] != t for p, t in first.items()) == 1
    run_study(profile.with_changes({'studies.paired_images.sigma': [.02]}), 'paired_images', 0, folder)
    assert {p.stem for p, t in written(folder).items() if again[p] != t} == {'sigma-vgg11'}   # the only part that depends on sigma


def test_an_unknown_setting_is_an_error():
    with pytest.raises(ValueError, match="strength: unknown key 'apgds'; known are apgd, fab"): parse(M.AttackLimits, dict(apgds=5), Place('strength'))
