# Made by docs/stubs.py from the names in __init__.py: `make book` writes it anew.
from nrf_repro.experiment.plan import RunSpec as RunSpec
from nrf_repro.experiment.plan import plan_table as plan_table
from nrf_repro.experiment.plan import run_spec as run_spec
from nrf_repro.experiment.profile import Profile as Profile
from nrf_repro.experiment.profile import load_profile as load_profile
from nrf_repro.experiment.profile import profiles as profiles
from nrf_repro.experiment.published import leaderboard as leaderboard
from nrf_repro.experiment.published import load_published as load_published
from nrf_repro.experiment.published import published_networks as published_networks
from nrf_repro.experiment.published import published_rows as published_rows
from nrf_repro.experiment.run import measure_network as measure_network
from nrf_repro.experiment.run import train_network as train_network
