"""Every study on images with colours: three channels and networks that lie channels last take other paths than digits do."""
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_digits

from nrf_repro.experiment.plan import study_specs
from nrf_repro.experiment.profile import load_profile
from nrf_repro.experiment.run import train_network
from nrf_repro.results.rows import read_rows
from nrf_repro.studies.base import run_study, shown

STUDIES = ('corruptions', 'adequacy', 'regularization', 'transfer', 'features')


def png(digit, tint): # 8 8
    "A digit of 32 by 32 pixels in a colour."
    grey = np.kron(digit / 16, np.ones((4, 4)))
    picture = Image.fromarray((grey[..., None] * tint).round().astype(np.uint8))
    picture.save(file := io.BytesIO(), 'png')
    return file.getvalue()


@pytest.fixture(scope='module')
def coloured(tmp_path_factory):
    "The tiny profile on tinted digits that stand where CIFAR-10 would, and its trained networks."
    data, build = tmp_path_factory.mktemp('data'), tmp_path_factory.mktemp('build')
    digits, tints = load_digits(), np.random.default_rng(0).uniform(100, 255, (400, 3))
    for split, own in dict(train=range(300), test=range(300, 400)).items():
        pictures = [dict(bytes=png(digits.images[i], tints[i]), path=None) for i in own]
        (data / 'cifar10').mkdir(exist_ok=True)
        pq.write_table(pa.table(dict(img=pictures, label=digits.target[list(own)])), data / 'cifar10' / f'{split}-00000-of-00001.parquet')
    profile = yaml.safe_load((ROOT / 'reports/profiles/tiny.yaml').read_text())
    profile['data']['cifar10'] = profile['data'].pop('digits')
    for part in (*profile['grids'], *profile['studies'].values()): part['dataset'] = part['dataset'].replace('digits', 'cifar10')
    (build / 'coloured.yaml').write_text(yaml.safe_dump(profile))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('NRF_DATA', str(data))
        profile = load_profile(build / 'coloured.yaml')
        for spec in {spec: None for s in STUDIES for spec in study_specs(profile, s)}: train_network(spec, build, progress=False)
        yield profile, build


def test_its_networks_see_three_channels(coloured):
    profile, build = coloured
    from nrf_repro.models import load_model
    files = list(build.glob('runs/*/weights.safetensors'))
    assert len(files) == 4 and all(load_model(f).config['in_channels'] == 3 for f in files)


@pytest.mark.parametrize('study', STUDIES)
def test_a_study_measures_and_shows_itself(coloured, study):
    profile, build = coloured
    assert run_study(profile, study, 0, build, progress=False) == 'measured'
    rows = read_rows(build / 'studies' / f'{study}-s0' / 'rows.jsonl')
    assert len(rows) and set(rows.dataset.dropna()) == {'cifar10'} and set(rows.norm.dropna()) >= {'none', 'bn'}
    parts = [part for name, part in shown(rows)]
    assert parts and not any(part['title'].endswith('not drawn') for part in parts)
