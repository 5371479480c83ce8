"""Outputs of the upsampling filter taken apart: a plane for each sub-pixel, in which anchors stand side by side.

The gradients read an output as often as its filter has taps. As the outputs are interleaved, each of those reads would
gather; so a task first copies what it needs of a few channels, and then reads vectors as without upsampling.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined


@inlined
def room_for(source, number, margin, span, g):  # type: ignore[no-untyped-def]
    """Return room for [channel][sub-pixel][span] elements, with zeros on both sides."""
    elements = number * g.scale * g.scale * span
    room = np.empty(elements + 2 * margin, source.dtype)
    for k in range(margin):
        room[k] = room[margin + elements + k] = 0
    return room


@borrowing
def take_apart(source, image, number, first, last, room, margin, span, g):  # type: ignore[no-untyped-def]
    """Copy the outputs of the anchors first <= p < last, in the order of rows, of some channels."""
    scale, size = g.scale, vector.lanes(source)
    for line in range(number * scale):  # the sub-pixels of a channel that share their rows
        channel, sub_row, p = line // scale, line % scale, first
        while p < last:
            a, b = p // g.Wo, p % g.Wo
            count = min(last - p, g.Wo - b)
            at = (((image + channel) * g.Ho + a) * scale + sub_row) * scale * g.Wo + b * scale
            to = margin + line * scale * span + p - first
            i = 0
            while scale == 2 and i + size <= count:
                low, high = vector.load(source, at + 2 * i), vector.load(source, at + 2 * i + size)
                vector.store(room, to + i, vector.unzipped(low, high, 0))
                vector.store(room, to + span + i, vector.unzipped(low, high, 1))
                i += size
            while i < count:
                mask = vector.between(0, count - i)
                for q in range(scale):
                    values = vector.load_where(source, at + i * scale + q, scale, mask)
                    vector.store_where(room, to + q * span + i, 1, values, mask)
                i += size
            p += count
