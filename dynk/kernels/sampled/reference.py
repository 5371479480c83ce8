"""The equations in NumPy, float64 inside; slow and plain, what every other backend is tested against.

Samples are formed one at a time. In `ls_dfn` all of the kernel but `across` is the same for all input channels, and is
applied to their sum here too: where infinities cancel in that sum, the two orders of summing differ. What is skipped,
a tap outside the image or a sample that "max" did not choose, contributes 0 whatever it would be multiplied by. A
sample without any tap inside the image is its attention times 0. Functions take and return float64 arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dynk._operator import Plan
from dynk.kernels.sampled.geometry import MAX, MEAN, NONE, SUM, SampleGeometry

Array = npt.NDArray[np.float64]
Inside = npt.NDArray[np.bool_]
Gradients = tuple[Array | None, ...]

# NaN and infinity are results like any other here.
_ieee = np.errstate(invalid="ignore", over="ignore", divide="ignore")


@_ieee
def dynamic_filter_forward(plan: Plan, x: Array, kernel: Array) -> Any:
    """LS-DFN Eqs. 2 and 5: sample[n,a,b,o,y,x] = sum_cij X[n,c,tap] * kernel[n,o,c,i,j,y,x], then the reduction."""
    g = SampleGeometry(*plan.geometry)
    return _reduced(g, (_dynamic_sample(g, a, b, x, kernel) for a, b in _grid(g)))


@_ieee
def dynamic_filter_backward(plan: Plan, grad_out: Array, x: Array, kernel: Array) -> tuple[Array, Array]:
    """Gradients of `dynamic_filter_forward`, by the product rule for each tap of each sample."""
    g = SampleGeometry(*plan.geometry)
    samples = (_dynamic_sample(g, a, b, x, kernel) for a, b in _grid(g))
    return _dynamic_gradients(g, grad_out, x, kernel, _first_largest(g, samples))


@_ieee
def dynamic_filter_magnitude(plan: Plan, grad_out: Array | None, x: Array, kernel: Array) -> Any:
    """Sums of absolute terms behind each result of `dynamic_filter`, of the same samples for "max"."""
    g = SampleGeometry(*plan.geometry)
    if grad_out is None:
        return (dynamic_filter_forward(plan, abs(x), abs(kernel)),)
    samples = (_dynamic_sample(g, a, b, x, kernel) for a, b in _grid(g))
    grad, choice = _doubted(g, grad_out, samples)
    return _without_nan(_dynamic_gradients(g, grad, abs(x), abs(kernel), choice))


@_ieee
def ls_dfn_forward(
    plan: Plan,
    x: Array,
    across: Array | None,
    within: Array | None,
    sample_attention: Array | None,
    position_attention: Array | None,
) -> Any:
    """LS-DFN Eqs. 4 and 5, with the channel sum S = sum_c X and B = within + 1/C at the centre.

    sample[n,a,b,o,y,x] = As * (sum_ij B[i,j] * Ap[i,j] * S[tap] + Ap[centre] * sum_c across[c] * X[c, sample's centre])
    """
    g = SampleGeometry(*plan.geometry)
    return _reduced(g, _samples(g, (x, across, within, sample_attention, position_attention)))


@_ieee
def ls_dfn_backward(
    plan: Plan,
    grad_out: Array,
    x: Array,
    across: Array | None,
    within: Array | None,
    sample_attention: Array | None,
    position_attention: Array | None,
) -> Gradients:
    """Gradients of `ls_dfn_forward`, by the product rule for each tap of each sample."""
    g = SampleGeometry(*plan.geometry)
    arrays = (x, across, within, sample_attention, position_attention)
    return _gradients(g, grad_out, arrays, _first_largest(g, _samples(g, arrays)))


@_ieee
def ls_dfn_magnitude(
    plan: Plan,
    grad_out: Array | None,
    x: Array,
    across: Array | None,
    within: Array | None,
    sample_attention: Array | None,
    position_attention: Array | None,
) -> Any:
    """Sums of absolute terms behind each result of `ls_dfn`, of the same samples for "max"."""
    g = SampleGeometry(*plan.geometry)
    arrays = (x, across, within, sample_attention, position_attention)
    absolute: Any = tuple(None if array is None else abs(array) for array in arrays)
    if grad_out is None:
        return (ls_dfn_forward(plan, *absolute),)
    grad, choice = _doubted(g, grad_out, _samples(g, arrays))
    return _without_nan(_gradients(g, grad, absolute, choice))


# ---- helpers of dynamic_filter ---------------------------------------------------------------------------------------


def _dynamic_sample(g: SampleGeometry, a: int, b: int, x: Array, kernel: Array) -> Array:
    total = np.zeros((g.N, g.O, g.H, g.W))
    for i, j, dy, dx in _taps(g, a, b):
        terms = _sum(_shifted(x, dy, dx)[:, None] * kernel[:, :, :, i, j], 2)
        total += np.where(_inside(g, dy, dx), terms, 0.0)
    return total


def _dynamic_gradients(g: SampleGeometry, grad_out: Array, x: Array, kernel: Array, choice: Any) -> tuple[Array, Array]:
    grad_x, grad_kernel = np.zeros_like(x), np.zeros_like(kernel)
    for a, b in _grid(g):
        grad, chosen = _grad_of_sample(g, a, b, grad_out, choice)
        for i, j, dy, dx in _taps(g, a, b):
            seen = (chosen & _inside(g, dy, dx))[:, :, None]
            to_x = _sum(np.where(seen, grad[:, :, None] * kernel[:, :, :, i, j], 0.0), 1)
            grad_x += _shifted(to_x, -dy, -dx)
            grad_kernel[:, :, :, i, j] += np.where(seen, grad[:, :, None] * _shifted(x, dy, dx)[:, None], 0.0)
    return grad_x, grad_kernel


# ---- helpers of ls_dfn -----------------------------------------------------------------------------------------------


def _unweighted(
    g: SampleGeometry, a: int, b: int, x: Array, across: Any, within: Any, position_attention: Any
) -> Array:
    """Return sample (a, b) before its sample attention."""
    total = np.zeros((g.N, g.O, g.H, g.W))
    channel_sum = _sum(x, 1)[:, None]
    for i, j, dy, dx in _shared_taps(g, a, b):
        weight = _position_weight(g, a, b, i, j, position_attention)
        terms = _shared_filter(g, i, j, within) * weight * _shifted(channel_sum, dy, dx)
        total += np.where(_read(g, a, b, dy, dx), terms, 0.0)
    if across is not None:
        total += np.where(_inside(g, *_centre(g, a, b)), _mixed(g, a, b, x, across, position_attention), 0.0)
    return total


def _mixed(g: SampleGeometry, a: int, b: int, x: Array, across: Array, position_attention: Any) -> Any:
    """Return the centre tap of sample (a, b), mixed by `across`."""
    mixed = _sum(across * _shifted(x, *_centre(g, a, b))[:, None], 2)
    return mixed * _position_weight(g, a, b, *_centre_tap(g), position_attention)


def _samples(g: SampleGeometry, arrays: tuple[Any, ...]) -> Iterator[Array]:
    x, across, within, sample_attention, position_attention = arrays
    return (
        _unweighted(g, a, b, x, across, within, position_attention) * _sample_weight(g, a, b, sample_attention)
        for a, b in _grid(g)
    )


def _gradients(g: SampleGeometry, grad_out: Array, arrays: tuple[Any, ...], choice: Any) -> Gradients:
    x, across, within, sample_attention, position_attention = arrays
    grads: Any = tuple(None if array is None else np.zeros_like(array) for array in arrays)
    grad_x, grad_across, grad_within, grad_sample_attention, grad_position_attention = grads
    grad_sum = np.zeros((g.N, 1, g.H, g.W))
    channel_sum = _sum(x, 1)[:, None]
    ci, cj = _centre_tap(g)
    for a, b in _grid(g):
        grad_sample, chosen = _grad_of_sample(g, a, b, grad_out, choice)
        if grad_sample_attention is not None:
            sample = _unweighted(g, a, b, x, across, within, position_attention)
            grad_sample_attention[:, :, a, b] = np.where(chosen, grad_sample * sample, 0.0)
        grad = grad_sample * _sample_weight(g, a, b, sample_attention)
        centre = _centre(g, a, b)
        centred = chosen & _inside(g, *centre)
        back = (-centre[0], -centre[1])
        for i, j, dy, dx in _shared_taps(g, a, b):
            seen = chosen & _read(g, a, b, dy, dx)
            image = _shifted(channel_sum, dy, dx)
            shared = _shared_filter(g, i, j, within)
            weighted = grad * _position_weight(g, a, b, i, j, position_attention)
            grad_sum += _shifted(_sum(np.where(seen, weighted * shared, 0.0), 1)[:, None], -dy, -dx)
            if grad_within is not None:
                grad_within[:, :, i, j] += np.where(seen, weighted * image, 0.0)
            if grad_position_attention is not None:
                terms = np.where(seen & centred, grad * shared * image, 0.0)
                grad_position_attention[:, :, i, j] += _shifted(terms, *back)
        if across is not None:
            weighted = grad * _position_weight(g, a, b, ci, cj, position_attention)
            to_x = _sum(np.where(centred[:, :, None], weighted[:, :, None] * across, 0.0), 1)
            grad_x += _shifted(to_x, *back)
            here = _shifted(x, *centre)[:, None]
            grad_across += np.where(centred[:, :, None], weighted[:, :, None] * here, 0.0)
            if grad_position_attention is not None:
                terms = np.where(centred, grad * _mixed(g, a, b, x, across, None), 0.0)
                grad_position_attention[:, :, ci, cj] += _shifted(terms, *back)
    grad_x += grad_sum
    return grads  # type: ignore[no-any-return]


def _shared_taps(g: SampleGeometry, a: int, b: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the taps that see the channel sum: all with `within`, else the centre if it has the residual, else none."""
    return (
        (i, j, dy, dx)
        for i, j, dy, dx in _taps(g, a, b)
        if g.has_within or (g.kernel_residual and (i, j) == _centre_tap(g))
    )


def _shared_filter(g: SampleGeometry, i: int, j: int, within: Any) -> Any:
    """Return what tap (i, j) of the kernel holds for all input channels alike."""
    residual = 1.0 / g.C if g.kernel_residual and (i, j) == _centre_tap(g) else 0.0
    return residual if within is None else within[:, :, i, j] + residual


def _sample_weight(g: SampleGeometry, a: int, b: int, sample_attention: Any) -> Any:
    return 1.0 if sample_attention is None else sample_attention[:, :, a, b] + float(g.sample_residual)


def _position_weight(g: SampleGeometry, a: int, b: int, i: int, j: int, position_attention: Any) -> Any:
    """Return the attention of tap (i, j), that of the pixel at the sample's centre; the raw one is 0 outside."""
    if position_attention is None:
        return 1.0
    return _shifted(position_attention[:, :, i, j], *_centre(g, a, b)) + float(g.position_residual)


def _read(g: SampleGeometry, a: int, b: int, dy: int, dx: int) -> Inside:
    """Return where the tap at (dy, dx) is read: inside the image, and with an attention that can differ from 0."""
    if g.has_position_attention and not g.position_residual:
        return _inside(g, dy, dx) & _inside(g, *_centre(g, a, b))
    return _inside(g, dy, dx)


# ---- sums, samples, taps and reductions -----------------------------------------------------------------------------


def _sum(terms: Array, axis: int) -> Any:
    """Sum over channels; pairwise, which NumPy does along contiguous terms only."""
    return np.ascontiguousarray(np.moveaxis(terms, axis, -1)).sum(-1)


def _grid(g: SampleGeometry) -> Iterator[tuple[int, int]]:
    """Yield the samples in row-major order."""
    return ((a, b) for a in range(g.samples) for b in range(g.samples))


def _centre(g: SampleGeometry, a: int, b: int) -> tuple[int, int]:
    """Return how far the centre of sample (a, b) lies from its pixel."""
    first = (g.samples - 1) // 2
    return (a - first) * g.sample_stride, (b - first) * g.sample_stride


def _centre_tap(g: SampleGeometry) -> tuple[int, int]:
    return (g.kh - 1) // 2, (g.kw - 1) // 2


def _taps(g: SampleGeometry, a: int, b: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield every tap (i, j) of sample (a, b) and how far it lies from the pixel."""
    (y, x), (ci, cj) = _centre(g, a, b), _centre_tap(g)
    for i in range(g.kh):
        for j in range(g.kw):
            yield i, j, y + (i - ci) * g.dilation_h, x + (j - cj) * g.dilation_w


def _inside(g: SampleGeometry, dy: int, dx: int) -> Inside:
    """Return the pixels from which (dy, dx) is inside the image."""
    rows, columns = np.arange(g.H) + dy, np.arange(g.W) + dx
    return ((rows >= 0) & (rows < g.H))[:, None] & ((columns >= 0) & (columns < g.W))


def _shifted(image: Array, dy: int, dx: int) -> Array:
    """Return the image as seen from each pixel at (dy, dx), 0 outside."""
    H, W = image.shape[-2:]
    out = np.zeros_like(image)
    if abs(dy) < H and abs(dx) < W:
        to = slice(max(0, -dy), H - max(0, dy)), slice(max(0, -dx), W - max(0, dx))
        seen = slice(max(0, dy), H - max(0, -dy)), slice(max(0, dx), W - max(0, -dx))
        out[(..., *to)] = image[(..., *seen)]
    return out


def _reduced(g: SampleGeometry, samples: Iterator[Array]) -> Any:
    if g.reduce == NONE:
        return np.stack(list(samples), 1).reshape(g.N, g.samples, g.samples, g.O, g.H, g.W)
    out = next(samples).copy()
    for sample in samples:
        if g.reduce == MAX:
            out = np.where(_larger(sample, out), sample, out)
        else:
            out += sample
    return out / g.samples**2 if g.reduce == MEAN else out


def _larger(sample: Array, best: Array) -> Any:
    """Return where a later sample replaces the best so far: NaN wins, and the first of equals, as in numpy.argmax."""
    return (sample > best) | (np.isnan(sample) & ~np.isnan(best))


def _first_largest(g: SampleGeometry, samples: Iterator[Array]) -> Any:
    """Return the number of the sample that "max" chooses for each output; None for the other reductions."""
    if g.reduce != MAX:
        return None
    best = next(samples)
    choice = np.zeros(best.shape, np.int64)
    for number, sample in enumerate(samples, 1):
        larger = _larger(sample, best)
        best, choice = np.where(larger, sample, best), np.where(larger, number, choice)
    return choice


def _doubted(g: SampleGeometry, grad_out: Array, samples: Iterator[Array]) -> tuple[Array, Any]:
    """Return the absolute gradient and the choice of "max", where samples that are not finite leave both in doubt.

    Such an output may then depend on any of its samples, by any amount: its choice is -1, its gradient infinite.
    """
    if g.reduce != MAX:
        return abs(grad_out), None
    every = list(samples)
    finite = np.isfinite(every).all(0)
    return np.where(finite, abs(grad_out), np.inf), np.where(finite, _first_largest(g, iter(every)), -1)


def _without_nan(magnitudes: Gradients) -> Any:
    """Return magnitudes with infinity for 0 * infinity."""
    return tuple(None if m is None else np.where(np.isnan(m), np.inf, m) for m in magnitudes)


def _grad_of_sample(g: SampleGeometry, a: int, b: int, grad_out: Array, choice: Any) -> tuple[Array, Any]:
    """Return the gradient with respect to sample (a, b), and where the sample takes part."""
    everywhere = np.ones((g.N, g.O, g.H, g.W), np.bool_)
    if g.reduce == NONE:
        return grad_out[:, a, b], everywhere
    if g.reduce == MAX:
        return grad_out, (choice == a * g.samples + b) | (choice < 0)
    return grad_out / (1 if g.reduce == SUM else g.samples**2), everywhere
