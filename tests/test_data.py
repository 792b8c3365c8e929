"""`nrf_repro.data`: unchanged pixels, errors that name file and fix, and no code executed from a file."""
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from nrf_repro.data import Images, balanced, channel_stats, class_images, decoding, is_here, load, loading, patterns, reliance, synthetic, testbed
from nrf_repro.data.decoding import cache_folder, cached
from nrf_repro.data.loading import _class_names, _decode_file
from nrf_repro.data.images import CLASSES, STATS
from nrf_repro.data import decoding
from nrf_repro.data.decoding import NumpyUnpickler

testbed.__test__ = False  # a function of the package, not a test
SHARED = Path(os.environ.get('NRF_DATA') or Path(__file__).parents[2] / 'shared' / 'data')
PHOTOS = np.random.RandomState(0).randint(0, 256, (20, 32, 32, 3), np.uint8)
LABELS = np.arange(20) % 10
NAMES = CLASSES['cifar10']


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    "Tests do not use the user's cache or data, and a warning printed in one test is printed again in the next."
    monkeypatch.setenv('NRF_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('NRF_DATA', raising=False)
    decoding.warn_once.cache_clear()


@pytest.fixture
def no_network(monkeypatch):
    def fail(split, root): raise OSError('\nthe network is unreachable\n1. check it')
    for name in loading.DOWNLOADS: monkeypatch.setitem(loading.DOWNLOADS, name, fail)


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, 'PNG')
    return out.getvalue()


def write_parquet(file, images=PHOTOS, labels=LABELS, img='img', names=None, **more):
    rows = [dict(bytes=im if isinstance(im, bytes) or im is None else png(im), path=None) for im in images]
    table = pa.table({img: rows, 'label': labels, **more})
    if names: table = table.replace_schema_metadata(
        {'huggingface': json.dumps(dict(info=dict(features=dict(label=dict(names=names)))))})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def batch(images=PHOTOS, labels=LABELS, says='testing batch 1 of 1'):
    flat = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    return dict(data=flat, labels=[int(y) for y in labels], batch_label=says)


def same(images, photos=PHOTOS, labels=LABELS):
    return (torch.equal(images.x, torch.tensor(photos.copy()).permute(0, 3, 1, 2)) and images.y.tolist() == list(labels)
            and images.y.dtype == torch.int64)


# ---------------------------------------------------------------- images

def some(n=6, k=3):
    return Images(torch.arange(n * 16, dtype=torch.uint8).view(n, 1, 4, 4), torch.arange(n) % k, tuple('abc'[:k]),
                  (.5,), (.2,), 'toy', 'train', torch.arange(n) != 2)


@pytest.mark.parametrize('change, error', [
    (dict(x=torch.zeros(6, 1, 4, 4)), TypeError), (dict(x=torch.zeros(6, 4, 4, dtype=torch.uint8)), TypeError),
    (dict(y=torch.zeros(5, dtype=torch.int64)), TypeError), (dict(y=torch.zeros(6)), TypeError),
    (dict(y=torch.full((6,), 3)), ValueError), (dict(y=torch.full((6,), -1)), ValueError), (dict(std=(.2, .2)), ValueError)])
def test_inconsistent_images_raise(change, error):
    with pytest.raises(error): replace(some(), **change)


@pytest.mark.parametrize('idx', [slice(1, 4), [4, 0], torch.tensor([1, 1]), torch.arange(6) > 2, np.array([5, 3]), 2])
def test_indexing_keeps_pixels_labels_and_lossless_together(idx):
    part, at = some()[idx], torch.arange(6)[idx].reshape(-1)
    assert torch.equal(part.x, some().x[at]) and torch.equal(part.y, some().y[at])
    assert torch.equal(part.lossless, some().lossless[at])


def test_repr_of_images():
    assert repr(some()) == 'Images(toy train: 6 of (1, 4, 4), 3 classes)'


def test_pixels_are_exact_fractions_of_255():
    all_levels = replace(some(16), x=torch.arange(256, dtype=torch.uint8).view(16, 1, 4, 4))
    assert torch.equal(all_levels.pixels(dtype=torch.float64).flatten() * 255, torch.arange(256, dtype=torch.float64))
    assert all_levels.pixels().dtype == torch.float32 and all_levels.x.dtype == torch.uint8


def test_fingerprint_sees_pixels_labels_order_and_shape():
    a = some()
    others = [a[[1, 0, 2, 3, 4, 5]], replace(a, y=a.y.flip(0)), replace(a, x=a.x ^ 1), a[:5], replace(a, x=a.x.view(6, 1, 2, 8))]
    assert len({a.fingerprint, *[o.fingerprint for o in others]}) == 6
    assert a.fingerprint == replace(a, name='b', x=a.x.clone()).fingerprint and len(a.fingerprint) == 12


def test_channel_stats_are_those_of_all_pixels():
    x = torch.tensor(PHOTOS).permute(0, 3, 1, 2) // torch.tensor([1, 2, 3])[:, None, None]
    v = x.double() / 255
    np.testing.assert_allclose(channel_stats(x.to(torch.uint8)), [v.mean((0, 2, 3)), v.std((0, 2, 3), correction=0)])


# ---------------------------------------------------------------- digits, limits

def test_digits_are_the_same_bytes_everywhere():
    train, test = load('digits', 'train'), load('digits', 'test')
    assert (train.fingerprint, test.fingerprint) == ('32f27cdc0c64', '71e7f08d8db4')
    assert train.mean == test.mean and np.allclose([train.mean[0], train.std[0]], [.305196, .323539], atol=1e-6)


