"""Published rows are found again, and what was touched is caught: a value, a number of images, a row more or less, other settings, other images."""
import json
import shutil

import pytest

from nrf_repro.cli import main
from nrf_repro.experiment.plan import plan
from nrf_repro.experiment.profile import NetworkId, load_profile
from nrf_repro.experiment.provenance import origin_of
from nrf_repro.experiment.published import networks_in, publish, restore
from nrf_repro.experiment.run import measure_network, train_network
from nrf_repro.results.rows import read_rows, write_rows
from nrf_repro.experiment.verify import machine_differences, published, sample_of, tolerance, verify

NETWORKS = [NetworkId('digits', 'vgg11', .0625, norm, 'standard', 0) for norm in ('bn', 'none')]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Two networks, as `make report` leaves them."
    build = tmp_path_factory.mktemp('build')
    for spec in plan(load_profile('tiny')):
        if spec.network in NETWORKS: train_network(spec, build, progress=False), measure_network(spec, build)
    write_rows(build / 'rows.jsonl', read_rows(build / 'runs'))
    (build / 'report.html').write_text('<p>')
    (build / 'notebooks').mkdir()
    return build


@pytest.fixture
def folder(run, tmp_path): return publish(load_profile('tiny'), run, tmp_path)


def change(folder, i=0, **fields):
    lines = (folder / 'rows.jsonl').read_text().splitlines()
    row = json.loads(lines[i])
    for name in ('outcomes', 'images'): row.pop(name, None)   # else the mean of the outcomes shows the change on reading
    lines[i] = json.dumps(row | {k: v(row[k]) for k, v in fields.items()})
    (folder / 'rows.jsonl').write_text('\n'.join(lines) + '\n')


def said(folder, capsys, *words):
    status = main(['verify', str(folder), *words])
    return status, capsys.readouterr()


def test_what_was_published_here_is_found_again_to_the_last_bit(folder, capsys):
    status, out = said(folder, capsys, '--all')
    n = len(read_rows(folder / 'rows.jsonl'))
    assert status == 0 and out.out.splitlines()[-1] == f'2 of 2 networks trained again, {n} rows compared: all equal.'


@pytest.mark.parametrize('fields, word', [(dict(value=lambda v: v + 1e-9), 'beyond'), (dict(n=lambda n: n + 1), 'other n'), (dict(epoch=lambda e: e + 1), 'not found again')])
def test_a_touched_row_is_caught(fields, word, folder, capsys):
    change(folder, **fields)
    status, out = said(folder, capsys, '--all')
    assert status == 1 and word in out.out and 'NOT verified' in out.out.splitlines()[-1]


def test_elsewhere_a_rounding_passes_and_a_lie_does_not(folder, capsys, monkeypatch):
    origin = json.loads((folder / 'origin.json').read_text())
    (folder / 'origin.json').write_text(json.dumps(origin | dict(processors=['abacus'])))
    monkeypatch.setattr('nrf_repro.experiment.verify.sample_of', lambda networks, *a: networks[:1])
    change(folder, value=lambda v: v - 1e-3)
    status, out = said(folder, capsys)
    assert status == 0 and 'processor abacus then' in out.out and 'all within their limits' in out.out
    change(folder, value=lambda v: v - .5 if v > .5 else v + .5)
    assert said(folder, capsys)[0] == 1


def test_a_missing_row_is_caught(folder, capsys):
    lines = (folder / 'rows.jsonl').read_text().splitlines()
    (folder / 'rows.jsonl').write_text('\n'.join(lines[1:]) + '\n')
    status, out = said(folder, capsys, '--all')
    assert status == 1 and 'not published' in out.out


