"""Damaged files, odd shapes, hostile text: an error in one line or the right result, and no code is run from data."""
import io
import json
import math
import os
import pickle
import random
import re
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat
from torch import nn

from counted import count
from nrf_repro.results import rows as results
from nrf_repro.training import loop as training
from nrf_repro.training import recipe as recipes
from nrf_repro.attacks import LOSSES, PERTURBATION_SETS, Attack, l2_norm, robust_correct
from nrf_repro.data import Images, decoding, load
from nrf_repro.data.images import CLASSES
from nrf_repro.features import NOISES, ligs
from nrf_repro.measure.inputs import _class_folders
from nrf_repro.models import ARCHS, CONTROLS, build_model, load_model, save_model
from nrf_repro.models.norms import NORMS, count_norms, make_norm, moments, normalize
from nrf_repro.results.rules import load_claims
from nrf_repro.results.intervals import t_interval, two_way, wilson
from nrf_repro.results.rows import FIELDS, REAL, SPARSE, WHOLE, make_row, read_rows, write_rows
from nrf_repro.training.loop import fit
from nrf_repro.training.recipe import RECIPES, SGD, Recipe
from nrf_repro.training.state import load_state, save_state
from nrf_repro.models.weights import read_weights

ROOT = Path(__file__).parent.parent
MUTANTS = 250      # damaged copies of each kind of file
EXAMPLES = 100     # examples of each property, cheap ones more
SENTENCES = (ValueError, TypeError, FileNotFoundError)
PHOTOS = np.random.RandomState(0).randint(0, 256, (6, 32, 32, 3), np.uint8)
LABELS = np.arange(6)


def examples(n=EXAMPLES):
    "Always the same ones, and none is stopped for being slow on a busy machine."
    return settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv('NRF_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('NRF_DATA', raising=False)


# ---------------------------------------------------------------- an ear for code that runs

HARM = {'os.system', 'subprocess.Popen', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.mkdir', 'os.remove', 'os.rename', 'os.chmod',
        'socket.connect', 'shutil.rmtree', 'webbrowser.open', 'exec'}
heard, listening = [], False


def hear(event, args):
    if listening and event in HARM: heard.append((event, repr(args)[:100]))


sys.addaudithook(hear)


@contextmanager
def silence():
    "Fails if something in here starts a process, opens a connection, runs code, or changes the disk."
    global listening
    heard.clear()
    listening = True
    try: yield
    finally: listening = False
    assert not heard, heard


def test_the_ear_hears(tmp_path):
    for harm in (lambda: os.system('true'), lambda: eval('1'), lambda: os.mkdir(tmp_path / 'a'), lambda: pickle.loads(pickle.dumps(Calls(os.mkdir, str(tmp_path / 'b'))))):
        with pytest.raises(AssertionError):
            with silence(): harm()


class Calls:
    "A pickle of this calls f(*args)."
    def __init__(self, f, *args): self.how = f, args
    def __reduce__(self): return self.how


# ---------------------------------------------------------------- files

def mutate(raw, rng):
    "A damaged copy: cut, with bytes changed, cut out, doubled, zeroed or swapped; often near its head, where the structure is."
    raw = bytearray(raw)
    def at(): return rng.randrange(min(len(raw), 400)) if rng.random() < .6 else rng.randrange(len(raw))
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not raw: break
        how, i, n = rng.randrange(7), at(), rng.choice((1, 1, 4, 50))
        if how == 0: del raw[rng.randrange(len(raw)):]
        elif how == 1: raw[i] = rng.randrange(256)
        elif how == 2: raw[i] ^= 1 << rng.randrange(8)
        elif how == 3: del raw[i:i + n]
        elif how == 4: raw[i:i] = raw[i:i + n]
        elif how == 5: raw[i:i + n] = bytes(len(raw[i:i + n]))
        else: j = at(); raw[i:i + n], raw[j:j + n] = raw[j:j + n], raw[i:i + n]
    return bytes(raw)


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, 'PNG')
    return out.getvalue()