def test_digits_are_split_not_sampled():
    from sklearn.datasets import load_digits
    train, test = load('digits', 'train'), load('digits', 'test')
    assert (len(train), len(test)) == (1297, 500)
    assert torch.equal(train.y.bincount() + test.y.bincount(), torch.tensor(load_digits().target).bincount())
    both = {bytes(x.numpy()) for x in train.x} | {bytes(x.numpy()) for x in test.x}
    assert len(both) == len({bytes(i) for i in load_digits().images})  # every digit is in exactly one of them


@given(y=st.lists(st.integers(0, 3), min_size=1, max_size=60), n=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_part_is_balanced_nested_and_seeded(y, n, seed):
    n, part = min(n, len(y)), balanced(y, n, seed=seed)
    assert len(set(part)) == len(part) == n and (part == balanced(y, len(y), seed=seed)[:n]).all()
    have, took = np.bincount(y, minlength=4), np.bincount(np.asarray(y)[part], minlength=4)
    most = took.max()
    assert ((took >= most - 1) | (took == have)).all()  # a class is short only where it is used up


def test_limit_takes_exact_copies_first_and_moves_with_nothing_else(tmp_path):
    write_parquet(tmp_path / 'train-00000-of-00001.parquet', lossless=LABELS != np.arange(20))  # the first ten are not
    ten = load('cifar10', 'train', root=tmp_path, limit=10)
    assert ten.lossless.all() and sorted(ten.y.tolist()) == list(range(10))
    assert load('cifar10', 'train', root=tmp_path, limit=13).lossless.sum() == 10
    assert torch.equal(load('cifar10', 'train', root=tmp_path, limit=13).x[:10], ten.x)


@pytest.mark.parametrize('limit, error', [(0, ValueError), (-5, ValueError), (501, ValueError), (1.5, TypeError),
                                          ('10', TypeError), (True, TypeError)])
def test_bad_limits(limit, error):
    with pytest.raises(error, match='limit must'): load('digits', 'test', limit=limit)


# ---------------------------------------------------------------- requests

@pytest.mark.parametrize('name, split, more, error, says', [
    ('cifar', 'train', {}, ValueError, "unknown data set 'cifar': give one of digits, synthetic, cifar10"),
    ('/no/such/folder', 'train', {}, ValueError, 'unknown data set'), (None, 'train', {}, TypeError, 'name must be'),
    ('digits', 'val', {}, ValueError, "split must be 'train' or 'test', not 'val'"),
    ('digits', None, {}, ValueError, 'split must be'), ('digits', 'test', dict(size=64), ValueError, 'size= is for')])
def test_bad_requests(name, split, more, error, says):
    with pytest.raises(error, match=says): load(name, split, **more)


@pytest.mark.parametrize('name', ['cifar10', 'svhn', 'pneumoniamnist'])
def test_offline_error_names_folder_and_fix(name, tmp_path, no_network):
    with pytest.raises(FileNotFoundError) as e: load(name, 'train', root=tmp_path / 'empty')
    says = str(e.value)
    assert str(tmp_path / 'empty') in says and 'could not be downloaded (OSError: the network is unreachable)' in says
    assert 'NRF_DATA' in says and '\n' not in says


def test_root_falls_back_to_the_environment_then_to_data(tmp_path, monkeypatch, no_network):
    write_parquet(tmp_path / 'a' / 'cifar10' / 'test-00000-of-00001.parquet')
    write_parquet(tmp_path / 'b' / 'data' / 'cifar10' / 'test-00000-of-00001.parquet', 255 - PHOTOS)
    monkeypatch.chdir(tmp_path / 'b')
    assert same(load('cifar10', 'test'), 255 - PHOTOS)
    monkeypatch.setenv('NRF_DATA', str(tmp_path / 'a'))
    assert same(load('cifar10', 'test'))
    with pytest.raises(FileNotFoundError): load('cifar10', 'test', root=tmp_path / 'c')


def tar(file, members):
    "An archive of these members: name -> bytes, or a link to a name."
    with tarfile.open(file, 'w:gz') as archive:
        for name, what in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(what, str): entry.type, entry.linkname, what = tarfile.SYMTYPE, what, b''
            entry.size = len(what)
            archive.addfile(entry, io.BytesIO(what))


def test_download_uses_torchvision_with_checksum(tmp_path, monkeypatch):
    from torchvision.datasets import utils
    calls = []

    def fetch(url, root, filename, md5):
        calls.append((url, filename, md5))
        if filename.endswith('.tar.gz'): return tar(Path(root) / filename, {'cifar-10-batches-py/test_batch': pickle.dumps(batch())})
        savemat(Path(root) / filename, dict(X=PHOTOS.transpose(1, 2, 3, 0), y=np.where(LABELS, LABELS, 10)[:, None]))

    monkeypatch.setattr(utils, 'download_url', fetch)
    assert same(load('cifar10', 'test', root=tmp_path / 'new'))
    assert same(load('svhn', 'test', root=tmp_path / 'new'))
    assert all(url.startswith('http') and len(md5) == 32 for url, _, md5 in calls) and len(calls) == 2


# ---------------------------------------------------------------- Parquet

@pytest.mark.parametrize('folder', ['.', 'cifar10', 'cifar10/plain_text'])
def test_parquet_as_on_the_hub(folder, tmp_path):
    half = PHOTOS[:10], PHOTOS[10:]
    for i, part in enumerate(half):
        write_parquet(tmp_path / folder / f'train-{i:05}-of-00002.parquet', part, LABELS[:10], names=NAMES)
    images = load('cifar10', 'train', root=tmp_path)
    assert same(images) and images.lossless is None and images.classes == tuple(NAMES)
    assert images.mean == (.4914, .4822, .4465) and images.std == (.2023, .1994, .2010)


@pytest.mark.parametrize('make, error, says', [
    (lambda f: write_parquet(f, [*PHOTOS[:7], b'no image'], LABELS[:8]), ValueError, 'train-.*parquet, row 7: not a readable'),
    (lambda f: write_parquet(f, [*PHOTOS[:7], png(PHOTOS[7])[:60]], LABELS[:8]), ValueError, 'row 7: not a readable'),
    (lambda f: write_parquet(f, [*PHOTOS[:7], None], LABELS[:8]), ValueError, 'row 7: not a readable'),
    (lambda f: write_parquet(f, [*PHOTOS[:7], PHOTOS[7, :16]], LABELS[:8]), ValueError, 'row 7: shape'),
    (lambda f: write_parquet(f, PHOTOS[:, :16, :16]), ValueError, 'must be 32x32'),
    (lambda f: write_parquet(f, labels=LABELS + 1), ValueError, 'row 9: label 10 is outside 0..9'),
    (lambda f: write_parquet(f, labels=[None, *LABELS[1:]]), ValueError, 'labels must be whole numbers'),
    (lambda f: write_parquet(f, labels=[str(i) for i in LABELS]), ValueError, 'labels must be whole numbers'),
    (lambda f: write_parquet(f, img='picture'), ValueError, 'needs the columns img'),
    (lambda f: write_parquet(f, names=sorted(NAMES, reverse=True)), ValueError, 'its classes are truck'),
    (lambda f: f.write_bytes(write_parquet(f).read_bytes()[:-100]), ValueError, 'not a complete Parquet file'),
    (lambda f: f.write_bytes(b''), ValueError, 'not a complete Parquet file'),
    (lambda f: write_parquet(f).rename(f.with_name('train-00001-of-00003.parquet')), FileNotFoundError, '1 of 3 train files')])
def test_damaged_parquet(make, error, says, tmp_path):
    make(tmp_path / 'train-00000-of-00001.parquet')
    with pytest.raises(error, match=says) as e: load('cifar10', 'train', root=tmp_path)
    assert str(tmp_path) in str(e.value) and '\n' not in str(e.value)
    assert not list((tmp_path / 'cache').glob('*'))  # nothing of it is kept


def test_parquet_of_cifar10_is_not_read_as_svhn(tmp_path, no_network):
    write_parquet(tmp_path / 'test-00000-of-00001.parquet')
    with pytest.raises(FileNotFoundError): load('svhn', 'test', root=tmp_path)
    write_parquet(tmp_path / 'svhn' / 'test-00000-of-00001.parquet', img='image', names=list('0123456789'))
    assert same(load('svhn', 'test', root=tmp_path))


# ---------------------------------------------------------------- pickles

class Python2Pickler(pickle._Pickler):
    "Writes str and bytes as Python 2's str, which is how CIFAR-10's batches were written in 2009."
    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, obj):
        raw = obj.encode('latin1') if isinstance(obj, str) else obj
        self.write(b'T' + struct.pack('<i', len(raw)) + raw)
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_str


