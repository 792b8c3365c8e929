"""Training: recipes, the resumable loop, and what is measured on the way."""
from nrf_repro._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {
    'training.recipe': 'RECIPES Recipe',
    'training.loop': 'Monitor correct fit'})
