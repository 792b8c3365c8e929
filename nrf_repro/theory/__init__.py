"""Rescaling of data and the smoothness of the loss: the theory behind normalisation layers."""
from .rescaling import fit_whitening, invariance_error, principal_axes, whiten
from .smoothness import bound_terms, landscape, layer_gradients

__all__ = ['bound_terms', 'fit_whitening', 'invariance_error', 'landscape', 'layer_gradients', 'principal_axes', 'whiten']