def python2_pickle(obj):
    out = io.BytesIO()
    Python2Pickler(out, 2).dump(obj)
    return out.getvalue().replace(b'numpy._core.', b'numpy.core.')


def pickles(folder, dump=pickle.dumps, n=5):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n): (folder / f'data_batch_{i + 1}').write_bytes(
        dump(batch(PHOTOS[4 * i:4 * i + 4], LABELS[4 * i:4 * i + 4], f'training batch {i + 1} of 5')))
    (folder / 'test_batch').write_bytes(dump(batch()))
    return folder


@pytest.mark.parametrize('dump', [python2_pickle, *[lambda o, p=p: pickle.dumps(o, p) for p in (3, 4, 5)]],
                         ids=['python 2', 'protocol 3', 'protocol 4', 'protocol 5'])
def test_cifar10_pickles(dump, tmp_path):
    pickles(tmp_path / 'cifar-10-batches-py', dump)
    assert same(load('cifar10', 'train', root=tmp_path)) and same(load('cifar10', 'test', root=tmp_path))


class Calls:
    "A pickle of this calls f(*args)."
    def __init__(self, f, *args): self.how = f, args
    def __reduce__(self): return self.how


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('where', ['whole', 'data', 'labels', 'beside'])
def test_a_pickle_executes_nothing(protocol, where, tmp_path):
    folder, harm = pickles(tmp_path / 'cifar-10-batches-py'), Calls(os.mkdir, str(tmp_path / 'harm'))
    bad = harm if where == 'whole' else {**batch(), where: harm}
    raw = pickle.dumps(bad, protocol)
    with pytest.raises(FileExistsError):  # it is harmful: pickle itself makes the folder (twice)
        pickle.loads(raw), pickle.loads(raw)
    (tmp_path / 'harm').rmdir()
    (folder / 'test_batch').write_bytes(raw)
    with pytest.raises(ValueError, match='test_batch: not a batch of CIFAR-10 .it names'): load('cifar10', 'test', root=tmp_path)
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('module, name', [('builtins', 'eval'), ('numpy', 'load'), ('numpy', 'memmap'), ('_codecs', 'encode'),
                                          ('numpy.core.multiarray', 'fromfile'), ('numpy', 'ndarray.tofile'), ('antigravity', 'fly')])
def test_names_outside_the_list_are_refused_before_import(module, name):
    raw = b'\x80\x04' + b''.join(b'\x8c' + bytes([len(s)]) + s.encode() for s in (module, name)) + b'\x93.'
    with pytest.raises(pickle.UnpicklingError, match='which no data file needs'): NumpyUnpickler(io.BytesIO(raw)).load()
    assert 'antigravity' not in sys.modules


def test_a_pickle_changes_no_function_of_the_reader():
    raw = b'\x80\x04cnumpy.core.numeric\n_frombuffer\n}\x8c\x05extraK\x01sb.'      # sets an attribute of what the name stands for
    found = NumpyUnpickler(io.BytesIO(raw)).load()
    assert found.extra == 1 and not hasattr(decoding._from_buffer, 'extra')