def parquet(folder):
    file = folder / 'test-00000-of-00001.parquet'
    names = json.dumps(dict(info=dict(features=dict(label=dict(names=CLASSES['cifar10'])))))
    table = pa.table(dict(img=[dict(bytes=png(im), path=None) for im in PHOTOS], label=LABELS, lossless=LABELS > 2))
    pq.write_table(table.replace_schema_metadata(dict(huggingface=names)), file)
    return file, lambda: load('cifar10', 'test', root=folder)


def pickled(folder):
    (folder / 'cifar-10-batches-py').mkdir()
    file = folder / 'cifar-10-batches-py/test_batch'
    flat = np.ascontiguousarray(PHOTOS.transpose(0, 3, 1, 2)).reshape(6, -1)
    file.write_bytes(pickle.dumps(dict(data=flat, labels=LABELS.tolist(), batch_label="testing batch 1 of 1"), 4))
    return file, lambda: load('cifar10', 'test', root=folder)


def matlab(folder):
    file = folder / 'test_32x32.mat'
    savemat(file, dict(X=PHOTOS.transpose(1, 2, 3, 0), y=(LABELS + 1)[:, None].astype(np.uint8)))
    return file, lambda: load('svhn', 'test', root=folder)


def medmnist(folder):
    file, x, y = folder / 'pneumoniamnist.npz', PHOTOS[:, :28, :28, 0], LABELS[:, None].astype(np.uint8) % 2
    np.savez(file, train_images=x, train_labels=y, test_images=x, test_labels=y)
    return file, lambda: load('pneumoniamnist', 'test', root=folder)


def picture(folder, kind='png'):
    for split in ('train', 'test'):
        (folder / 'pets' / split / 'cat').mkdir(parents=True)
        for i in range(2): Image.fromarray(PHOTOS[i]).save(folder / 'pets' / split / f'cat/{i}.{kind}')
    return folder / f'pets/test/cat/0.{kind}', lambda: load(folder / 'pets', 'test', size=32)


def own_picture(folder): return picture(folder, 'jpg')[0], lambda: _class_folders(folder / 'pets/test', size=32)


def weights(folder):
    save_model(build_model('vgg11', 'bn', in_channels=1, width=1/32, seed=0), folder / 'w.safetensors')
    return folder / 'w.safetensors', lambda: load_model(folder / 'w.safetensors')


def state(folder):
    file, model = folder / 'state.safetensors', build_model('vgg11', 'bn', in_channels=1, width=1/32, seed=0)
    opt = SGD(model, Recipe())
    model(torch.rand(2, 1, 32, 32)).sum().backward()
    opt.step(.1)
    save_state(file, model, opt, [dict(epoch=1, loss=1., seconds=1.)], 'key')
    def read():
        load_state(file, model, opt, 'key')
        model.train()(torch.rand(2, 1, 32, 32)).sum().backward()
        opt.step(.1)
    return file, read


def checkpoint(folder):
    torch.save(dict(state_dict={'a.weight': torch.rand(3, 2), 'a.bias': torch.rand(3)}), folder / 'w.pt')
    return folder / 'w.pt', lambda: read_weights(folder / 'w.pt')


def rows(folder):
    write_rows(folder / 'rows.jsonl', [make_row(experiment='final', metric='clean_accuracy', dataset='dîgits', arch='vgg11', norm='bn', seed=s, value=.5, n=40)
                                       for s in range(3)])
    return folder / 'rows.jsonl', lambda: read_rows(folder / 'rows.jsonl')


def claims(folder):
    (folder / 'claims.yaml').write_bytes((ROOT / 'reports/claims.yaml').read_bytes())
    return folder / 'claims.yaml', lambda: load_claims(folder / 'claims.yaml')


def profile(folder):
    from nrf_repro.experiment.profile import load_profile
    (folder / 'p.yaml').write_bytes((ROOT / 'reports/profiles/tiny.yaml').read_bytes())
    return folder / 'p.yaml', lambda: load_profile(str(folder / 'p.yaml'))


FILES = [parquet, pickled, matlab, medmnist, picture, own_picture, weights, state, checkpoint, rows, claims, profile]


def read_or_say(file, read):
    "True if it is read; False for an error in one line that names the file. Anything else is a fault."
    try:
        read()
        return True
    except SENTENCES as e:
        says = str(e)
        assert file.name in says and '\n' not in says and len(says) < 600, f'{type(e).__name__}: {says}'
        return False


