"""Runs of another machine: correct archives are copied; everything else is refused by name and changes nothing."""
import json
import os
import re
import shutil
import stat
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nrf_repro.experiment import archive
from nrf_repro.experiment.archive import write_archive
from nrf_repro.cli import collect, main
from nrf_repro.experiment.plan import plan
from nrf_repro.experiment.profile import load_profile
from nrf_repro.experiment.provenance import report_meta
from nrf_repro.experiment.run import measure_network, run_all, train_network
from nrf_repro.experiment.store import RUN_FILES, WEIGHTS_8BIT, directory_lock
from nrf_repro.models import load_model, save_tensors
from nrf_repro.models.checkpoint import quantize
from nrf_repro.report.rendering import render_report
from nrf_repro.results.rules import load_claims
from nrf_repro.results.rows import read_rows, source_hash

TINY = load_profile('tiny')
SPECS = plan(TINY)
NAMES = [spec.id for spec in SPECS]
A, B = NAMES[:2]
OLD = 'ada51fa96dc0'  # the source hash of some other version


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "The four networks of tiny, as the other machine leaves them, and their archive."
    build = tmp_path_factory.mktemp('there')
    for spec in SPECS: train_network(spec, build, progress=False), measure_network(spec, build)
    return build, write_archive(build, NAMES, build / 'archive.zip')


@pytest.fixture
def unpacked(made, tmp_path):
    "The archive as a folder that a test may damage."
    with zipfile.ZipFile(made[1].path) as z: z.extractall(tmp_path / 'unpacked')
    return tmp_path / 'unpacked'


@pytest.fixture
def build(tmp_path): return tmp_path / 'build'


@pytest.fixture
def gathering(build, capsys):
    "nrf-repro gather on a zip file or a folder: its exit status and what it printed."
    def call(source, *words, profile='tiny'):
        status = main(['gather', str(source), '--profile', profile, '--folder', str(build), *words])
        out = capsys.readouterr()
        return status, out.out, out.err
    return call


@pytest.fixture
def refused(gathering, build):
    "The archive is refused, with these words, and there is no build folder."
    def check(source, *contains, words=(), profile='tiny'):
        status, out, err = gathering(source, *words, profile=profile)
        assert status == 2 and not out and err.startswith('nrf-repro: ') and err.count('\n') == 1, err
        for text in contains: assert text in err, err
        assert not build.exists()
    return check


def edit(path, old, new, count=1):
    "Replace a pattern in a file."
    text = re.sub(old, new, path.read_text(), count=count)
    assert text != path.read_text()
    path.write_text(text)


def rezip(folder, out):
    with zipfile.ZipFile(out, 'w') as z:
        for path in sorted(folder.rglob('*')):
            if path.is_file(): z.write(path, path.relative_to(folder))
    return out


def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


# --- the way there and back ---

def test_all_runs_come_through_a_zip_and_the_report_keeps_them(made, build, gathering):
    there, packed = made
    status, out, _ = gathering(packed.path)
    assert status == 0 and out.count('copied  ') == 4 and f'4 by the code with the source hash {source_hash()}.' in out
    for spec in SPECS:
        for name in RUN_FILES: assert (build / 'runs' / spec.id / name).read_bytes() == (there / 'runs' / spec.id / name).read_bytes()
        assert not (build / 'runs' / spec.id / 'weights.safetensors').exists()
        assert load_model(build / 'runs' / spec.id / WEIGHTS_8BIT).config['norm'] == spec.network.norm
    before = contents(build / 'runs')
    assert set(run_all(SPECS, lambda spec: train_network(spec, build, progress=False)).values()) == {'kept'}
    assert set(run_all(SPECS, lambda spec: measure_network(spec, build)).values()) == {'kept'}
    rows = collect(TINY, ('core',), build)
    page = render_report(rows, load_claims(), build / 'report.html', profile='tiny', **report_meta(TINY, ['core'], build))
    assert len(rows) == len(read_rows(there / 'runs')) and source_hash() in page.read_text()
    assert {k: v for k, v in contents(build / 'runs').items() if k.name != '.lock'} == before