@pytest.mark.parametrize('raw, says', [
    (pickle.dumps(batch(says='training batch 3 of 5')), 'its label is "training batch 3 of 5"'),
    (pickle.dumps(batch(labels=LABELS[:-1])), '20 images but labels'), (pickle.dumps(batch(labels=LABELS + 5)), 'row 5: label 10'),
    (pickle.dumps(batch() | dict(data=np.zeros((20, 100), np.uint8))), 'must be uint8, n x 3072'),
    (pickle.dumps(batch() | dict(data=np.zeros((20, 3072)))), 'must be uint8'), (pickle.dumps([1, 2]), 'not a batch'),
    (pickle.dumps({}), 'not a batch'), (pickle.dumps(batch())[:9000], 'not a batch'), (b'', 'not a batch')])
def test_damaged_pickles(raw, says, tmp_path):
    (pickles(tmp_path / 'cifar-10-batches-py') / 'test_batch').write_bytes(raw)
    with pytest.raises(ValueError, match=says) as e: load('cifar10', 'test', root=tmp_path)
    assert 'test_batch' in str(e.value) and '\n' not in str(e.value)


def test_a_missing_batch(tmp_path):
    (pickles(tmp_path / 'cifar-10-batches-py') / 'data_batch_2').unlink()
    with pytest.raises(FileNotFoundError, match='4 of 5 train batches'): load('cifar10', 'train', root=tmp_path)


# ---------------------------------------------------------------- MATLAB, npz

def test_a_number_of_images_other_than_published_is_reported_once(tmp_path, capsys):
    pickles(tmp_path / 'cifar-10-batches-py')
    for _ in range(2): load('cifar10', 'test', root=tmp_path)
    assert capsys.readouterr().err == 'cifar10 (test): 20 images here, 10,000 as published.\n'  # once


def test_svhn(tmp_path):
    X, y = PHOTOS.transpose(1, 2, 3, 0), np.where(LABELS, LABELS, 10)[:, None]
    file = tmp_path / 'svhn' / 'train_32x32.mat'
    file.parent.mkdir()
    savemat(file, dict(X=X, y=y.astype(np.uint8)))
    images = load('svhn', 'train', root=tmp_path)
    assert same(images) and images.mean == (0, 0, 0) and images.std == (1, 1, 1) and images.classes[0] == '0'
    for bad, says in ((dict(X=X, y=y % 10), 'labels 0'), (dict(X=X, y=y + 1), 'label 11'), (dict(X=X), 'needs X'),
                      (dict(X=X.astype(float), y=y), 'needs X'), (dict(X=X, y=y[1:]), '20 images but labels')):
        savemat(file, bad)
        with pytest.raises(ValueError, match=says): load('svhn', 'train', root=tmp_path)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match='not a complete MATLAB file'): load('svhn', 'train', root=tmp_path)


def write_npz(file, **more):
    x, y = PHOTOS[:, :28, :28, 0], (LABELS % 2)[:, None].astype(np.uint8)
    np.savez(file, **dict(train_images=x, train_labels=y, test_images=255 - x, test_labels=1 - y) | more)


def test_pneumoniamnist_is_padded_and_scaled_by_the_training_split(tmp_path):
    write_npz(tmp_path / 'pneumoniamnist.npz')
    train, test = (load('pneumoniamnist', s, root=tmp_path) for s in ('train', 'test'))
    assert torch.equal(train.x[:, 0, 2:-2, 2:-2], torch.tensor(PHOTOS[:, :28, :28, 0])) and train.x[..., :2].sum() == 0
    assert test.y.tolist() == (1 - LABELS % 2).tolist() and test.mean == train.mean == channel_stats(train.x)[0]


@pytest.mark.parametrize('change, says', [
    (dict(test_images=np.array([None] * 20)), 'not a complete MedMNIST'), (dict(test_labels=np.full((20, 1), 2)), 'label 2'),
    (dict(test_images=PHOTOS[..., 0]), 'must be uint8, n x 28 x 28'), (dict(test_labels=np.zeros((19, 1), int)), '20 images but')])
def test_damaged_npz(change, says, tmp_path):
    write_npz(tmp_path / 'pneumoniamnist.npz', **change)
    with pytest.raises(ValueError, match=says): load('pneumoniamnist', 'test', root=tmp_path)


def test_truncated_npz(tmp_path):
    write_npz(tmp_path / 'pneumoniamnist.npz')
    raw = (tmp_path / 'pneumoniamnist.npz').read_bytes()
    (tmp_path / 'pneumoniamnist.npz').write_bytes(raw[:2000])
    with pytest.raises(ValueError, match='pneumoniamnist.npz: not a complete MedMNIST file'): load('pneumoniamnist', 'test', root=tmp_path)


# ---------------------------------------------------------------- cache

@pytest.fixture
def hub(tmp_path):
    write_parquet(tmp_path / 'hub' / 'test-00000-of-00001.parquet', lossless=LABELS > 3)
    return tmp_path / 'hub'


def count_decodes(monkeypatch):
    calls, decode = [], decoding._decode_rgb
    monkeypatch.setattr(decoding, '_decode_rgb', lambda item: (calls.append(item[1]), decode(item))[1])
    return calls


def test_decoded_once(hub, monkeypatch):
    calls = count_decodes(monkeypatch)
    first, again = load('cifar10', 'test', root=hub), load('cifar10', 'test', root=hub)
    assert len(calls) == 20 and first.fingerprint == again.fingerprint and torch.equal(first.lossless, again.lossless)
    assert [f.name for f in hub.iterdir()] == ['test-00000-of-00001.parquet']  # the source folder is left alone


