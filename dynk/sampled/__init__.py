"""Dynamic filters with a large sampling field: `dynamic_filter`, `ls_dfn` and their gradients.

Paper: Dynamic Filtering with Large Sampling Field for ConvNets, ECCV 2018 (LS-DFN). `from_author_layout` and
`to_author_layout` map tensors between the layout of the authors' code and dynk's.
"""

from dynk.sampled._author_layout import from_author_layout, to_author_layout
from dynk.sampled._dynamic_filter import (
    DYNAMIC_FILTER,
    DynamicFilterGradients,
    dynamic_filter,
    dynamic_filter_backward,
)
from dynk.sampled._ls_dfn import LS_DFN, LsDfnGradients, ls_dfn, ls_dfn_backward

__all__ = [
    "DynamicFilterGradients",
    "LsDfnGradients",
    "dynamic_filter",
    "dynamic_filter_backward",
    "from_author_layout",
    "ls_dfn",
    "ls_dfn_backward",
    "to_author_layout",
]

OPERATORS = (DYNAMIC_FILTER, LS_DFN)