def test_a_link_or_a_pipe_in_a_folder_is_refused(unpacked, tmp_path, refused):
    target = unpacked / 'runs' / A / 'config.json'
    target.rename(tmp_path / 'config.json')
    target.symlink_to(tmp_path / 'config.json')
    refused(unpacked, f"'runs/{A}/config.json' is not a regular file")
    target.unlink()
    os.mkfifo(target)
    refused(unpacked, f"'runs/{A}/config.json' is not a regular file")


def test_a_folder_and_a_zip_file_give_the_same_runs(unpacked, tmp_path, build, gathering):
    assert gathering(unpacked)[0] == 0
    first = contents(build)
    shutil.rmtree(build)
    assert gathering(rezip(unpacked, tmp_path / 'again.zip'))[0] == 0 and contents(build) == first


def test_runs_that_are_there_are_kept(unpacked, build, gathering):
    (unpacked / 'README.md').write_text('ten networks')
    assert gathering(unpacked)[0] == 0
    edit(build / 'runs' / A / 'final.jsonl', r'"value": [\d.]+', '"value": 0.125')        # ours from now on
    (build / 'runs' / B / WEIGHTS_8BIT).unlink()
    before = contents(build)
    status, out, _ = gathering(unpacked)
    assert status == 0 and out.count('kept    ') == 4 and '0 runs copied' in out and contents(build) == before


def test_rows_of_another_version_come_in_by_name_and_the_report_names_it(unpacked, build, gathering, refused):
    for path in unpacked.rglob('*.jsonl'): path.write_text(path.read_text().replace(source_hash(), OLD))
    refused(unpacked, OLD, source_hash(), f'--source {OLD}')
    refused(unpacked, "--source 'abc' is no source hash", words=['--source', 'abc'])
    refused(unpacked, f'--source {OLD}', words=['--source', '0' * 12])
    status, out, _ = gathering(unpacked, '--source', OLD)
    assert status == 0 and f'4 by the code with the source hash {OLD} (this code has {source_hash()})' in out
    rows = collect(TINY, ('core',), build)
    assert set(rows.source_hash) == {OLD}
    page = render_report(rows, load_claims(), build / 'report.html', profile='tiny', **report_meta(TINY, ['core'], build)).read_text()
    assert f'{OLD} ({len(rows)} rows)' in page and source_hash() in page


def test_the_archive_has_a_bounded_size_and_equal_runs_give_equal_bytes(made, tmp_path):
    there, packed = made
    assert packed.networks == packed.runs == tuple(NAMES) and packed.size == packed.path.stat().st_size
    size, counts = packed.size, []
    while True:
        smaller = write_archive(there, NAMES, tmp_path / 'a.zip', limit=size - 1)
        assert smaller.size < size and smaller.networks == packed.networks[:len(smaller.networks)]
        counts.append(len(smaller.networks))
        if not smaller.networks: break
        size = smaller.size
    assert counts == [3, 2, 1, 0]
    with pytest.raises(ValueError, match='Raise the limit'): write_archive(there, NAMES, tmp_path / 'a.zip', limit=smaller.size - 1)
    assert (tmp_path / 'a.zip').stat().st_size == smaller.size and os.listdir(tmp_path) == ['a.zip']
    assert write_archive(there, NAMES, tmp_path / 'b.zip').path.read_bytes() == packed.path.read_bytes()


def test_without_any_network_rows_come_in_alone(unpacked, build, gathering):
    shutil.rmtree(unpacked / 'networks')
    assert gathering(rezip(unpacked, unpacked.parent / 'rows.zip'))[0] == 0 and not list(build.rglob('*.safetensors'))


# --- the standardising layer of older files ---