def test_cache_follows_the_contents_of_the_source(hub):
    assert same(load('cifar10', 'test', root=hub))
    file = hub / 'test-00000-of-00001.parquet'
    before = file.stat()
    write_parquet(file, PHOTOS[::-1], LABELS[::-1], lossless=LABELS > 3)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert same(load('cifar10', 'test', root=hub), PHOTOS[::-1], LABELS[::-1])


@pytest.mark.parametrize('damage', [lambda raw: raw[:200], lambda raw: b'', lambda raw: raw[:-1]])
def test_a_damaged_cache_is_rebuilt(damage, hub, tmp_path):
    assert same(load('cifar10', 'test', root=hub))
    kept, = (tmp_path / 'cache').iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert same(load('cifar10', 'test', root=hub)) and kept.read_bytes() == whole
    assert list((tmp_path / 'cache').iterdir()) == [kept]


def test_without_a_cache_there_is_one_warning(hub, tmp_path, monkeypatch, capsys):
    (tmp_path / 'a file').write_text('')
    monkeypatch.setenv('NRF_CACHE', str(tmp_path / 'a file' / 'cache'))
    for _ in range(2): assert same(load('cifar10', 'test', root=hub))
    assert capsys.readouterr().err.count('Set NRF_CACHE to a writable folder') == 1


def test_a_write_that_fails_leaves_nothing(hub, tmp_path, monkeypatch, capsys):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b'half')
        raise OSError('No space left on device')
    monkeypatch.setattr(decoding, 'save_file', full)
    assert same(load('cifar10', 'test', root=hub))
    assert 'No space left' in capsys.readouterr().err and not list((tmp_path / 'cache').iterdir())


def test_the_number_of_threads_does_not_matter(hub, tmp_path, monkeypatch):
    many = load('cifar10', 'test', root=hub)
    monkeypatch.setenv('NRF_CACHE', str(tmp_path / 'other'))
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)
    assert load('cifar10', 'test', root=hub).fingerprint == many.fingerprint


# ---------------------------------------------------------------- class folders

@pytest.fixture
def pets(tmp_path):
    for split in ('train', 'val'):
        for i, (im, y) in enumerate(zip(PHOTOS, LABELS % 3)):
            folder = tmp_path / 'pets' / split / 'cat dog eel'.split()[y]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(im).save(folder / f'{i:02}.png')
    return tmp_path / 'pets'


def test_class_folders(pets):
    train, test = load(pets, 'train', size=32), load(str(pets), 'test', size=32)
    order = np.argsort(LABELS % 3, kind='stable')
    assert same(train, PHOTOS[order], (LABELS % 3)[order]) and train.classes == ('cat', 'dog', 'eel')
    assert test.mean == train.mean == channel_stats(train.x)[0] and test.name == 'pets'


def test_short_side_256_centre_224(pets):
    wide = np.zeros((512, 1024, 3), np.uint8)
    wide[:, 512:] = 255
    Image.fromarray(wide).save(pets / 'train' / 'cat' / '00.png')
    image = load(pets, 'train', limit=20)
    x = image.x[[i for i in range(20) if image.y[i] == 0 and image.x[i].float().std() > 100][0]]
    assert image.x.shape[1:] == (3, 224, 224)
    assert (x[..., :110] == 0).all() and (x[..., 114:] == 255).all()  # 256 x 512, cut in its middle


def test_a_limit_is_applied_before_decoding(pets, monkeypatch):
    calls, decode = [], loading._decode_file
    monkeypatch.setattr(loading, '_decode_file', lambda *a: (calls.append(a), decode(*a))[1])
    monkeypatch.setitem(STATS, 'pets', ((0,) * 3, (1,) * 3))
    six = load(pets, 'test', size=32, limit=6)
    assert len(calls) == 6 and six.y.bincount().tolist() == [2, 2, 2]
    again = load(pets, 'test', size=32, limit=6)
    assert len(calls) == 6 and again.fingerprint == six.fingerprint
    with pytest.raises(ValueError, match='limit must lie in 1..20'): load(pets, 'test', size=32, limit=21)


