"""PGD and CW attacks on any image classifier, and the accuracy that is left under them.

Images lie in [0, 1]. An attack leaves the model as it was, and its result does not depend on the batch size.
"""
from .evaluate import CRITERIA, Result, Robust, robust_correct
from .inference import optimised_inference
from .inputs import check_images, check_logits, frozen
from .noise import image_keys, image_noise, image_uniform
from .pgd import (
    LOSSES, PAPER_ATTACKS, PERTURBATION_SETS, Attack, PerturbationSet, ce_gradient, gradient_underflows, input_gradient, l2_norm, margin)

__all__ = ['Attack', 'CRITERIA', 'LOSSES', 'PAPER_ATTACKS', 'PERTURBATION_SETS', 'PerturbationSet', 'Result', 'Robust', 'ce_gradient',
           'gradient_underflows', 'input_gradient', 'l2_norm', 'margin', 'optimised_inference', 'robust_correct']