@pytest.mark.parametrize('make', FILES, ids=lambda f: f.__name__)
def test_a_damaged_file_is_an_error_in_one_line(make, tmp_path, capsys):
    file, read = make(tmp_path)
    whole, rng, kept = file.read_bytes(), random.Random(make.__name__), 0
    assert read_or_say(file, read)
    for i in range(MUTANTS):
        file.write_bytes(raw := mutate(whole, rng))
        try: kept += read_or_say(file, read)
        except BaseException as e: raise AssertionError(f'mutant {i} of {len(raw)} bytes: {type(e).__name__}: {e}') from e
    assert kept < MUTANTS
    count('damaged files', make.__name__, mutants=MUTANTS, refused=MUTANTS - kept)


@pytest.mark.parametrize('make', [f for f in FILES if f not in (rows, claims, profile)], ids=lambda f: f.__name__)
def test_a_program_in_the_place_of_data_does_not_run(make, tmp_path):
    file, read = make(tmp_path)
    whole = file.read_bytes()
    for raw in (whole, b'junk'):      # what is imported on first use is imported now
        file.write_bytes(raw)
        read_or_say(file, read)
    harm = Calls(os.mkdir, str(tmp_path / 'harm'))
    programs = [pickle.dumps(harm, p) for p in range(6)] + [pickle.dumps({'data': harm, 'labels': harm, 'a': harm})]
    for kind, write in dict(npz=lambda f: np.savez(f, test_images=np.array([harm], object), test_labels=np.zeros(1, int)), pt=lambda f: torch.save(dict(a=harm), f),
                            npy=lambda f: np.save(f, np.array([harm], object), allow_pickle=True)).items():
        write(f := tmp_path / f'program.{kind}')
        programs.append(f.read_bytes())
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(harm) (w) file closefile\n'  # Pillow hands it to Ghostscript
    programs += [eps, b'#!/bin/sh\nmkdir harm\n', b'\x7fELF' + bytes(100)]
    for raw in programs:
        file.write_bytes(raw)
        with silence(): assert not read_or_say(file, read)
    assert not (tmp_path / 'harm').exists()
    count('programs in the place of data', make.__name__, programs=len(programs), run=0)


def test_arrays_that_point_into_memory_are_not_made(tmp_path):
    file, read = pickled(tmp_path)
    class Points:
        def __reduce__(self): return np.ndarray, ((1,), 'O', b'A' * 8)  # NumPy would take the bytes for an address
    class State:
        def __reduce__(self): return np.dtype, ('O', False, True), (3, '|', None, None, None, -1, -1, 0)  # without the flags of objects
    for data in (Points(), [Points()], State(), dict(a=State())):
        file.write_bytes(pickle.dumps(dict(data=data, labels=[0])))
        assert not read_or_say(file, read)


@pytest.mark.parametrize('member', ['../out', '/out', 'a/../../out', 'link'])
def test_an_archive_with_paths_outside_writes_nothing_outside(member, tmp_path, monkeypatch):
    from torchvision.datasets import utils
    root, out = tmp_path / 'root', tmp_path / 'out'
    def fetch(url, root, filename, md5):
        with tarfile.open(Path(root, filename), 'w:gz') as archive:
            if member == 'link':
                link = tarfile.TarInfo('folder')
                link.type, link.linkname = tarfile.SYMTYPE, '..'
                archive.addfile(link)
            entry = tarfile.TarInfo('folder/out' if member == 'link' else str(out) if member == '/out' else member)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b'harm'))
    monkeypatch.setattr(utils, 'download_url', fetch)
    with pytest.raises(FileNotFoundError, match='could not be downloaded|not in what was downloaded'): load('cifar10', 'test', root=root)
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ['root']


