"""Classifiers that differ only in the normalisation layer, controls without normalisation, and their checkpoints."""
from nrf_repro.models.build import ARCHS, Classifier, Standardize, build_model
from nrf_repro.models.checkpoint import from_bytes, load_model, model_config, pack_model, save_model, save_whole, to_bytes
from nrf_repro.models.controls import CONTROLS

__all__ = ['ARCHS', 'CONTROLS', 'Classifier', 'Standardize', 'build_model', 'from_bytes', 'load_model', 'model_config', 'pack_model',
           'save_model', 'save_whole', 'to_bytes']