def rounded(path):
    "The fault of an older version: the standardising layer in eight bits, its config exact."
    model = load_model(path)
    with safe_open(path, 'pt') as file: text, tensors = file.metadata()['config'], load_file(path)
    for name in ('standardize.mean', 'standardize.std'):
        tensors.pop(f'{name}.scale', None)
        tensors[name], tensors[f'{name}.scale'] = quantize(model.state_dict()[name])
    save_tensors(path, tensors, config=text)


def test_a_rounded_standardising_layer_is_restored_and_nothing_else_changes(unpacked, build, gathering):
    file = unpacked / 'networks' / f'{A}.safetensors'
    exact = load_model(file)
    exact.standardize.mean.copy_(torch.tensor(exact.config['mean']).view(1, -1, 1, 1))    # of a version with or without the fault
    exact.standardize.std.copy_(torch.tensor(exact.config['std']).view(1, -1, 1, 1))
    rounded(file)
    assert gathering(unpacked)[0] == 0
    here = load_model(build / 'runs' / A / WEIGHTS_8BIT)
    assert all(torch.equal(w, here.state_dict()[name]) for name, w in exact.state_dict().items())


def test_a_standardising_layer_that_rounding_cannot_explain_is_refused(unpacked, refused):
    file = unpacked / 'networks' / f'{A}.safetensors'
    with safe_open(file, 'pt') as f: text, tensors = f.metadata()['config'], load_file(file)
    tensors.pop('standardize.mean.scale', None)
    save_tensors(file, tensors | {'standardize.mean': torch.full((1, 1, 1, 1), .9)}, config=text)
    refused(unpacked, f'networks/{A}.safetensors', 'standardize.mean')


# --- runs that differ ---

FINAL, HISTORY, CONFIG, ATTACK = (f'runs/{B}/{name}' for name in ('final.jsonl', 'history.jsonl', 'config.json', 'attack.json'))
DIFFERENT = dict(
    epochs=(CONFIG, '"epochs": 2', '"epochs": 3', 'recipe.epochs is 3 there and 2 in profile tiny'),
    unknown_setting=(CONFIG, '"arch"', '"arc": 1, "arch"', 'arc is 1 there and missing in profile tiny'),
    hash=(CONFIG, r'"hash": "\w+"', '"hash": "000000000000"', "its hash is '000000000000'; these settings have"),
    train=(CONFIG, r'"data": "\w+"', '"data": "000000000000"', "train images of digits have the fingerprint '000000000000'"),
    no_print=(CONFIG, r'"data": "\w+",', '', 'have the fingerprint None'),
    machine=(CONFIG, r'"machine": ".*?"', r'"machine": "a\\u0000b"', 'settings, machine: String should match pattern'),
    lossy=(CONFIG, r'"lossy": null', '"lossy": "many"', "settings, lossy: must be a valid integer, got 'many'"),
    steps=(ATTACK, '"steps": 3', '"steps": 4', 'attacks.cw_l2.steps is 4 there and 3 in profile tiny'),
    weights=(ATTACK, r'"weights": "\w+"', '"weights": "000000000000"', 'weights is "000000000000" there'),
    test=(ATTACK, r'"data": "\w+"', '"data": "000000000000"', "test images of digits have the fingerprint '000000000000'"),
    nan=(FINAL, r'"value": [\d.]+', '"value": NaN', 'it holds NaN'),
    infinite=(HISTORY, r'"seconds": [\d.e-]+', '"seconds": -Infinity', 'it holds NaN or an infinite value'),
    overflow=(HISTORY, r'"seconds": [\d.e-]+', '"seconds": 1e999', 'row field `seconds` is infinite'),
    null=(FINAL, r'"metric": "vanished"(.*?)"value": [\d.]+', r'"metric": "vanished"\1"value": null', 'it has no value: experiment final, metric vanished'),
    null_accuracy=(FINAL, r'"value": [\d.]+', '"value": null', 'clean_accuracy is null'),
    per_cent=(FINAL, r'"value": [\d.]+', '"value": 93.4', 'values are fractions, not per cent'),
    profile=(FINAL, '"profile": "tiny"', '"profile": "demo"', 'it has a row that the profile does not ask for'),
    seed=(FINAL, '"seed": 0', '"seed": 1', 'it has a row that the profile does not ask for'),
    eps=(FINAL, '"eps": 1.0', '"eps": 0.5', 'it has a row that the profile does not ask for'),
    n=(FINAL, '"n": 60', '"n": 600', 'are not those of 600 images'),
    row_hash=(HISTORY, r'"config_hash": "\w+"', '"config_hash": "000000000000"', "config_hash is '000000000000' there"),
    no_code=(HISTORY, r'"source_hash": "\w+"', '"source_hash": null', 'its rows name no source hash'),
    code=(HISTORY, r'"source_hash": "\w+"', f'"source_hash": "{OLD}"', f'--source {OLD}'),
    lost_row=(FINAL, r'^.*\n', '', 'it lacks a row: experiment final, metric clean_accuracy'),
    extra_field=(FINAL, '"value"', '"valeu": 1, "value"', 'unknown row field valeu'),
    not_json=(CONFIG, '"arch"', '"arch', 'config.json: '),
    no_object=(ATTACK, r'(?s)^.*$', '[1]', 'attack.json: it holds no object'),
    deep=(CONFIG, '"lossy": null', '"lossy": ' + '[' * 100_000, 'config.json: '),
)