def test_a_checksum_guards_what_is_fetched(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10, SVHN, utils
    monkeypatch.setattr(utils, '_get_redirect_url', lambda url, **k: url)
    monkeypatch.setattr(utils, '_urlretrieve', lambda url, file, *a, **k: Path(file).write_bytes(b'another file'))
    for name in ('cifar10', 'svhn'):
        with pytest.raises(FileNotFoundError, match='could not be downloaded .RuntimeError: File not found or corrupted'): load(name, 'test', root=tmp_path / name)


def test_files_that_unpack_to_more_than_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, 'LARGEST', 2**20)
    file, read = medmnist(tmp_path)
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as z:
        for name in ('test_images', 'test_labels'):
            with z.open(f'{name}.npy', 'w', force_zip64=True) as f:
                np.lib.format.write_array_header_1_0(f, dict(descr='|u1', fortran_order=False, shape=(3 * 2**10, 28, 28)))
                f.write(bytes(3 * 2**10 * 28 * 28))
    assert file.stat().st_size < 2**15 and not read_or_say(file, read)
    save_file(dict(a=torch.zeros(1)), tmp_path / 'w.safetensors', dict(config=json.dumps(dict(
        arch='vgg11', norm='bn', num_classes=10**12, in_channels=1, width=1/32, mean=[0], std=[1], stem='cifar'))))
    with pytest.raises(ValueError, match='w.safetensors is not a valid checkpoint'): load_model(tmp_path / 'w.safetensors')


def test_a_changed_cache_is_made_anew(tmp_path):
    file, read = parquet(tmp_path)
    right = read().fingerprint
    kept, = (tmp_path / 'cache').iterdir()
    whole, rng = kept.read_bytes(), random.Random(0)
    for _ in range(MUTANTS):
        kept.write_bytes(mutate(whole, rng))
        assert read().fingerprint == right and kept.read_bytes() == whole
    count('damaged files', 'cache', mutants=MUTANTS, refused=MUTANTS)


# ---------------------------------------------------------------- settings

def swap(node, rng):
    "A profile with one value replaced, taken away, renamed or added, wherever it stands."
    spots = []
    def walk(at):
        for key in (at if isinstance(at, dict) else range(len(at))):
            spots.append((at, key))
            if isinstance(at[key], (dict, list)): walk(at[key])
    walk(node)
    at, key = rng.choice(spots)
    odd = rng.choice([None, -1, 0, 1e400, math.nan, '', 'x', '1e-3', True, [], {}, [[]], {'x': 1}, 10**30, 2001, 'bn', [None], {'a': {'b': 'c'}}])
    how = rng.randrange(4)
    if how == 0 and isinstance(at, dict): del at[key]
    elif how == 1 and isinstance(at, dict): at[f'{key}x'] = at.pop(key)
    elif how == 2 and isinstance(at, dict): at[rng.choice(['x', 1, None])] = odd
    else: at[key] = odd
    return node


def test_a_changed_profile_is_right_or_is_named_with_its_line(tmp_path):
    import yaml
    from nrf_repro.experiment.plan import jobs, plan, plan_table
    from nrf_repro.experiment.profile import PARTS, load_profile
    text, rng, refused, n = (ROOT / 'reports/profiles/tiny.yaml').read_text(), random.Random(1), 0, MUTANTS
    file = tmp_path / 'mine.yaml'
    for _ in range(n):
        file.write_text(yaml.safe_dump(swap(yaml.safe_load(text), rng), sort_keys=False))
        try:
            profile = load_profile(str(file))
            for specs in jobs(profile, PARTS).values(): assert specs
            plan_table(profile, PARTS)
            for spec in plan(profile, PARTS): assert spec.recipe
        except ValueError as e:
            refused += 1
            assert re.match(r'mine\.yaml line \d+[:,]|Unknown recipe', str(e)) and '\n' not in str(e), str(e)
    assert n / 2 < refused < n
    count('damaged files', 'profile, one setting changed', mutants=n, refused=refused)



# ---------------------------------------------------------------- properties

def noted(name, n=EXAMPLES):
    "A property over n examples, always the same ones."
    def wrap(test):
        count('properties', name, examples=n)
        return examples(n)(test)
    return wrap


floats = st.sampled_from([torch.float32, torch.float64])
sizes = st.integers(1, 5)


