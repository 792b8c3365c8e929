"""Experiments beside the grid of networks: one module for each."""
from nrf_repro import _lazy

__getattr__, __dir__, __all__ = _lazy(__name__, {}, dict(run_studies='studies.base:run_studies', shown='studies.base:shown'))
