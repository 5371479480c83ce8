"""Decoupled dynamic filters: `ddf`, `ddf_upsample`, `filter_norm` and their gradients.

Paper: Decoupled Dynamic Filter Networks, CVPR 2021 (DDF).
"""

from dynk.decoupled._ddf import DDF, DdfGradients, ddf, ddf_backward
from dynk.decoupled._ddf_upsample import DDF_UPSAMPLE, DdfUpsampleGradients, ddf_upsample, ddf_upsample_backward
from dynk.decoupled._filter_norm import FILTER_NORM, FilterNormGradients, filter_norm, filter_norm_backward

__all__ = [
    "DdfGradients",
    "DdfUpsampleGradients",
    "FilterNormGradients",
    "ddf",
    "ddf_backward",
    "ddf_upsample",
    "ddf_upsample_backward",
    "filter_norm",
    "filter_norm_backward",
]

OPERATORS = (DDF, DDF_UPSAMPLE, FILTER_NORM)