@noted('norms: shape, dtype, groups', 300)
@given(norm=st.sampled_from(NORMS), n=sizes, c=st.integers(1, 12), h=sizes, w=sizes, groups=st.integers(-2, 14), dtype=floats, scale=st.sampled_from([1e-3, 1., 1e3]))
def test_a_norm_divides_its_groups_or_raises(norm, n, c, h, w, groups, dtype, scale):
    x = torch.randn(n, c, h, w, dtype=dtype, generator=torch.Generator().manual_seed(c)) * scale + scale
    fits = norm != 'gn' or groups >= 1 and c % groups == 0
    if not fits:
        for f in (lambda: make_norm(norm, c, groups), lambda: normalize(x, norm, groups)):
            with pytest.raises(ValueError, match=f'groups={groups}'): f()
        return
    out = normalize(x, norm, groups)
    assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()
    if norm == 'none': return
    layer = make_norm(norm, c, groups).to(dtype).train()
    pixels = h * w * {'bn': n, 'in': 1, 'ln': c, 'gn': c // max(groups, 1)}[norm]
    if pixels > 1: torch.testing.assert_close(layer(x), out, rtol=1e-3, atol=1e-3)   # torch refuses a single value, or passes it on
    mu, var = moments(out, norm, groups)
    assert mu.abs().max() < 1e-2 and var.max() < 1.01


@noted('networks: arch, norm, width, channels, size, batch', 60)
@given(arch=st.sampled_from(ARCHS), norm=st.sampled_from(NORMS), width=st.sampled_from([1/32, 1/16, 1/20, 0., -1/8, 3/32]), channels=st.integers(1, 4),
       k=st.integers(2, 12), size=st.sampled_from([8, 16, 28, 32]), n=st.integers(1, 3))
def test_a_network_of_any_size_gives_logits_or_an_error_in_one_line(arch, norm, width, channels, k, size, n):
    if arch in CONTROLS and norm != 'none':
        with pytest.raises(ValueError, match='is a control without normalisation'): build_model(arch, norm, width=width)
        return
    if (32 * width) % 1 or width <= 0:
        with pytest.raises(ValueError, match='multiple of 1/32'): build_model(arch, norm, width=width)
        return
    model = build_model(arch, norm, num_classes=k, in_channels=channels, width=width, seed=0).eval()
    z = model(torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)))
    assert z.shape == (n, k) and z.isfinite().all() and set(count_norms(model)) <= ({'ln', 'gn', 'in'} if norm == 'gn' else {norm} - {'none'})


def small_net(channels, k, dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(k)).to(dtype)


images = st.tuples(st.integers(0, 7), st.integers(1, 3), st.integers(1, 6), st.integers(2, 4), floats)  # n c h k dtype


def pixels(n, c, h, k, dtype):
    g = torch.Generator().manual_seed(n + 10 * h)
    x = (torch.rand(n, c, h, h, generator=g, dtype=dtype) * 1.4 - .2).clamp(0, 1)
    net = small_net(c, k, dtype)
    net(x if n > 1 else torch.rand(2, c, h, h, dtype=dtype))     # materialises, and gives BN statistics
    return net.eval(), x, torch.randint(k, (n,), generator=g)


@noted('attacks: ball, eps, steps, step size, shape, dtype', 150)
@given(shape=images, ball=st.sampled_from([*PERTURBATION_SETS]), loss=st.sampled_from([*LOSSES]), eps=st.sampled_from([0., 1e-6, 1/255, .3, 2., 50.]), steps=st.integers(1, 4),
       step=st.sampled_from([1e-4, .1, 5.]), start=st.booleans(), targeted=st.booleans())
def test_an_attack_stays_in_its_ball_and_in_the_picture(shape, ball, loss, eps, steps, step, start, targeted):
    net, x, y = pixels(*shape)
    adv = Attack(ball, eps, loss, steps, step, random_start=start, targeted=targeted)(net, x, y)
    assert adv.shape == x.shape and adv.dtype == x.dtype and not adv.requires_grad
    if not len(x): return
    size = l2_norm(adv - x).max() if ball == 'l2' else (adv - x).abs().max()
    assert size <= eps * (1 + 1e-5) + 1e-6 and 0 <= adv.min() and adv.max() <= 1


