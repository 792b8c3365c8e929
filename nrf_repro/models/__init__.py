"""Classifiers that differ only in the normalisation layer, controls without normalisation, and checkpoints."""
import warnings

from nrf_repro.models.build import ARCHS, Classifier, Standardize, build_model
from nrf_repro.models.checkpoint import load_model, model_config, save_model, save_tensors
from nrf_repro.models.controls import CONTROLS

__all__ = ['ARCHS', 'CONTROLS', 'Classifier', 'Standardize', 'build_model', 'load_model', 'model_config', 'save_model', 'save_tensors']

_RENAMED = dict(pack_model=save_model, save_whole=save_tensors)


def __getattr__(name):
    "An old public name, with a warning; it works for one release."
    if name not in _RENAMED: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    new = _RENAMED[name]
    warnings.warn(f'nrf_repro.models.{name} is now {new.__name__}.', DeprecationWarning, stacklevel=2)
    return new