def test_folders_that_do_not_fit(pets):
    (pets / 'val' / 'eel').rename(pets / 'val' / 'ant')
    with pytest.raises(ValueError, match=r'train and test do not have the same class folders \(ant, eel\)'): load(pets, 'test', size=32)
    (pets / 'val' / 'ant').rename(pets / 'val' / 'eel')
    (pets / 'val' / 'eel' / 'x.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='x.png: not a readable image'): load(pets, 'test', size=32)
    for file in (pets / 'val' / 'eel').iterdir(): file.unlink()
    with pytest.raises(FileNotFoundError, match='eel'): load(pets, 'test', size=32)
    with pytest.raises(ValueError, match='size must be'): load(pets, 'test', size=0)
    with pytest.raises(FileNotFoundError, match='no folder train'): load(pets / 'val', 'train', size=32)


def test_imagenet_is_a_folder_with_its_own_statistics(pets, tmp_path):
    with pytest.raises(FileNotFoundError, match='has to be downloaded by hand'): load('imagenet', 'test', root=tmp_path)
    pets.rename(tmp_path / 'imagenet')
    for file in (tmp_path / 'imagenet' / 'train').glob('*/*'): file.unlink()
    for folder in (tmp_path / 'imagenet' / 'train').iterdir(): folder.rmdir()
    (tmp_path / 'imagenet' / 'train').rmdir()
    images = load('imagenet', 'test', root=tmp_path, limit=3)  # val/ alone
    assert images.x.shape == (3, 3, 224, 224) and images.mean == (.485, .456, .406) and is_here('imagenet', 'test', tmp_path)


def test_images_that_cannot_fit_into_memory():
    with pytest.raises(ValueError, match='Pass limit='): decoding._check_memory(1_281_167, 10**9)


# ---------------------------------------------------------------- testbed

def best(bed, kind, x=None):
    "The class whose pattern fits best."
    x = bed.images.pixels().flatten(1).numpy() if x is None else x
    return (x @ patterns(bed.size)[kind][:bed.classes].reshape(bed.classes, -1).T).argmax(1)


@pytest.mark.parametrize('classes, size', [(2, 32), (10, 32), (5, 64), (10, 16)])
def test_each_feature_shows_its_class_at_its_amplitude(classes, size):
    bed = synthetic(400, p_r=.7, p_n=.9, classes=classes, size=size, noise=.01, seed=3)
    assert (best(bed, 0) == bed.rf).all() and (best(bed, 1) == bed.nrf).all()
    assert abs(np.mean(bed.rf == bed.y) - .7) < .08 and abs(np.mean(bed.nrf == bed.y) - .9) < .06
    x = bed.images.pixels().flatten(1).numpy()
    for p, vote, amp in zip(patterns(size), (bed.rf, bed.nrf), (bed.amp_r, bed.amp_n)):
        measured = (x * p.reshape(10, -1)[vote]).mean(1)
        np.testing.assert_allclose(measured.mean(), amp, rtol=.02)


def test_features_are_independent_given_the_label():
    bed = synthetic(20_000, p_r=.8, p_n=.6, amp_r=.01, size=8)
    right_r, right_n = bed.rf == bed.y, bed.nrf == bed.y
    assert abs(np.corrcoef(right_r, right_n)[0, 1]) < .03
    wrong = (bed.rf - bed.y)[~right_r] % 10
    assert np.bincount(wrong, minlength=10)[0] == 0 and np.bincount(wrong)[1:].min() > .8 * len(wrong) / 9


def test_noise_is_independent_of_the_features():
    bed = synthetic(3000, amp_r=0, amp_n=0)
    first = bed.render()[:, 0, :4]
    assert max(abs(np.corrcoef(first[:, j], v == bed.y)[0, 1]) for j in range(4) for v in (bed.rf, bed.nrf)) < .06


def test_extreme_shares_are_exact():
    bed = synthetic(50, p_r=1, p_n=0)
    assert (bed.rf == bed.y).all() and (bed.nrf != bed.y).all()


def test_eps_changes_every_nrf_and_no_rf():
    bed = testbed('test')
    u, v = patterns(32)
    nearest = {k: min(np.linalg.norm(a * (p[i] - p[j])) for i in range(10) for j in range(i)) / 2
               for k, p, a in (('rf', u, bed.amp_r), ('nrf', v, bed.amp_n))}
    assert nearest['nrf'] < bed.eps < nearest['rf'] and nearest['rf'] / nearest['nrf'] > 7
    x = bed.images.pixels()[:, 0].numpy()
    for kind, p, vote, keeps in ((0, u, bed.rf, True), (1, v, bed.nrf, False)):
        d = p[(vote + 1) % 10] - p[vote]
        moved = x + bed.eps * d / np.linalg.norm(d, axis=(1, 2), keepdims=True)
        assert np.mean(best(bed, kind, moved.reshape(len(x), -1)) == vote) == keeps or not keeps
        assert np.mean(best(bed, kind, moved.reshape(len(x), -1)) == vote) < .01 or keeps


def test_a_swap_changes_one_feature_and_nothing_else():
    bed = synthetic(60, seed=5)
    for swapped, kind, before, kept in ((bed.swap_nrf(), 1, bed.nrf, bed.rf), (bed.swap_rf(), 0, bed.rf, bed.nrf)):
        assert (best(swapped, kind) == (before + 1) % 10).all() and (best(swapped, 1 - kind) == kept).all()
        pattern = (bed.amp_r, bed.amp_n)[kind] * patterns(32)[kind]
        np.testing.assert_allclose(swapped.render() - bed.render(), pattern[(before + 1) % 10] - pattern[before], atol=1e-12)
        assert (swapped.y == bed.y).all()


def test_reliance_of_known_classifiers():
    bed = synthetic(450, seed=2)
    assert reliance(lambda x: best(bed, 0, x.flatten(1).numpy()), bed) == dict(rf=1, nrf=0, neither=0)
    assert reliance(lambda x: best(bed, 1, x.flatten(1).numpy()), bed) == dict(rf=0, nrf=1, neither=0)
    said = reliance(lambda x: torch.where(torch.arange(450) < 90, torch.tensor(bed.y), -1), bed)
    assert said == pytest.approx(dict(rf=.2, nrf=0, neither=.8))
    assert (bed.conflict().rf != bed.conflict().nrf).all()


def test_the_testbed_is_seeded():
    assert testbed('train').images.fingerprint == load('synthetic', 'train').fingerprint != load('synthetic', 'test').fingerprint
    assert synthetic(50, seed=1).images.fingerprint != synthetic(50, seed=2).images.fingerprint
    assert len(load('synthetic', 'test', limit=30)) == 30


@pytest.mark.parametrize('change', [dict(n=0), dict(p_r=1.1), dict(p_n=-.1), dict(classes=1), dict(classes=11), dict(size=30),
                                   dict(size=0), dict(noise=-.1), dict(amp_n=-.1), dict(amp_r=.3), dict(noise=.2)])
def test_bad_settings_raise(change):
    with pytest.raises(ValueError): synthetic(**dict(n=10) | change)


# ---------------------------------------------------------------- imports, real data

def test_importing_loads_no_heavy_library():
    code = "import sys, nrf_repro.data; print([m for m in ('torchvision', 'sklearn', 'scipy.io', 'pyarrow', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


@pytest.fixture
def shared():
    if not SHARED.is_dir(): pytest.skip(f'no folder with real data: {SHARED} is not there and NRF_DATA is not set')
    return SHARED


def needs(name, shared):
    if not is_here(name, 'test', shared): pytest.skip(f'{name} is not in {shared}')


def test_real_cifar10(shared):
    needs('cifar10', shared)
    test = load('cifar10', 'test', root=shared)
    assert test.x.shape == (10_000, 3, 32, 32) and test.y.bincount().tolist() == [1000] * 10
    mean, _ = channel_stats(test.x)
    np.testing.assert_allclose(mean, (.4942, .4851, .4504), atol=2e-4)  # as known of the test split
    if test.lossless is not None: assert (~test.lossless).sum() == 114 and load('cifar10', 'test', root=shared, limit=2000).lossless.all()


def test_real_cifar10_training_labels(shared):
    files = sorted((shared / 'cifar10').glob('train-*.parquet'))
    if not files: pytest.skip(f'no Parquet files of cifar10 in {shared}')
    table = pa.concat_tables([pq.read_table(f, columns=None).drop_columns(['img']) for f in files])
    assert np.bincount(table['label']).tolist() == [5000] * 10
    if 'lossless' in table.column_names: assert table['lossless'].to_pylist().count(False) == 517


def test_real_pneumoniamnist(shared):
    needs('pneumoniamnist', shared)
    train, test = (load('pneumoniamnist', s, root=shared) for s in ('train', 'test'))
    assert test.y.bincount().tolist() == [234, 390] and train.x.shape[1:] == (1, 32, 32) and len(train) <= 4708
    assert train.x[:, 0, 2:-2, 2:-2].float().std() > 30 and (train.x[..., -2:] == 0).all()


# --- images of every mode, class folders, homes ---

def grey16(): return (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)


def read_back(path): return _decode_file(path, 16, 16)[..., 0]


def big_endian(path): path.write_bytes(b'P5 16 16 65535\n' + grey16().astype('>u2').tobytes())


def white_is_zero(path): Image.fromarray(65535 - grey16()).save(path, tiffinfo={262: 0})


def twelve_bits(path): path.write_bytes(b'P5 16 16 4095\n' + (grey16() // 16).astype('>u2').tobytes())


@pytest.mark.parametrize('name, write', [
    ('a.png', lambda p: Image.fromarray(grey16()).save(p)), ('a.tif', lambda p: Image.fromarray(grey16()).save(p)),
    ('a.pgm', big_endian), ('a.tiff', white_is_zero), ('b.tif', lambda p: Image.fromarray(grey16().astype('>u2')).save(p)),
    ('c.png', lambda p: Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(p))])
def test_grey_levels_are_scaled_and_not_clipped(tmp_path, name, write):
    write(tmp_path / name)
    assert (read_back(tmp_path / name) == np.arange(256).reshape(16, 16)).all()


def test_a_pgm_of_twelve_bits_is_scaled_by_its_largest_value(tmp_path):
    twelve_bits(tmp_path / 'a.pgm')
    assert np.abs(read_back(tmp_path / 'a.pgm').astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize('array', [np.arange(256, dtype=np.int32).reshape(16, 16) * 1000, np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)])
def test_pixels_of_unknown_range_are_refused_by_file_name(tmp_path, array):
    Image.fromarray(array).save(tmp_path / 'a.tif')
    with pytest.raises(ValueError, match=r'a\.tif: its pixels have 32 bits .*Save it with 8 or 16 bits'): read_back(tmp_path / 'a.tif')


def with_alpha(mode, alpha):
    im = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode)
    im.putalpha(Image.new('L', (16, 16), alpha))
    return im


@pytest.mark.parametrize('mode', ['LA', 'RGBA'])
def test_an_opaque_alpha_changes_nothing_and_a_transparent_one_is_refused(tmp_path, mode):
    with_alpha(mode, 255).save(tmp_path / 'opaque.png')
    assert (read_back(tmp_path / 'opaque.png') == np.arange(256).reshape(16, 16)).all()
    with_alpha(mode, 128).save(tmp_path / 'clear.png')
    with pytest.raises(ValueError, match=r'clear\.png: it has transparent pixels'): read_back(tmp_path / 'clear.png')


@pytest.mark.parametrize('mode', ['P', 'L', 'RGB', 'I;16'])
def test_a_transparent_colour_is_refused_where_a_pixel_has_it(tmp_path, mode):
    im = Image.fromarray(grey16()) if mode == 'I;16' else Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode)
    key = (0, 0, 0) if mode == 'RGB' else 0
    im.save(tmp_path / 'a.png', transparency=key)
    with pytest.raises(ValueError, match=r'a\.png: it has transparent pixels'): read_back(tmp_path / 'a.png')


@pytest.mark.parametrize('mode, tolerance', [('P', 0), ('1', 0), ('CMYK', 0)])
def test_palettes_bits_and_inks_are_converted(tmp_path, mode, tolerance):
    plain = Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8))
    path = tmp_path / ('a.tif' if mode == 'CMYK' else 'a.png')
    plain.convert('RGB').convert(mode).save(path)
    assert np.abs(read_back(path).astype(int) - np.asarray(plain)).max() <= tolerance


