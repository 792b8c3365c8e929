"""Usefulness and robust usefulness of a feature, local linearity (LIGS) of a network, and data sets of chosen features."""
from .datasets import FeatureSet, invert_representation, targeted_perturbation
from .linearity import NOISES, ligs, normalise_gradients
from .useful import robust_usefulness, unit_variance, usefulness, worst_case

__all__ = ['NOISES', 'FeatureSet', 'invert_representation', 'ligs', 'normalise_gradients', 'robust_usefulness',
           'targeted_perturbation', 'unit_variance', 'usefulness', 'worst_case']
