"""Profiles, runs, and the networks that are published."""
from nrf_repro._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {
    'experiment.runs': 'load_profile profiles plan_table',
    'experiment.published': 'load_published published_networks published_rows leaderboard'})
