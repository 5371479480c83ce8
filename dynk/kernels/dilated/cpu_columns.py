"""Columns: the image as each tap sees it at the pixels of a tile, mixed over the dilations.

Row c * T + t holds tap t of channel c, a panel of VECTORS vectors of pixels after another.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing
from dynk.kernels.common.products import place
from dynk.kernels.dilated.cpu_tiles import masks_of, starts_of


@borrowing
def form_columns(tile, x, channel, channels, columns, panel, g):  # type: ignore[no-untyped-def]
    """Form the columns of some channels from `channel` on, in panels of `panel` vectors."""
    for v in range(tile.vectors):
        for i in range(g.kh):
            for j in range(g.kw):
                for d in range(0, g.D - 2, 3):
                    _mix(tile, v, i, j, x, channel, channels, columns, panel, (d, d + 1, d + 2), g)
                for d in range(g.D // 3 * 3, g.D):
                    _mix(tile, v, i, j, x, channel, channels, columns, panel, (d,), g)
        if tile.wrong[v] != 0:
            nan = vector.zeros(columns, 0)
            nan = vector.div(nan, nan)
            for k in range(channels * g.kh * g.kw):
                to = place(k, v, channels * g.kh * g.kw, panel, columns)
                vector.store_where(columns, to, 1, nan, tile.wrong[v])


@borrowing
def _mix(tile, v, i, j, x, channel, channels, columns, panel, dilations, g):  # type: ignore[no-untyped-def]
    """Add what some dilations see through tap (i, j); the first of them set it."""
    size, plane, taps = vector.lanes(columns), g.H * g.W, g.kh * g.kw
    masks = masks_of(tile, v, i, j, dilations, g)
    starts = starts_of(tile, (tile.n * g.C + channel) * plane, v, i, j, dilations, columns, g)
    shares = vector.load(tile.shares, vector.spaced(v * g.D * size, size, dilations))
    shares = vector.where(masks, shares, vector.zeros(columns, dilations))
    to, step = place(i * g.kw + j, v, channels * taps, panel, columns), taps * panel * size
    flat, anchors = tile.flat, tile.anchors  # passing the tile in a loop would cost more than the loop
    at = 0
    for _ in range(channels):
        here = (to,)
        if flat:
            values = vector.load_where(x, vector.shift(starts, at), 1, masks)
        else:
            values = vector.gather(x, vector.shift(starts, at), anchors, v * size, masks)
        total = vector.zeros(columns, here)
        if dilations[0] > 0:
            total = vector.load(columns, here)
        vector.store(columns, here, vector.dot(values, shares, total))
        at, to = vector.opaque(at + plane), vector.opaque(to + step)