@noted('robust accuracy: batch sizes that do not divide, criteria', 80)
@given(shape=images, bs=st.integers(1, 9), ball=st.sampled_from([*PERTURBATION_SETS]), loss=st.sampled_from([*LOSSES]), eps=st.sampled_from([0., .05, .5]), restarts=st.integers(1, 2))
def test_batches_do_not_matter_and_any_step_is_no_weaker_than_the_last(shape, bs, ball, loss, eps, restarts):
    net, x, y = pixels(*shape)
    attack = Attack(ball, eps, loss, 3, max(eps / 2, 1e-3), random_start=restarts > 1, restarts=restarts)
    whole, parts, last = (robust_correct(net, x, y, attack, **how) for how in (dict(), dict(batch_size=bs), dict(criterion='last_step', batch_size=bs)))
    assert torch.equal(whole, parts) and len(whole) == len(x) and not (whole & ~last).any()
    if len(x): assert not (whole & ~(net(x).argmax(1) == y)).any()


@noted('LIGS: sigma, draws, noise, batch sizes', 60)
@given(shape=images, bs=st.integers(1, 9), sigma=st.sampled_from([1e-6, .01, 1., 100.]), draws=st.integers(1, 3), noise=st.sampled_from([*NOISES]), stable=st.booleans())
def test_ligs_is_a_cosine_however_it_is_batched(shape, bs, sigma, draws, noise, stable):
    net, x, y = pixels(*shape)
    seen, again = (ligs(net, x, y, sigma=sigma, draws=draws, noise=noise, stable=stable, batch_size=b) for b in (256, bs))
    assert seen.shape == y.shape and seen.dtype == torch.float64
    torch.testing.assert_close(seen, again, atol=1e-3, rtol=0, equal_nan=True)
    assert ((seen >= -1) & (seen <= 1) | seen.isnan()).all()


def toy(n, k=3): return Images(torch.arange(n * 64, dtype=torch.int64).remainder(251).to(torch.uint8).view(n, 1, 8, 8), torch.arange(n) % k, tuple('abc'), (.5,), (.2,), 'toy', 'train')


@noted('recipes: batch sizes that do not divide, lr, schedule, augmentation', 80)
@given(n=st.integers(1, 9), bs=st.integers(-1, 12), epochs=st.integers(-1, 2), lr=st.sampled_from([-1., 0., 1e-3, .1]), schedule=st.sampled_from(['multistep', 'onecycle', 'step']),
       how=st.sampled_from([*recipes.AUGMENTS, 'mixup']), last=st.booleans())
def test_a_recipe_trains_or_says_what_is_wrong(n, bs, epochs, lr, schedule, how, last):
    recipe = Recipe(epochs=epochs, batch_size=bs, lr=lr, schedule=schedule, augment=how, channels_last=last, seed=0)
    torch.manual_seed(0)
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), []
    def loss(model, x, y): seen.append(len(x)); return training.cross_entropy(model, x, y)
    if bs < 1 or epochs < 1 or lr <= 0 or schedule == 'step' or how == 'mixup':
        with pytest.raises(ValueError) as e: fit(model, toy(n), recipe, loss=loss, progress=False)
        assert '\n' not in str(e.value) and not seen
        return
    history = fit(model, toy(n), recipe, loss=loss, progress=False)
    assert len(history) == epochs and history.loss.notna().all() and seen == [min(bs, n)] * (n // min(bs, n)) * epochs


@noted('images: dtype, shape, labels', 150)
@given(dtype=st.sampled_from([torch.uint8, torch.int64, torch.float32]), shape=st.lists(st.integers(0, 3), min_size=1, max_size=5),
       labels=st.lists(st.integers(-2, 4), max_size=4), channels=st.integers(0, 3))
def test_images_are_whole_or_refused(dtype, shape, labels, channels):
    make = lambda: Images(torch.zeros(shape, dtype=dtype), torch.tensor(labels, dtype=torch.int64), ('a', 'b'), (.5,) * channels, (.5,) * channels, 'x', 'train')
    right = dtype == torch.uint8 and len(shape) == 4 and shape[0] == len(labels) and set(labels) <= {0, 1} and channels == shape[1]
    if right: assert len(make()) == len(labels) and len(make().fingerprint) == 12
    else:
        with pytest.raises((ValueError, TypeError)): make()


words = st.text(max_size=12) | st.sampled_from(['\u2028', '\x85', '\ud800', '</script>', '"', '\x00', 'ß', '\n', '👻', '1e400'])
odd = st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats() | words | st.lists(st.integers(), max_size=2) | st.dictionaries(words, st.integers(), max_size=1)


@noted('rows: any value in any field', 300)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), odd, max_size=6))
def test_a_row_comes_back_as_it_was_or_is_refused(fields):
    fields = dict(experiment='final', metric='x', value=.5) | fields
    try: row = make_row(**fields)
    except (ValueError, TypeError) as e:
        assert '\n' not in str(e) and len(str(e)) < 600
        return
    assert all(type(row[f]) in ((int, type(None)) if f in WHOLE else (float, type(None)) if f in REAL else (str, type(None))) for f in FIELDS)
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        first = write_rows(Path(d, 'rows.jsonl'), [row]).read_bytes()
        back = read_rows(Path(d, 'rows.jsonl'))
        assert len(back) == 1 and write_rows(Path(d, 'again.jsonl'), back).read_bytes() == first
        assert {f: None for f in SPARSE} | json.loads(first) == row


