"""Published weights on a folder of images: class order, pixel scale, file safety, and the rows of the tables."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model, get_model_weights

from nrf_repro.studies import imagenet
from nrf_repro.data import STATS, load
from nrf_repro.experiment.profile import PARTS, NetworkId, load_profile
from nrf_repro.studies.imagenet import TORCHVISION, class_index, class_names, _networks, labelled_by_output, pretrained, wnids
from nrf_repro.results.rules import load_claims
from nrf_repro.results.paired import pairs, select
from nrf_repro.results.rows import frame, paper_rows, read_rows
from nrf_repro.studies.base import Run, run_study
from nrf_repro.report.tables import table_1, table_2

FOLDERS = {'n01440764': 0, 'n02391049': 340, 'n15075141': 999}
CLASSES = tuple(FOLDERS.values())


def a_folder(root, names, each=2):
    rng = np.random.default_rng(0)
    for name in names:
        (root / 'imagenet/val' / name).mkdir(parents=True)
        for k in range(each):
            Image.fromarray(rng.integers(0, 256, (260, 300, 3), dtype=np.uint8)).save(root / f'imagenet/val/{name}/{k}.png')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Class folders, and weights of small networks under two names of torchvision's."
    root = tmp_path_factory.mktemp('data')
    a_folder(root, FOLDERS)
    for seed, (name, shape) in enumerate({'shufflenet_v2_x0_5': None, 'squeezenet1_1': None}.items()):
        torch.manual_seed(seed)
        torch.save(get_model(name, weights=None).state_dict(), root / f'{name}.pth')
    return root


SMALL = {('vgg16', 'none'): 'squeezenet1_1', ('vgg16', 'bn'): 'shufflenet_v2_x0_5'}


@pytest.fixture
def small(place, monkeypatch):
    "Two small networks in the place of VGG16 without norm and with BN."
    monkeypatch.setenv('NRF_DATA', str(place))
    monkeypatch.setattr(imagenet, 'TORCHVISION', SMALL)
    return profile_with(place)


@pytest.fixture(scope='module')
def measured(place, tmp_path_factory):
    "The folder of a study that was run, and its profile."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('NRF_DATA', str(place))
        patch.setattr(imagenet, 'TORCHVISION', SMALL)
        folder, profile = tmp_path_factory.mktemp('run'), profile_with(place)
        assert [run_study(profile, 'imagenet', 0, folder, progress=False) for _ in range(2)] == ['measured', 'kept']
    return folder, profile


def profile_with(place, **changes):
    tiny = load_profile('tiny')
    data = tiny.data['digits'].as_dict() | dict(train=None, test=3, sigma=.01)
    data['attacks'] = {a: d | dict(steps=1) for a, d in data['attacks'].items()}
    settings = dict(dataset='imagenet', archs={'vgg16': 1, 'resnet18': 1}, norms=['none', 'bn'], seeds=[0], weights=str(place),
                    attacks=['pgd_l2', 'pgd_linf', 'cw_l2', 'cw_linf'], if_here=True)
    return tiny.with_changes({'data.imagenet': data, 'studies': dict(imagenet=settings | changes)})


def test_the_class_of_a_folder_does_not_depend_on_the_other_folders(place):
    assert {f: class_index(f) for f in FOLDERS} == FOLDERS and len(set(wnids())) == 1000 == len(set(class_names()))
    images = labelled_by_output(load('imagenet', 'test', root=place))
    assert images.y.tolist() == [0, 0, 340, 340, 999, 999] and images.classes == wnids()


@pytest.mark.parametrize('names', [('0', '340', '999'), ('0000', '0340', '0999'), ('tench', 'zebra', 'toilet tissue')])
def test_numbers_and_names_mean_the_same_classes(tmp_path, names):
    a_folder(tmp_path, names, each=1)
    assert sorted(labelled_by_output(load('imagenet', 'test', root=tmp_path)).y.tolist()) == list(CLASSES)


@pytest.mark.parametrize('names, message', [(('cats', 'dogs'), "class folder 'cats': its output among the 1,000 is not known"),
                                             (('1000',), "class folder '1000'"), (('tench', 'n01440764'), 'two class folders have one class')])
def test_a_folder_with_an_unknown_name_is_an_error(tmp_path, names, message):
    a_folder(tmp_path, names, each=1)
    with pytest.raises(ValueError, match=message): labelled_by_output(load('imagenet', 'test', root=tmp_path))


def test_every_name_is_a_torchvision_network_with_this_norm():
    from nrf_repro.measure.inputs import _norm_kind
    for (arch, norm), name in TORCHVISION.items():
        with torch.device('meta'): net = get_model(name)
        assert _norm_kind(net) == norm and name.removesuffix('_bn') == arch and 'IMAGENET1K_V1' in get_model_weights(name).__members__
        assert .6 < imagenet._stated_accuracy(name, 'IMAGENET1K_V1') < .8 and imagenet._stated_accuracy(name, '/a/folder') is None


def test_standardisation_is_in_the_network(place, small):
    net, plain = pretrained('vgg16', 'bn', str(place)), get_model('shufflenet_v2_x0_5', weights=None).eval()
    plain.load_state_dict(torch.load(place / 'shufflenet_v2_x0_5.pth', weights_only=True))
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in STATS['imagenet'])
    torch.testing.assert_close(net(x), plain((x - mean) / std))
    assert not net.training and not torch.allclose(net(x), plain(x))


def test_missing_other_and_harmful_files_are_one_line_errors(tmp_path, small):
    def load_it(): return pretrained('vgg16', 'bn', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='no weights of shufflenet_v2_x0_5 in it. Download https://.*put them there as shufflenet_v2_x0_5.pth'): load_it()

    class Trap:
        def __reduce__(self): return (tmp_path / 'ran').write_text, ('x',)
    file = tmp_path / 'shufflenet_v2_x0_5.pth'
    torch.save(dict(state_dict=Trap()), file)
    with pytest.raises(ValueError, match='no weights that can be read without running its code'): load_it()
    assert not (tmp_path / 'ran').exists()
    torch.save(get_model('squeezenet1_1', weights=None).state_dict(), file)
    with pytest.raises(ValueError, match='weights of another network'): load_it()
    with pytest.raises(ValueError, match="resnet18 with norm 'none': torchvision has no such weights"): pretrained('resnet18', 'none', 'IMAGENET1K_V1')


def test_a_network_with_other_outputs_is_an_error(place, small, tmp_path):
    torch.save(get_model('shufflenet_v2_x0_5', weights=None, num_classes=10).state_dict(), tmp_path / 'shufflenet_v2_x0_5.pth')
    run = Run(profile_with(tmp_path, norms=['bn']), 'imagenet', 0, tmp_path, progress=False)
    with pytest.raises(ValueError, match='vgg16 bn: its weights have 10 outputs, ImageNet has 1,000 classes'): list(imagenet.measure_imagenet(run))


def test_tables_1_and_2_show_the_rows(measured):
    rows = read_rows(measured[0])
    final = rows[rows.experiment == 'final']
    assert set(final.norm) == {'none', 'bn'} and final.n.eq(3).all() and final.regime.eq('standard').all() and final.width.eq(1).all()
    assert final.groupby('norm').config_hash.nunique().eq(1).all() and final.config_hash.nunique() == 2   # other weights, another hash
    ours = table_1(rows, paper_rows())
    assert (ours.arch == 'vgg16').all() and ours.seeds.map(len).eq(1).all() and ours[ours.column == 'clean'].printed.notna().all()
    assert table_2(rows).dropna(subset='value').norm.unique().tolist() == ['none', 'bn']
    wide = final.pivot_table(index='norm', columns=final.attack.fillna(final.metric), values='value')
    assert (wide[['pgd_l2', 'pgd_linf', 'cw_l2', 'cw_linf']].le(wide.clean_accuracy, axis=0)).all(axis=None)
    study = rows[rows.experiment == 'imagenet']
    assert study[study.metric == 'classes'].value.tolist() == [3, 3]
    part, = imagenet.show_imagenet(study)
    assert part['table'].shape[0] == 2 and 'No clean accuracy can be compared' in part['reading'][0]


def test_the_rows_make_pairs_for_the_claims(measured):
    rows = read_rows(measured[0])
    for claim in ('C1', 'C2', 'C5'):
        for p in load_claims()[claim].parts:
            chosen = select(rows[rows.metric == p.metric], p.where)
            assert len(pairs(chosen, **p.compare)) == 1, (claim, p.name)


def test_a_network_of_a_grid_takes_precedence_in_the_tables(small, tmp_path):
    trained = dict(small.grids[0].as_dict(), dataset='imagenet', archs={'vgg16': 1}, norms=['bn'], regimes=['standard'], seeds=[0])
    profile = profile_with(small.studies['imagenet'].weights, attacks=['pgd_l2'])
    profile = profile.with_changes({'grids': [*profile.as_dict()['grids'], trained]})
    rows = frame(imagenet.measure_imagenet(Run(profile, 'imagenet', 0, tmp_path, progress=False)))
    assert set(rows.norm[rows.experiment == 'final']) == {'none'} and set(rows.norm[rows.experiment == 'imagenet']) == {'none', 'bn'}


def test_the_study_and_the_grids_of_the_paper_profile_share_no_vgg():
    paper = load_profile('paper')
    assert paper.studies['imagenet'].if_here
    cells = _networks(Run(paper, 'imagenet', 0, None))
    free = {(c.arch, c.norm) for c in cells if c not in paper.networks(PARTS)}
    assert free == {(a, n) for a in ('vgg16', 'vgg19') for n in ('none', 'bn')} and len(cells) == 6
    assert NetworkId('imagenet', 'resnet18', 1., 'none', 'standard', 0) in paper.networks(PARTS)
