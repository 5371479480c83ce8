"""Between the layout of the LS-DFN authors' code and dynk's, for arrays of any library."""

from __future__ import annotations

import math
from typing import Any

from dynk import _checks


def from_author_layout(array: Any, *dims: int) -> Any:
    """Return a tensor of the LS-DFN authors' code, NHWC with all else in its last axis, as dynk takes it.

    ==================  ======================  ============  ==================================
    argument            authors' shape          `dims`        dynk's shape
    ==================  ======================  ============  ==================================
    x                   [N, H, W, C]            C             (N, C, H, W)
    across              [N, H, W, O*C]          O, C          (N, O, C, H, W)
    within              [N, H, W, O*kh*kw]      O, kh, kw     (N, O, kh, kw, H, W)
    position_attention  [N, H, W, O*kh*kw]      O, kh, kw     (N, O, kh, kw, H, W)
    samples             [N, H, W, s*s*O]        s, s, O       (N, s, s, O, H, W), `reduce="none"`
    ==================  ======================  ============  ==================================

    The authors multiply by 1 + attention, 1 over the input channels is added at the centre of the kernel, and the mean
    is taken over the samples: `ls_dfn` with both residuals, which are its defaults, and `reduce="mean"`.

    Parameters
    ----------
    array : array [N, H, W, prod(dims)]
        Of any library whose arrays have `reshape` and `swapaxes`: NumPy, CuPy, PyTorch, JAX.
    *dims : int
        What the last axis is made of, outermost first.

    Returns
    -------
    array (N, *dims, H, W)
        Of the same library; a view where it gives one.

    Raises
    ------
    ValueError
        If the array has no four axes or its last is no product of `dims`.
    TypeError
        If `dims` are no ints.

    See Also
    --------
    to_author_layout : the way back.

    Examples
    --------
    >>> import numpy as np
    >>> from dynk import sampled
    >>> author_across = np.zeros((2, 7, 5, 4 * 3))
    >>> sampled.from_author_layout(author_across, 4, 3).shape
    (2, 4, 3, 7, 5)
    """
    for dim in dims:
        _checks.integer("from_author_layout", "dims", dim)
    shape = tuple(array.shape)
    if len(shape) != 4 or shape[3] != math.prod(dims):
        msg = f"from_author_layout: array must have shape [N, H, W, {'*'.join(map(str, dims)) or 1}], got {list(shape)}"
        raise ValueError(msg)
    N, H, W, _ = shape
    return array.swapaxes(1, 3).swapaxes(2, 3).reshape(N, *dims, H, W)


def to_author_layout(array: Any) -> Any:
    """Return an array of dynk's layout as the LS-DFN authors' code has it: the way back from `from_author_layout`.

    Parameters
    ----------
    array : array (N, *dims, H, W)
        Of any library whose arrays have `reshape` and `swapaxes`.

    Returns
    -------
    array [N, H, W, prod(dims)]
        Of the same library; a view where it gives one.

    Raises
    ------
    ValueError
        If the array has fewer than three axes.

    Examples
    --------
    >>> import numpy as np
    >>> from dynk import sampled
    >>> samples = np.zeros((2, 5, 5, 4, 7, 6))  # of reduce="none"
    >>> sampled.to_author_layout(samples).shape
    (2, 7, 6, 100)
    """
    shape = tuple(array.shape)
    if len(shape) < 3:
        msg = f"to_author_layout: array must have shape (N, *dims, H, W), got {shape}"
        raise ValueError(msg)
    N, *dims, H, W = shape
    return array.reshape(N, math.prod(dims), H, W).swapaxes(2, 3).swapaxes(1, 3)
