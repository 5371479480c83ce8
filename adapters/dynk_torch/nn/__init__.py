"""Layers for PyTorch: dynamic filters together with the branches that predict them.

Each is used as any `torch.nn` layer is: on the CPU and on CUDA, in half precision and under autocast, compiled whole,
with images in either memory layout (the output is contiguous). `torch.manual_seed` reproduces how a layer starts.
"""

from dynk_torch.nn._author import load_author_state_dict
from dynk_torch.nn._decoupled import DDF, DDFUp
from dynk_torch.nn._deformable import DeformableKernelConv2d, GlobalDeformableKernelConv2d, parameter_groups
from dynk_torch.nn._dilated import PRIORS, GatedPrior, MarkovPrior, PADConv2d, RecurrentPrior
from dynk_torch.nn._filter_norm import FilterNorm
from dynk_torch.nn._sampled import LSDFN, DynamicFilter
from dynk_torch.nn._special_cases import CARAFE, Involution

__all__ = [
    "CARAFE",
    "DDF",
    "LSDFN",
    "PRIORS",
    "DDFUp",
    "DeformableKernelConv2d",
    "DynamicFilter",
    "FilterNorm",
    "GatedPrior",
    "GlobalDeformableKernelConv2d",
    "Involution",
    "MarkovPrior",
    "PADConv2d",
    "RecurrentPrior",
    "load_author_state_dict",
    "parameter_groups",
]