def picture_at(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8), (9, 9, 9)).save(path)


@pytest.mark.parametrize('extra', ['.ipynb_checkpoints/0-checkpoint.png', 'cat/.ipynb_checkpoints/0-checkpoint.png', 'cat/._0.png', '__MACOSX/cat/0.png', '.git/0.png',
                                   '.DS_Store', '@eaDir/0.png', 'cat/notes.txt', 'labels.csv'])
def test_system_and_hidden_files_are_ignored(tmp_path, extra):
    for c in ('cat', 'dog'): picture_at(tmp_path / c / '0.png')
    if extra.endswith('.png'): picture_at(tmp_path / extra)
    else: (tmp_path / extra).write_bytes(b'')
    names, files, y = class_images(tmp_path)
    assert names == ['cat', 'dog'] and y == [0, 1] and [f.parent.name for f in files] == names


@pytest.mark.parametrize('empty', ['.ipynb_checkpoints', 'train', 'val', 'Test'])
def test_an_empty_hidden_folder_or_split_is_no_class(tmp_path, empty):
    for c in ('cat', 'dog'): picture_at(tmp_path / c / '0.png')
    (tmp_path / empty).mkdir()
    assert class_images(tmp_path)[0] == ['cat', 'dog']


def test_an_empty_class_is_named(tmp_path):
    picture_at(tmp_path / 'cat/0.png')
    (tmp_path / 'masks').mkdir()
    with pytest.raises(FileNotFoundError, match='the folder masks holds no images .* would count as a class'): class_images(tmp_path)