@pytest.mark.parametrize('name', DIFFERENT)
def test_one_run_that_differs_and_nothing_comes_in(name, unpacked, refused):
    place, old, new, said = DIFFERENT[name]
    edit(unpacked / place, old, new)
    refused(unpacked, f'{B}/{place.split("/")[-1]}: ', said, 'Nothing was changed')


def test_an_archive_of_another_profile(made, refused):
    refused(made[1].path, f'{min(NAMES)} is no network of profile demo: is the archive of another profile?', profile='demo')


def test_images_that_are_not_at_hand(made, refused, monkeypatch):
    monkeypatch.setattr(archive, 'is_here', lambda name, split: False)
    refused(made[1].path, 'The images of digits are not in', 'NRF_DATA=')


@pytest.mark.parametrize('file', RUN_FILES)
def test_a_run_that_is_not_finished(file, unpacked, refused):
    (unpacked / 'runs' / B / file).unlink()
    refused(unpacked, f'{B} has no {file}')


def test_a_network_without_its_run(unpacked, refused):
    shutil.rmtree(unpacked / 'runs' / B)
    refused(unpacked, f'networks/{B}.safetensors has no run')


def test_somebodys_work_in_the_build_folder_stays(unpacked, build, gathering):
    (build / 'runs' / B).mkdir(parents=True)
    (build / 'runs' / B / 'state.safetensors').write_bytes(b'half a training')
    status, out, err = gathering(unpacked)
    assert status == 2 and f'runs/{B} holds a network of other settings, or one that is not trained to the end' in err and not out
    assert {p for p in contents(build) if p.name != '.lock'} == {(build / 'runs' / B / 'state.safetensors').relative_to(build)}


def test_a_lock_and_the_draft_of_a_killed_process_do_no_harm(unpacked, build, gathering):
    (build / 'runs' / B).mkdir(parents=True)
    (build / 'runs' / B / '.lock').touch()
    (build / '.gather' / A).mkdir(parents=True)
    assert gathering(unpacked)[0] == 0
    assert len(list(build.glob('runs/*/config.json'))) == 4 and not (build / '.gather').exists()


def test_no_room_in_the_build_folder_changes_nothing(unpacked, build, gathering, monkeypatch):
    copy = shutil.copyfile

    def full(source, to):
        if B in str(to) and to.name == WEIGHTS_8BIT: raise OSError(28, 'No space left on device')
        return copy(source, to)
    monkeypatch.setattr(archive.shutil, 'copyfile', full)
    status, _, err = gathering(unpacked)
    assert status == 2 and 'No space left on device' in err and not [p for p in contents(build) if p.name != '.lock']


