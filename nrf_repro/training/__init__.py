"""Training: recipes, the resumable loop, and what is measured on the way."""
from nrf_repro import _lazy

__getattr__, __dir__, __all__ = _lazy(__name__, {
    'training.recipe': 'RECIPES Recipe',
    'training.loop': 'Monitor correct fit'})
