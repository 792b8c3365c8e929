"""Images and their labels: data sets by name, folders of class folders, and a testbed whose features are known."""
from nrf_repro.data.decoding import decode_all
from nrf_repro.data.images import SIZES, STATS, Images, balanced, channel_stats
from nrf_repro.data.known_features import Synthetic, patterns, reliance, synthetic, testbed
from nrf_repro.data.loading import KNOWN, class_images, data_folder, is_here, load, on_disk

__all__ = ['Images', 'balanced', 'class_images', 'load', 'reliance', 'synthetic', 'testbed']
