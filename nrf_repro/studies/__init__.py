"""Experiments beside the grid of networks: one module for each."""
from nrf_repro._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {}, dict(run_studies='studies.base:run_studies', shown='studies.base:shown'))
