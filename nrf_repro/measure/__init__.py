"""Measure any PyTorch classifier: clean accuracy, robust accuracy, LIGS, and checks that detect gradient masking.

The package can be called: `nrf_repro.measure(model, images)` is `nrf_repro.measure.measure(model, images)`.
"""
import inspect
import sys
from types import ModuleType

from nrf_repro import _renamed
from nrf_repro.measure.command import add_arguments, run
from nrf_repro.measure.inputs import EvalImages, Logits, eval_images, find_model, with_standardize
from nrf_repro.measure.measurement import LargeEps, Measurement, attacks_at, measure

__all__ = ['EvalImages', 'LargeEps', 'Logits', 'Measurement', 'attacks_at', 'eval_images', 'find_model', 'measure', 'with_standardize']

__getattr__ = _renamed(__name__, dict(find_network=find_model, as_subjects=eval_images))


class _CallablePackage(ModuleType): __call__ = staticmethod(measure)


__signature__ = inspect.signature(measure)
sys.modules[__name__].__class__ = _CallablePackage
