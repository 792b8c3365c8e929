# Made by docs/stubs.py from the names in __init__.py: `make book` writes it anew.
from nrf_repro.training.loop import Monitor as Monitor
from nrf_repro.training.loop import correct as correct
from nrf_repro.training.loop import fit as fit
from nrf_repro.training.recipe import RECIPES as RECIPES
from nrf_repro.training.recipe import Recipe as Recipe