@pytest.mark.parametrize('split', ['train', 'training', 'Train'])
def test_a_split_is_no_class(tmp_path, split):
    for c in ('cat', 'dog'): picture_at(tmp_path / split / c / '0.png')
    with pytest.raises(FileNotFoundError, match=f'holds the splits {split} and no class folders. Name the one to read'): _class_names(tmp_path)
    assert _class_names(tmp_path / split) == ['cat', 'dog']
    picture_at(tmp_path / 'cow/0.png')
    with pytest.raises(FileNotFoundError, match='beside the class folders cow'): _class_names(tmp_path)


@pytest.mark.parametrize('test', ['test', 'val', 'valid', 'validation', 'Test'])
def test_splits_are_found_by_their_usual_names(tmp_path, monkeypatch, test):
    monkeypatch.setenv('NRF_CACHE', str(tmp_path / 'cache'))
    for split in ('train', test):
        for c in ('2', '10'): picture_at(tmp_path / 'own' / split / c / '0.png')
    assert load(tmp_path / 'own', 'test', size=8).classes == ('2', '10')


@pytest.mark.parametrize('names', [[str(i) for i in range(12)], ['c1', 'c2', 'c10'], ['01', '2', '010'], ['-1', '0', '0.5', '2', '10'],
                                   ['n01440764', 'n01443537', 'n13133613'], ['ant', 'bee', 'cow']])
def test_numbers_sort_as_numbers(tmp_path, names):
    for name in names: picture_at(tmp_path / name / '0.png')
    assert _class_names(tmp_path) == names


def homeless(monkeypatch):
    import pwd
    def nobody(uid): raise KeyError(uid)
    monkeypatch.setattr(pwd, 'getpwuid', nobody)
    for name in ('HOME', 'XDG_CACHE_HOME', 'NRF_CACHE'): monkeypatch.delenv(name, raising=False)


def test_no_home_is_needed_where_a_cache_folder_is_given(monkeypatch, tmp_path, capsys):
    homeless(monkeypatch)
    for name, folder in (('XDG_CACHE_HOME', tmp_path / 'x'), ('NRF_CACHE', tmp_path / 'own')):
        monkeypatch.setenv(name, str(folder))
        assert cache_folder() == (folder if name == 'NRF_CACHE' else folder / 'nrf_repro')
    for name in ('XDG_CACHE_HOME', 'NRF_CACHE'): monkeypatch.delenv(name)
    with pytest.raises(RuntimeError, match='Set NRF_CACHE to a folder'): cache_folder()
    assert cached('no-home', lambda: dict(x=torch.zeros(1)))['x'].tolist() == [0] and 'Set NRF_CACHE' in capsys.readouterr().err
    assert load('digits', 'test', limit=3).x.shape[0] == 3
    with pytest.raises(ValueError, match='Give the whole path'): load('svhn', 'test', root='~/data')


def test_images_of_wrong_kinds_are_named():
    four = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ('dark', 'light'), (.5,), (.3,), 'example', 'train')
    with pytest.raises(TypeError, match='x is a ndarray'): replace(four, x=four.x.numpy())
    with pytest.raises(TypeError, match='y is a list'): replace(four, y=[0, 1, 1, 0])
    with pytest.raises(TypeError, match='one mark for each of the 4 images'): replace(four, lossless=torch.ones(8, dtype=torch.bool))
    assert len(four[torch.tensor(2)]) == 1
    with pytest.raises(ValueError, match='at least 0'): balanced(four.y, -1)


@pytest.mark.parametrize('pick', [torch.tensor([True, False] * 4), slice(3), [0, 5], 2, torch.tensor([7, 1])])
def test_images_on_disk_have_the_same_parts_as_those_in_memory(tmp_path, pick):
    for i, name in enumerate('ab'):
        (tmp_path / 'd/train' / name).mkdir(parents=True)
        for j in range(4): Image.fromarray(PHOTOS[4 * i + j]).save(tmp_path / f'd/train/{name}/{j}.png')
    (tmp_path / 'd/test').symlink_to(tmp_path / 'd/train')
    near, far = load(tmp_path / 'd', 'train', size=32), loading.on_disk(tmp_path / 'd', 'train', size=32)
    assert torch.equal(far[pick].x, near[pick].x) and torch.equal(far[pick].y, near[pick].y) and far[pick].fingerprint == near[pick].fingerprint


def test_a_folder_without_class_folders_is_named(tmp_path):
    for name in ('train/a', 'train/b', 'val'): (tmp_path / 'd' / name).mkdir(parents=True)
    for place in ('train/a', 'train/b', 'val'): Image.fromarray(PHOTOS[0]).save(tmp_path / 'd' / place / 'x.png')
    with pytest.raises(FileNotFoundError, match='holds no class folders'): load(tmp_path / 'd', 'test', size=32)


def test_parquet_files_with_a_hash_in_their_name_are_counted(tmp_path):
    file = tmp_path / 'train-00000-of-00002-b42cd62c3ce4f0f4.parquet'
    file.touch()
    with pytest.raises(FileNotFoundError, match='1 of 2 train files are present'): decoding.read_parquet([file], 'train', NAMES)