# --- networks that are none ---

def network(unpacked, change):
    "Change the tensors of B's network."
    file = unpacked / 'networks' / f'{B}.safetensors'
    with safe_open(file, 'pt') as f: text, tensors = f.metadata()['config'], load_file(file)
    save_tensors(file, *change(tensors, text)[:1], config=change(tensors, text)[1])


def config_of(text, **fields): return json.dumps(json.loads(text) | fields)


def first(tensors, end): return next(k for k in sorted(tensors) if k.endswith(end))


NETWORKS = dict(
    width=(lambda t, c: (t, config_of(c, width=64.)), 'width is 64.0 there and 0.0625 in the network'),
    classes=(lambda t, c: (t, config_of(c, num_classes=1000)), 'num_classes is 1000 there'),
    missing=(lambda t, c: ({k: v for k, v in t.items() if k != first(t, 'bias')}, c), 'is missing'),
    extra=(lambda t, c: (t | dict(more=torch.zeros(3)), c), 'its weight more belongs to another network'),
    shape=(lambda t, c: (t | {first(t, '.weight'): torch.zeros(7)}, c), 'not one float32 for each output'),
    scales=(lambda t, c: (t | {first(t, '.scale'): torch.ones(10**6)}, c), 'not one float32 for each output'),
    nan=(lambda t, c: (t | {first(t, '.scale'): t[first(t, '.scale')] * torch.nan}, c), 'holds NaN'),
)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_file_that_is_not_the_network_of_its_name(name, unpacked, refused):
    change, said = NETWORKS[name]
    network(unpacked, change)
    refused(unpacked, f'networks/{B}.safetensors: ', said)


def test_a_network_in_the_place_of_another(unpacked, refused):
    other = next(s.id for s in SPECS if s.network.norm != SPECS[1].network.norm)
    shutil.copyfile(unpacked / 'networks' / f'{other}.safetensors', unpacked / 'networks' / f'{B}.safetensors')
    refused(unpacked, f'networks/{B}.safetensors: ', 'norm is ')


@pytest.mark.parametrize('data', [b'', b'\x80\x04\x95', b'\xff' * 100, None])
def test_damaged_weights(data, unpacked, refused):
    file = unpacked / 'networks' / f'{B}.safetensors'
    file.write_bytes(file.read_bytes()[:-1] if data is None else data)
    refused(unpacked, f'networks/{B}.safetensors: ')


# --- archives that are none, or that mean harm ---

@pytest.mark.parametrize('keep', [0, 10, .5, .99, -1])
def test_a_truncated_zip(keep, made, tmp_path, refused):
    data = made[1].path.read_bytes()
    (tmp_path / 'cut.zip').write_bytes(data[:int(keep * len(data)) if 0 < keep < 1 else keep])
    refused(tmp_path / 'cut.zip', 'cut.zip: ', 'Nothing was changed')


def test_a_byte_of_a_zip_changed_anywhere_is_seen_or_harmless(made, tmp_path, build, gathering):
    data, whole = made[1].path.read_bytes(), None
    for i in range(0, len(data), len(data) // 12):
        (tmp_path / 'bad.zip').write_bytes(data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1:])
        status, _, err = gathering(tmp_path / 'bad.zip')
        if status: assert status == 2 and 'Nothing was changed' in err and not build.exists()
        else:
            runs = contents(build / 'runs')
            whole = whole or runs
            assert runs == whole
            shutil.rmtree(build)


