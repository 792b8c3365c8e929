"""Classifiers that differ only in the normalisation layer, controls without normalisation, and checkpoints."""
from nrf_repro import _renamed
from nrf_repro.models.build import ARCHS, Classifier, Standardize, build_model
from nrf_repro.models.checkpoint import load_model, model_config, save_model, save_tensors
from nrf_repro.models.controls import CONTROLS

__all__ = ['ARCHS', 'CONTROLS', 'Classifier', 'Standardize', 'build_model', 'load_model', 'model_config', 'save_model', 'save_tensors']

__getattr__ = _renamed(__name__, dict(pack_model=save_model, save_whole=save_tensors))
