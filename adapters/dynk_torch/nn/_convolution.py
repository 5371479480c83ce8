"""What the modules know of convolutions: pairs of ints, and which convolution a dynamic filter can stand in for."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

Pair = int | tuple[int, int]


def pair(value: Pair) -> tuple[int, int]:
    """Return an (h, w) pair of an int or a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def check_divides(module: str, name: str, value: int, channels: int) -> None:
    """Refuse a number of blocks that does not divide the channels."""
    if value < 1 or channels % value:
        msg = f"{module}: {name} must divide channels = {channels}, got {value}"
        raise ValueError(msg)


def check_choice(module: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is none of the choices."""
    if value not in choices:
        msg = f"{module}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        raise ValueError(msg)


def replaceable(conv: nn.Conv2d) -> bool:
    """Return whether a convolution has as many outputs as inputs, several taps and an output of the input's size."""
    kernel, dilation = cast("tuple[int, int]", conv.kernel_size), cast("tuple[int, int]", conv.dilation)
    same = tuple((k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True))
    return (
        conv.in_channels == conv.out_channels
        and kernel != (1, 1)
        and all(k % 2 for k in kernel)
        and conv.padding_mode == "zeros"
        and conv.padding in (same, "same")
    )


def check_replaceable(module: str, conv: nn.Conv2d) -> None:
    """Refuse a convolution that a module cannot stand in for."""
    if not replaceable(conv):
        msg = (
            f"{module}: conv must have as many outputs as inputs, an odd kernel of several taps and zero padding that "
            f"keeps the size, got {conv}"
        )
        raise ValueError(msg)


def with_bias(out: Tensor, bias: Tensor | None) -> Tensor:
    """Add a number per channel in the dtype of the output, which autocast may have chosen."""
    return out if bias is None else out + bias.to(out.dtype)[:, None, None]


def same_conv(inputs: int, outputs: int, size: Pair, **made: Any) -> nn.Conv2d:
    """Return a convolution whose output has the size of its input."""
    height, width = pair(size)
    return nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2), **made)


def zero_bias(channels: int, **made: Any) -> nn.Parameter:
    """Return a bias that starts at 0."""
    return nn.Parameter(torch.zeros(channels, **made))
