"""How the kernels of `filter_norm` walk its filters.

A *run* is up to RUN filters that are neighbours along the last dimension, the unit of work. It is gone through by the
*block* of BLOCK filters, side by side in vectors where they are so in memory, else in rows of float64.
"""

from __future__ import annotations

from dynk.kernels.common.compile import borrowing
from dynk.kernels.decoupled.geometry import MAX_NORM_DIMS, NormGeometry

BLOCK = 64
RUN = 4 * BLOCK
LAST = MAX_NORM_DIMS - 1
# Positions in the geometry array; the first of MAX_NORM_DIMS where there is one for each dimension.
FILTERS, KH, KW, F_TAPS, SCALE_TAPS, SHIFT_TAPS, HAS_SCALE, HAS_SHIFT, EXTENT, F, SCALE, SHIFT = (
    NormGeometry._fields.index(name)
    for name in (
        "filters",
        "kh",
        "kw",
        "f_kh",
        "scale_kh",
        "shift_kh",
        "has_scale",
        "has_shift",
        "extent_0",
        "f_0",
        "scale_0",
        "shift_0",
    )
)


@borrowing
def is_kept(geometry, operand, d):  # type: ignore[no-untyped-def]
    """Return whether an operand varies along dimension d; its gradient sums over the others."""
    return geometry[operand + d] != 0 or geometry[EXTENT + d] == 1


@borrowing
def run_length(geometry):  # type: ignore[no-untyped-def]
    return min(RUN, geometry[EXTENT + LAST])


@borrowing
def runs(geometry, operand, kept):  # type: ignore[no-untyped-def]
    """Return the number of runs along the dimensions that an operand keeps, or along the others."""
    runs = 1 if geometry[FILTERS] > 0 else 0
    for d in range(MAX_NORM_DIMS):
        if is_kept(geometry, operand, d) == kept:
            extent = geometry[EXTENT + d]
            runs *= (extent + RUN - 1) // RUN if d == LAST else extent
    return runs


@borrowing
def locate(kept, summed, operand, geometry):  # type: ignore[no-untyped-def]
    """Return the offsets into f, scale and shift where a run starts, and its length."""
    at_f, at_scale, at_shift, count = 0, 0, 0, 1
    for back in range(MAX_NORM_DIMS):
        d = LAST - back
        extent = geometry[EXTENT + d]
        if extent == 1:
            continue
        steps = (extent + RUN - 1) // RUN if d == LAST else extent
        if is_kept(geometry, operand, d):
            index, kept = kept % steps, kept // steps
        else:
            index, summed = summed % steps, summed // steps
        if d == LAST:
            index *= RUN
            count = min(RUN, extent - index)
        at_f += index * geometry[F + d]
        at_scale += index * geometry[SCALE + d]
        at_shift += index * geometry[SHIFT + d]
    return at_f, at_scale, at_shift, count


@borrowing
def parameter_taps(operand):  # type: ignore[no-untyped-def]
    """Return where the geometry has the steps of scale or shift from tap to tap."""
    return SCALE_TAPS if operand == SCALE else SHIFT_TAPS
