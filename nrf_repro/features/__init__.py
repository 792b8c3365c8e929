"""Usefulness and robust usefulness of a feature, and the local linearity (LIGS) of a network."""
from .linearity import NOISES, ligs, normalise_gradients
from .useful import robust_usefulness, unit_variance, usefulness, worst_case

__all__ = ['NOISES', 'ligs', 'normalise_gradients', 'robust_usefulness', 'unit_variance', 'usefulness', 'worst_case']
