"""Layers for JAX, as flax.nnx modules: dynamic filters together with the branches that predict them.

They take images (N, C, H, W) and have the names, shapes and starts of `dynk_torch.nn`. Parameters are brought to the
dtype of the image, in which the output comes out. `pip install "dynk[flax]"` brings what they need.
"""

try:
    from flax import nnx  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "flax":
        raise
    message = 'dynk_jax.nn needs flax: pip install "dynk[flax]"'
    raise ImportError(message) from error

from dynk_jax.nn._decoupled import DDF, DDFUp
from dynk_jax.nn._deformable import DeformableKernelConv2d, GlobalDeformableKernelConv2d, parameter_labels
from dynk_jax.nn._dilated import PRIORS, GatedPrior, MarkovPrior, PADConv2d, RecurrentPrior
from dynk_jax.nn._filter_norm import FilterNorm
from dynk_jax.nn._load import load_torch_state_dict
from dynk_jax.nn._sampled import LSDFN, DynamicFilter
from dynk_jax.nn._special_cases import CARAFE, Involution

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
    "load_torch_state_dict",
    "parameter_labels",
]
