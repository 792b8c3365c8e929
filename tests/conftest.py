"""Small networks, small data, one thread: the whole suite is minutes on two cores."""
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)


@pytest.fixture(scope='session')
def cifar_root():
    "A folder with real CIFAR-10, or the test is skipped and says so."
    for root in (os.environ.get('NRF_DATA'), ROOT.parent / 'shared/data', ROOT / 'data'):
        if root and (any(Path(root).glob('cifar10/test-*.parquet')) or any(Path(root).glob('cifar-10-batches-*'))): return Path(root)
    pytest.skip('no CIFAR-10 at hand: set NRF_DATA to a folder that holds it')