@noted('intervals: Wilson, t, two-way', 150)
@given(k=st.integers(0, 500), more=st.integers(0, 500), values=st.lists(st.floats(-1e6, 1e6), max_size=6), seeds=st.integers(2, 6), n=st.integers(1, 1000))
def test_an_interval_holds_its_mean_and_is_narrower_for_more(k, more, values, seeds, n):
    if k + more:
        iv = wilson(k, k + more)
        assert 0 <= iv.low <= iv.mean <= iv.high <= 1
        double = wilson(2 * k, 2 * (k + more))
        assert double.high - double.low < iv.high - iv.low
    iv = t_interval(values)
    if len(values) > 1: assert iv.low <= iv.mean + 1e-6 * (1 + abs(iv.mean)) and iv.mean <= iv.high + 1e-6 * (1 + abs(iv.mean)) and iv.n == len(values)
    else: assert math.isnan(iv.low)
    right = np.random.default_rng(n).random((seeds, n + 1)) < np.linspace(0, 1, seeds)[:, None]
    iv = two_way([right])
    assert iv.mean == pytest.approx(right.mean()) and iv.low < iv.mean < iv.high and (iv.seeds, iv.images) == ((seeds,), n + 1)
    again = two_way([right, right], ['one', 'other'])
    assert again.mean == pytest.approx(iv.mean) and again.high - again.low <= iv.high - iv.low + 1e-12


# ---------------------------------------------------------------- pages

class Tags(HTMLParser):
    "Every element and attribute of a page."
    def __init__(self, html):
        super().__init__()
        self.seen = set()
        self.feed(html)
    def handle_starttag(self, tag, attrs): self.seen |= {(tag, None), *((tag, name) for name, _ in attrs), *(('href', v.split(':')[0]) for n, v in attrs if n in ('href', 'src') and v)}


EVIL = ['<b onclick=alert(1)>', '"><evil x="', "' onload='evil()", '</script><evil>', '</style><evil>', '<!--', ']]><evil>', '&lt;evil&gt;', '{{ 7*7 }}', '{% evil %}',
        'javascript:evil()', '\u2028</svg><evil>', '</title><evil>', '</textarea><evil>', '<svg/onload=evil()>', 'a\x00b<evil>']


def test_text_stays_text_on_every_page(tmp_path):
    "Four reports, each with several hostile words in every text."
    from nrf_repro.report import rendering as report
    from nrf_repro.results.rows import frame
    from made_up import made_up_rows
    claims, groups = load_claims(), [EVIL[k::4] for k in range(4)]
    def page(words, name):
        word = ' '.join(words)
        rows = frame(made_up_rows(['none', 'bn'], seeds=(0, 1), dataset=word, arch=word, regime='standard'))
        rows = rows.assign(device=word, torch=word, git_commit=word, source_hash=word, config_hash=word)
        meta = dict(about=word, machine=word, missing=[word], data=[dict(name=word, note=word, fingerprint=word)])
        return report.render_report(rows, claims, tmp_path / name, profile='made-up', **meta).read_text()
    plain = Tags(page(['plain'], 'a.html')).seen
    for words in groups:
        html = page(words, 'b.html')
        assert Tags(html).seen == plain, words
        for word in words: assert escape(word.split()[0], quote=False)[:4] in html
    count('pages', 'hostile words in every text of the report', words=len(EVIL))
