"""The pictures of the operators' pages, drawn from what dynk computes.

Which pixels an output reads, and with which weight, is the gradient of this output with respect to the image.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

import dynk

Array = NDArray[np.float64]

SIZE = 13  # of an image
AT = (6, 6)  # the output that is looked at
_RNG_SEED = 3


def svg(name: str) -> str:
    """Return one of PICTURES as SVG text."""
    # The reference: nothing is compiled for a picture.
    with dynk.backend("reference"), rc_context({"svg.hashsalt": "dynk", "font.size": 9}):
        figure = PICTURES[name](np.random.default_rng(_RNG_SEED))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


# ---- parts -----------------------------------------------------------------------------------------------------------


def _panels(titles: list[str], height: float = 2.1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(height * 0.92 * len(titles), height), layout="constrained", facecolor="white")
    row = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, row


def _show(axes: Any, values: Array, marked: list[tuple[int, int]] = [], numbers: bool = False) -> None:  # noqa: B006
    """Draw an array as coloured squares, some of them framed: what is 0 is white, above it red and below blue."""
    most = np.abs(values).max() or 1
    axes.pcolormesh(values, cmap="RdBu_r", vmin=-1.2 * most, vmax=1.2 * most, edgecolors="#cccccc", linewidth=0.3)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    for y, x in marked:
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="black", linewidth=1.6))
    if numbers:
        for (y, x), value in np.ndenumerate(values):
            axes.text(x + 0.5, y + 0.5, f"{value:z.1f}", ha="center", va="center", fontsize=7)


def _one_hot(shape: tuple[int, ...], at: tuple[int, int]) -> Array:
    grad_out = np.zeros(shape)
    grad_out[(..., *at)] = 1
    return grad_out


# ---- the operators ---------------------------------------------------------------------------------------------------


def _ddf(rng: np.random.Generator) -> Figure:
    x = np.zeros((1, 1, SIZE, SIZE))
    spatial = dynk.filter_norm(rng.standard_normal((1, 1, 3, 3, SIZE, SIZE)), axes=(2, 3))
    channel = dynk.filter_norm(rng.standard_normal((1, 1, 3, 3)), axes=(2, 3))
    figure, panels = _panels(["spatial filter\nof this pixel", "channel filter", "mul: their product", "reads"])
    own = spatial[0, 0, :, :, *AT]
    for axes, values in zip(panels[:3], (own, channel[0, 0], own * channel[0, 0]), strict=True):
        _show(axes, values, numbers=True)
    grad = dynk.ddf_backward(_one_hot(x.shape, AT), x, spatial, channel, needs=["x"])
    _show(panels[3], grad.x[0, 0], [AT])
    return figure


def _ddf_upsample(rng: np.random.Generator) -> Figure:
    size, scale = 5, 2
    x = np.zeros((1, 1, size, size))
    spatial = dynk.filter_norm(rng.standard_normal((1, 1, scale, scale, 3, 3, size, size)), axes=(4, 5))
    points = [(4 + p, 4 + q) for p in range(scale) for q in range(scale)]
    figure, panels = _panels(["output", *(f"sub-pixel ({y - 4}, {x - 4}) reads" for y, x in points)])
    colours = np.zeros((scale * size, scale * size))
    _show(panels[0], colours, points)
    for axes, at in zip(panels[1:], points, strict=True):
        grad_out = _one_hot((1, 1, scale * size, scale * size), at)
        grad = dynk.ddf_upsample_backward(grad_out, x, spatial, None, scale=scale, needs=["x"])
        _show(axes, grad.x[0, 0], [(2, 2)])
    return figure


def _filter_norm(rng: np.random.Generator) -> Figure:
    raw = rng.uniform(0, 3, (2, 3, 3)) * np.array([1.0, 0.2])[:, None, None] + 1
    done = dynk.filter_norm(raw, axes=(1, 2))
    figure, panels = _panels(["a filter", "normalised", "a flatter filter", "normalised"])
    for axes, values in zip(panels, (raw[0], done[0], raw[1], done[1]), strict=True):
        _show(axes, values, numbers=True)
    return figure


def _dynamic_filter(rng: np.random.Generator) -> Figure:
    x = np.zeros((1, 1, SIZE, SIZE))
    kernel = rng.standard_normal((1, 1, 1, 3, 3, SIZE, SIZE))
    other = (3, 9)
    figure, panels = _panels(["one pixel reads", "another reads", "with 3 x 3 samples"])
    cases = ((AT, {}), (other, {}), (AT, {"samples": 3, "sample_stride": 4}))
    for axes, (at, options) in zip(panels, cases, strict=True):
        grad = dynk.dynamic_filter_backward(_one_hot(x.shape, at), x, kernel, needs=["x"], **options)
        _show(axes, grad.x[0, 0], [at])
    return figure


def _ls_dfn(rng: np.random.Generator) -> Figure:
    x = np.zeros((1, 1, SIZE, SIZE))
    within = rng.standard_normal((1, 1, 3, 3, SIZE, SIZE))
    attention = np.exp(-rng.uniform(0, 3, (1, 1, 3, 3, SIZE, SIZE)))
    options: dict[str, Any] = {"sample_stride": 4, "kernel_residual": False, "attention_residual": False}
    centres = [(y, x) for y in (2, 6, 10) for x in (2, 6, 10)]
    figure, panels = _panels(["the kernel of a pixel", "around 3 x 3 samples", "with attention to samples"])
    cases = ((1, None, [AT]), (3, None, centres), (3, attention, centres))
    for axes, (samples, weights, marked) in zip(panels, cases, strict=True):
        grad_out = _one_hot(x.shape, AT)
        grad = dynk.ls_dfn_backward(grad_out, x, None, within, weights, samples=samples, needs=["x"], **options)
        _show(axes, grad.x[0, 0], marked)
    return figure


def _adaptive_dilation_conv2d(rng: np.random.Generator) -> Figure:
    x, weight = np.zeros((1, 1, SIZE, SIZE)), 1 + rng.uniform(0, 1, (1, 1, 3, 3))
    figure, panels = _panels(["share 1 of dilation 1", "1 of dilation 2", "1 of dilation 4", "a mixture"])
    for axes, share in zip(panels, ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.3, 0.2]), strict=True):
        shares = np.broadcast_to(np.reshape(share, (1, 3, 1, 1)), (1, 3, SIZE, SIZE)).astype(float)
        grad_out = _one_hot(x.shape, AT)
        grad = dynk.adaptive_dilation_conv2d_backward(grad_out, x, weight, shares, needs=["x"])
        _show(axes, grad.x[0, 0], [AT])
    return figure


def _gumbel_softmax(rng: np.random.Generator) -> Figure:
    logits = np.log(np.array([0.1, 0.2, 0.7]))[:, None] + np.zeros((3, 12))
    figure, panels = _panels(["no noise", "tau = 2", "tau = 0.5", "hard"], 1.6)
    cases: list[dict[str, Any]] = [{}, {"seed": 0, "tau": 2.0}, {"seed": 0, "tau": 0.5}, {"seed": 0, "hard": True}]
    for axes, options in zip(panels, cases, strict=True):
        _show(axes, dynk.gumbel_softmax(logits, axis=0, **options))
        axes.set_xlabel("pixels", fontsize=8)
    panels[0].set_ylabel("candidates", fontsize=8)
    return figure


def _deformable_conv2d(rng: np.random.Generator) -> Figure:
    x, scope = np.zeros((1, 1, SIZE, SIZE)), 1 + rng.uniform(0, 1, (1, 1, 4, 4))
    moved = rng.uniform(-1.2, 1.2, (2, 1, 1, 3, 3, 2, SIZE, SIZE))
    kernel = np.array([[[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]])
    figure, panels = _panels(["no offsets", "kernel offsets:\nother weights", "data offsets:\nother pixels", "both"])
    cases = (
        (kernel, None, None),
        (scope, moved[0], None),
        (kernel, None, 2 * moved[1]),
        (scope, moved[0], 2 * moved[1]),
    )
    for axes, (weight, of_kernel, of_data) in zip(panels, cases, strict=True):
        arrays = (x, weight, of_kernel, of_data)
        grad = dynk.deformable_conv2d_backward(_one_hot(x.shape, AT), *arrays, padding=1, needs=["x"])
        _show(axes, grad.x[0, 0], [AT])
    return figure


def _sample_kernel(rng: np.random.Generator) -> Figure:
    scope = np.exp(-np.hypot(*(np.mgrid[:5, :5] - 2.0)))
    offsets = rng.uniform(-0.8, 0.8, (1, 1, 3, 3, 2))
    points = np.mgrid[:3, :3].transpose(1, 2, 0) + 1
    figure, panels = _panels(
        ["scope 5 x 5, points of\n3 x 3 taps", "sampled", "the points moved\nby offsets", "sampled"]
    )
    for (place, result), moved in zip((panels[:2], panels[2:]), (np.zeros_like(offsets), offsets), strict=True):
        _show(place, scope)
        y, x = (points + moved[0, 0]).reshape(-1, 2).T + 0.5  # the centre of a square
        place.plot(x, y, "k.")
        _show(result, dynk.sample_kernel(scope[None, None], moved)[0, 0, 0], numbers=True)
    return figure


PICTURES: dict[str, Callable[[np.random.Generator], Figure]] = {
    "ddf": _ddf,
    "ddf_upsample": _ddf_upsample,
    "filter_norm": _filter_norm,
    "dynamic_filter": _dynamic_filter,
    "ls_dfn": _ls_dfn,
    "adaptive_dilation_conv2d": _adaptive_dilation_conv2d,
    "gumbel_softmax": _gumbel_softmax,
    "deformable_conv2d": _deformable_conv2d,
    "sample_kernel": _sample_kernel,
}
