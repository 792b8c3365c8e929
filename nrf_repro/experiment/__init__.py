"""Profiles, runs, and the networks that are published."""
from nrf_repro import _EXPERIMENT
from nrf_repro import _lazy

__getattr__, __dir__, __all__ = _lazy(__name__, {
    'experiment.profile': 'load_profile profiles Profile',
    'experiment.plan': 'RunSpec plan_table run_spec',
    'experiment.run': 'train_network measure_network',
    'experiment.published': 'load_published published_networks published_rows leaderboard'}, _EXPERIMENT)