def member(name, data=b'{}', mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    return info, data


HARMFUL = dict(
    up=(member('../../evil.json'), "'../../evil.json' is no file of an archive"),
    inside=(member('runs/../../evil/config.json'), 'is no file of an archive'),
    dots=(member('runs/../config.json'), "'runs/../config.json' is no file of an archive"),
    root=(member('/tmp/evil.json'), "'/tmp/evil.json' is no file of an archive"),
    back=(member('runs\\..\\config.json'), 'is no file of an archive'),
    other=(member('runs/a/state.safetensors'), "'runs/a/state.safetensors' is no file of an archive"),
    pickle=(member('networks/a.pkl'), "'networks/a.pkl' is no file of an archive"),
    hidden=(member('runs/a/.config.json'), "'runs/a/.config.json' is no file of an archive"),
    unplanned=(member('runs/a/config.json'), 'a is no network of profile tiny'),
    link=(member('runs/a/config.json', b'/etc/passwd', stat.S_IFLNK | 0o777), "'runs/a/config.json' is not a regular file"),
    bomb=(member('runs/a/config.json', b' ' * 10**7), 'has 10,000,000 bytes, more than 1,000,000'),
    twice=(member(CONFIG), f"'{CONFIG}' is in it twice"),
)


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', HARMFUL)
def test_a_zip_that_means_harm(name, made, tmp_path, refused):
    file, said = shutil.copyfile(made[1].path, tmp_path / 'bad.zip'), HARMFUL[name][1]
    with zipfile.ZipFile(file, 'a') as z: z.writestr(*HARMFUL[name][0])
    refused(file, said)
    assert not list(tmp_path.rglob('evil*'))


def test_a_zip_that_lies_of_its_sizes(made, tmp_path, refused):
    data = made[1].path.read_bytes()
    place = data.index(b'PK\x01\x02') + 24                       # of the first member in the list at the end: its size
    size = int.from_bytes(data[place:place + 4], 'little')
    (tmp_path / 'lie.zip').write_bytes(data[:place] + (size + 100).to_bytes(4, 'little') + data[place + 4:])
    refused(tmp_path / 'lie.zip', 'lie.zip: ')


def test_bounds_hold_for_all_files_together(made, refused, monkeypatch):
    monkeypatch.setattr(archive, 'FILES', 19)
    refused(made[1].path, 'it has 20 files, more than 19')
    monkeypatch.undo()
    monkeypatch.setattr(archive, 'TOTAL', 10_000)
    refused(made[1].path, 'bytes, more than 10,000')


@pytest.mark.parametrize('name', ['rows.jsonl', '.lock', 'runs/x.json', f'runs/{B}/weights.safetensors', 'notebooks/a.ipynb'])
def test_an_unknown_file_is_named(name, unpacked, refused):
    (unpacked / name).parent.mkdir(exist_ok=True)
    (unpacked / name).touch()
    refused(unpacked, repr(name), 'is no file of an archive')


@pytest.mark.parametrize('what', ['nothing', 'text'])
def test_what_is_no_archive_at_all(what, tmp_path, refused):
    if what == 'text': (tmp_path / what).write_text('hello')
    refused(tmp_path / what, dict(nothing='is not there', text='text: File is not a zip file')[what])


def test_an_archive_without_runs(tmp_path, refused):
    (tmp_path / 'folder').mkdir()
    refused(tmp_path / 'folder', 'holds no run')


def test_a_run_that_is_not_measured_is_neither_packed_nor_taken_for_the_one_of_the_archive(made, unpacked, build, gathering):
    (build / 'runs').mkdir(parents=True)
    shutil.copytree(made[0] / 'runs' / A, build / 'runs' / A)
    (build / 'runs' / A / 'final.jsonl').unlink()
    with pytest.raises(FileNotFoundError, match='the run is not finished'): write_archive(build, [A], build / 'a.zip')
    status, _, err = gathering(unpacked)
    assert status == 2 and 'trained and not measured' in err and not (build / 'runs' / B).exists()


def test_where_one_run_is_locked_none_is_placed(made, build):
    with directory_lock(build / 'runs' / sorted(NAMES)[-1]):
        with pytest.raises(RuntimeError, match='at work'): archive.gather(made[1].path, TINY, build)
    assert not any((build / 'runs' / name / 'config.json').exists() for name in NAMES)