def test_what_cannot_be_checked_is_an_error_of_one_line(folder, run, tmp_path, capsys):
    def error(*words):
        status, out = said(folder, capsys, *words)
        assert status == 2 and out.err.count('\n') == 1 and 'Traceback' not in out.err
        return out.err
    assert 'draw at least one network' in error('--sample', '0')
    origin = json.loads((folder / 'origin.json').read_text())
    def replaced(**new): (folder / 'origin.json').write_text(json.dumps(origin | new))
    replaced(data=dict(digits=['0123']))
    assert 'are not those of the rows' in error()
    recipes = origin['profile']['data']['digits']['recipes']
    recipes['standard'] |= dict(lr=.1234)
    replaced(profile=origin['profile'])
    assert 'it has changed since' in error()
    recipes['standard'] |= dict(lr='quick')
    replaced(profile=origin['profile'])
    assert 'origin.json' in error() and "'quick'" in error()
    (folder / 'origin.json').write_text('{"half')
    assert 'origin.json is damaged' in error()
    replaced()
    change(folder, profile=lambda p: 'other')
    assert 'is of 2 profiles' in error()
    (folder / 'rows.jsonl').unlink()
    assert 'has no rows.jsonl' in error()
    shutil.rmtree(folder)
    assert 'not there' in error()


def test_a_published_profile_is_meant_by_its_name(folder, tmp_path, monkeypatch, capsys):
    rows = len(read_rows(folder / 'rows.jsonl'))
    shutil.copytree(folder, tmp_path / 'reports/published/tiny-mine')
    monkeypatch.chdir(tmp_path)
    assert len(published('tiny-mine')[0]) == len(published('reports/published/tiny-mine')[0]) == rows
    assert main(['verify', 'nobodys']) == 2
    assert "'nobodys' is not there: name a published profile" in capsys.readouterr().err


def test_rows_of_studies_alone_are_nothing_to_train_again(folder):
    rows = read_rows(folder / 'rows.jsonl')
    write_rows(folder / 'rows.jsonl', rows[rows.experiment == 'final'].assign(experiment='transfer'))
    with pytest.raises(ValueError, match='no rows of networks'): published(folder)


def test_limits_shrink_with_images_and_are_never_nothing():
    widths = [tolerance('robust_accuracy', .4, .4, n) for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True) and tolerance('clean_accuracy', 1., 1., 100) > 0 and tolerance('ligs_plain', .9, .9, 100) == .05


def test_every_network_can_be_drawn(run):
    networks = networks_in(read_rows(run / 'rows.jsonl'))
    assert networks == NETWORKS and sample_of(networks, 9) == networks and len(sample_of(networks, 1)) == 1 and origin_of(load_profile('tiny'), run)['data']['digits']


def test_an_interrupted_check_goes_on(folder, tmp_path):
    verify(folder, None, build=tmp_path / 'kept')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'kept').rglob('weights.safetensors')}
    assert len(before) == 2 and set(verify(folder, None, build=tmp_path / 'kept').verdict) == {'equal'}
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_build_folder_with_runs_of_its_own_is_not_compared_with_itself(folder, run, capsys):
    status, out = said(folder, capsys, '--all', '--build', str(run))
    assert status == 2 and 'runs that verify did not train' in out.err


def test_rows_on_a_gpu_need_not_be_equal(run):
    rows = read_rows(run / 'runs')
    assert any('GPU' in text for text in machine_differences(rows.assign(device='cuda'), {}, 'cuda'))


def test_restoring_refuses_other_settings_and_a_folder_with_results(folder, tmp_path):
    tiny = load_profile('tiny')
    with pytest.raises(ValueError, match='other settings than its rows'): restore(tiny.with_changes({'data.digits.recipes.standard.epochs': 1}), folder, tmp_path / 'a')
    (tmp_path / 'b/studies/medical-s0').mkdir(parents=True)
    with pytest.raises(FileExistsError, match='runs or studies'): restore(tiny, folder, tmp_path / 'b')


def test_a_restored_network_is_kept_and_one_without_weights_is_trained(folder, tmp_path):
    tiny = load_profile('tiny')
    count = restore(tiny, folder, tmp_path / 'a')
    assert count == len(read_rows(tmp_path / 'a/runs'))
    specs = [spec for spec in plan(tiny) if spec.network in NETWORKS]
    there = [spec for spec in specs if list((tmp_path / 'a/runs' / spec.id).glob('weights*'))]
    for spec in there: assert train_network(spec, tmp_path / 'a', progress=False) == measure_network(spec, tmp_path / 'a') == 'kept'
    (folder / 'networks' / f'{there[0].id}.safetensors').unlink()
    restore(tiny, folder, tmp_path / 'c')
    assert train_network(there[0], tmp_path / 'c', progress=False) == 'trained'
