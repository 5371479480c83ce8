"""What makes the deformable operators what they are: other ways to the same results, torchvision's rules, borders."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest
import torch
from deformable_cases import composed_results, eighths, nan_taps, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from lanes import Lane, bits, each_lane_of
from torch.nn import functional

from dynk.decoupled import DDF
from dynk.deformable import DEFORMABLE_CONV2D, SAMPLE_KERNEL
from dynk.testing import Call, assert_close, rounded, values

each_lane = each_lane_of(DEFORMABLE_CONV2D)


def assert_results(lane: Lane, call: Call, grad_out: Any, expected: tuple[Any, ...]) -> None:
    """Assert that the output and the gradients on a lane are those expected, within the bound of the reference."""
    magnitudes = call.expected_forward()[1], *call.expected_backward(grad_out)[1]
    results = lane.forward(call), *lane.backward(call, grad_out)
    for name, result, want, terms in zip(("out", *call.op.arrays), results, expected, magnitudes, strict=True):
        assert result is want is None or assert_close(result, want, terms, what=name) is None


# ---- a second implementation -----------------------------------------------------------------------------------------

# Batch, channels, outputs, image, scope, kernel, blocks of kernel and data offsets (0: none), mask and options.
FORMS: dict[str, tuple[Any, ...]] = {
    "DK, depth-wise": (2, 6, 6, (7, 9), (4, 4), (3, 3), 2, 0, False, {"padding": 1, "groups": 6}),
    "DK, several outputs": (1, 4, 8, (6, 7), (3, 5), (2, 2), 1, 0, False, {"padding": (0, 2), "groups": 4}),
    "DK, zeros outside": (1, 4, 4, (6, 7), (4, 3), (3, 3), 4, 0, False, {"groups": 4, "kernel_boundary": "zeros"}),
    "DK, dense": (2, 5, 7, (7, 8), (4, 4), (3, 3), 1, 0, False, {"padding": 1, "stride": (1, 2)}),
    "DK, grouped": (1, 6, 4, (7, 8), (2, 3), (3, 2), 3, 0, False, {"padding": 2, "groups": 2, "dilation": (2, 1)}),
    "DK, a scope of one": (1, 2, 3, (4, 5), (1, 1), (1, 1), 1, 0, False, {}),
    "DK, 72 taps": (1, 2, 2, (10, 9), (9, 8), (9, 8), 1, 0, False, {"padding": 4}),
    "DK, 72 taps, depth-wise": (1, 4, 4, (10, 9), (9, 8), (9, 8), 1, 0, False, {"padding": 4, "groups": 4}),
    "DK, depth-wise, vectors of channels": (
        2,
        70,
        70,
        (9, 31),
        (4, 4),
        (3, 3),
        1,
        0,
        False,
        {"padding": 1, "groups": 70},
    ),
    "DK, depth-wise, blocks of 35 channels": (
        *(1, 70, 70, (8, 9), (5, 3), (2, 3), 2, 0, False),
        {"padding": (2, 1), "dilation": (1, 2), "groups": 70, "kernel_boundary": "zeros"},
    ),
    "DK, depth-wise, 260 channels": (
        *(1, 260, 260, (13, 11), (3, 3), (3, 3), 1, 0, False),
        {"padding": (3, 0), "stride": (2, 2), "groups": 260},
    ),
    "DCN": (2, 4, 5, (6, 9), (3, 3), (3, 3), 0, 1, False, {"padding": 1}),
    "DCN, 21 channels": (2, 21, 5, (4, 19), (3, 3), (3, 3), 0, 1, False, {"padding": 1}),
    "DCN v2, 20 channels in a group": (1, 40, 4, (6, 17), (2, 3), (2, 3), 0, 2, True, {"padding": 1, "groups": 2}),
    "DCN v2": (2, 6, 4, (8, 9), (3, 2), (3, 2), 0, 3, True, {"padding": (1, 0), "stride": (2, 1), "groups": 2}),
    "DCN, depth-wise": (1, 4, 4, (8, 9), (3, 3), (3, 3), 0, 2, True, {"padding": 2, "dilation": 2, "groups": 4}),
    "mask alone": (2, 4, 3, (5, 6), (2, 2), (2, 2), 0, 2, "alone", {}),
    "both, depth-wise": (1, 4, 4, (6, 7), (4, 4), (3, 3), 1, 2, True, {"padding": 1, "groups": 4}),
    "both, dense": (2, 4, 3, (6, 7), (3, 4), (2, 3), 2, 1, True, {"padding": 1, "kernel_boundary": "zeros"}),
}


def call_of(form: str, dtype: str) -> Call:
    N, C, O, (H, W), scope, kernel, Gk, Gd, mask, options = FORMS[form]  # noqa: E741
    *_, stride, padding, dilation, groups, _ = (None, *DEFORMABLE_CONV2D.canonical(**options))
    pixels = tuple(
        (extent + 2 * pad - step * (k - 1) - 1) // by + 1
        for extent, pad, step, k, by in zip((H, W), padding, dilation, kernel, stride, strict=True)
    )
    arrays = (
        normal(dtype, N, C, H, W),
        normal(dtype, O, C // groups, *scope),
        eighths(dtype, N, Gk, *kernel, 2, *pixels) if Gk else None,
        eighths(dtype, N, Gd, *kernel, 2, *pixels, seed=1) if Gd and mask != "alone" else None,
        normal(dtype, N, Gd, *kernel, *pixels) if mask else None,
        normal(dtype, O),
    )
    return Call(DEFORMABLE_CONV2D, arrays, options)


@each_lane
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_pytorch_composes(lane: Lane, form: str) -> None:
    """Output and all gradients, also of points on positions, where derivatives are right-sided, and far outside."""
    call = call_of(form, lane.dtype)
    grad_out = normal(lane.dtype, *call.plan.out_shape, seed=2)
    assert_results(lane, call, grad_out, composed_results(call, grad_out))


# ---- torchvision.ops.deform_conv2d -----------------------------------------------------------------------------------


def of_torchvision(dtype: str, batch: int, *, modulated: bool = True, contiguous: bool = True) -> Call:
    """Return a call in which everything is asymmetric, from tensors in torchvision's layout."""
    channels, blocks, (kh, kw), pixels = 6, 3, (3, 2), (2, 3)
    offset = normal(dtype, batch, 2 * blocks * kh * kw, *pixels)
    mask = normal(dtype, batch, blocks * kh * kw, *pixels)
    arrays = [
        normal(dtype, batch, channels, 5, 4),
        normal(dtype, 2, channels // 2, kh, kw),
        None,
        offset.reshape(batch, blocks, kh, kw, 2, *pixels),
        mask.reshape(batch, blocks, kh, kw, *pixels) if modulated else None,
        normal(dtype, 2),
    ]
    if not contiguous:
        arrays = [None if a is None else np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1) for a in arrays]
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
    return Call(DEFORMABLE_CONV2D, tuple(arrays), options)


def loops(call: Call) -> Any:
    """Return the output by the loops of torchvision's rules over its own flat layout."""
    x, weight, _, data_offset, mask, bias = (None if a is None else values(a) for a in call.arrays)
    _, stride, pad, dilation, groups, _ = DEFORMABLE_CONV2D.canonical(**call.options)
    O, per_group, kh, kw = weight.shape  # noqa: E741
    out = np.zeros(call.plan.out_shape)
    blocks = data_offset.shape[1]
    offset = data_offset.reshape(len(x), 2 * blocks * kh * kw, *out.shape[2:])
    flat = None if mask is None else mask.reshape(len(x), blocks * kh * kw, *out.shape[2:])
    channels_per_block = x.shape[1] // blocks
    for n, o, y, x_ in np.ndindex(out.shape):
        out[n, o, y, x_] = bias[o]
        for c, i, j in itertools.product(range(per_group), range(kh), range(kw)):
            channel = o // (O // groups) * per_group + c
            tap = (channel // channels_per_block * kh + i) * kw + j
            row = y * stride[0] - pad[0] + i * dilation[0] + offset[n, 2 * tap, y, x_]
            column = x_ * stride[1] - pad[1] + j * dilation[1] + offset[n, 2 * tap + 1, y, x_]
            m = 1.0 if flat is None else flat[n, tap, y, x_]
            out[n, o, y, x_] += weight[o, c, i, j] * m * between(x[n, channel], row, column)
    return out


def between(image: Any, row: float, column: float) -> float:
    """Return torchvision's bilinear value."""
    height, width = image.shape
    if row <= -1 or row >= height or column <= -1 or column >= width:
        return 0.0
    top, left = int(np.floor(row)), int(np.floor(column))
    total = 0.0
    for y, x in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= y < height and 0 <= x < width:
            total += (1 - abs(row - y)) * (1 - abs(column - x)) * image[y, x]
    return total


@each_lane
@pytest.mark.parametrize("batch", [0, 1, 33])
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_data_offsets_are_those_of_torchvision(lane: Lane, batch: int, modulated: bool, contiguous: bool) -> None:
    call = of_torchvision(lane.dtype, batch, modulated=modulated, contiguous=contiguous)
    out = lane.forward(call)
    assert_close(out, loops(call), call.expected_forward()[1])
    grad_out = normal(lane.dtype, *out.shape, seed=3)
    for result in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert result[0] is result[1] is None or assert_close(*result) is None


# ---- convolutions ----------------------------------------------------------------------------------------------------


def convolution(library: str, x: Any, weight: Any, bias: Any, options: dict[str, Any]) -> Any:
    """Return the convolution of a framework, float64."""
    _, stride, padding, dilation, groups, _ = DEFORMABLE_CONV2D.canonical(**options)
    if library == "torch":
        tensors = map(torch.from_numpy, (x, weight, bias))
        return functional.conv2d(*tensors, stride, padding, dilation, groups).numpy()
    with jax.enable_x64(True):
        sides = [(p, p) for p in padding]
        out = lax.conv_general_dilated(x, weight, stride, sides, rhs_dilation=dilation, feature_group_count=groups)
        return np.asarray(out) + bias[:, None, None]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Draw shapes and options of a convolution with everything asymmetric, and of offsets for it."""
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    C, O = 4, groups * draw(st.integers(1, 5))  # noqa: E741
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pair = st.tuples(st.integers(1, 2), st.integers(1, 3))
    stride, dilation, padding = draw(pair), draw(pair), draw(st.tuples(st.integers(0, 2), st.integers(0, 3)))
    image = tuple(d * (k - 1) + draw(st.integers(1, 18)) for d, k in zip(dilation, kernel, strict=True))
    pixels = tuple(
        (extent + 2 * pad - d * (k - 1) - 1) // s + 1
        for extent, pad, d, k, s in zip(image, padding, dilation, kernel, stride, strict=True)
    )
    batch = draw(st.integers(1, 2))
    blocks = draw(st.sampled_from([1, 2, 4]))
    shapes = {
        "x": (batch, C, *image),
        "weight": (O, C // groups, *kernel),
        "offset": (batch, blocks, *kernel, 2, *pixels),
        "bias": (O,),
    }
    return shapes, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@each_lane
@pytest.mark.parametrize("library", ["torch", "jax"])
@settings(max_examples=15)  # JAX compiles each
@given(drawn=convolutions(), zeros=st.sampled_from(["kernel", "data", "both", "none"]))
def test_without_offsets_it_is_a_convolution(lane: Lane, library: str, drawn: Any, zeros: str) -> None:
    shapes, options = drawn
    x, weight, bias = (normal(lane.dtype, *shapes[name]) for name in ("x", "weight", "bias"))
    zero = rounded(np.zeros(shapes["offset"]), lane.dtype)
    offsets = (zero if zeros in ("kernel", "both") else None), (zero if zeros in ("data", "both") else None)
    call = Call(DEFORMABLE_CONV2D, (x, weight, *offsets, None, bias), options)
    expected = convolution(library, *map(values, (x, weight, bias)), options)
    assert_close(lane.forward(call), expected, call.expected_forward()[1])


@each_lane
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-1, 1), (1, -1)])
def test_a_constant_offset_of_whole_positions_takes_another_kernel(
    lane: Lane, groups: int, shift: tuple[int, int]
) -> None:
    scope = normal(lane.dtype, 8, 4 // groups, 5, 5)
    x, bias = normal(lane.dtype, 2, 4, 7, 21), rounded(np.zeros(8), lane.dtype)
    offset = np.zeros((2, 1, 3, 3, 2, 7, 21))
    offset[:, :, :, :, 0], offset[:, :, :, :, 1] = shift
    options = {"padding": 1, "groups": groups}
    call = Call(DEFORMABLE_CONV2D, (x, scope, rounded(offset, lane.dtype), None, None, bias), options)
    kernel = scope[:, :, 1 + shift[0] : 4 + shift[0], 1 + shift[1] : 4 + shift[1]]
    expected = convolution("torch", *(values(a).copy() for a in (x, kernel, bias)), options)
    assert_close(lane.forward(call), expected, call.expected_forward()[1])


# ---- global deformable kernels ---------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize("boundary", ["clip", "zeros"])
def test_one_offset_for_all_pixels_is_a_sampled_kernel(lane: Lane, boundary: str) -> None:
    """Local deformable kernels whose offsets are everywhere the same are global ones, applied by `ddf`."""
    x, scope = normal(lane.dtype, 2, 6, 5, 9), normal(lane.dtype, 6, 1, 4, 4)
    offset = eighths(lane.dtype, 2, 3, 3, 3, 2)
    everywhere = np.broadcast_to(offset[..., None, None], (*offset.shape, 5, 9))
    options = {"kernel_boundary": boundary}
    local = Call(DEFORMABLE_CONV2D, (x, scope, everywhere, None, None, None), {**options, "padding": 1, "groups": 6})
    sampled = Call(SAMPLE_KERNEL, (scope, offset), options)
    kernels = lane.forward(sampled)
    assert_close(kernels, *sampled.expected_forward())
    exact = Call(DDF, (values(x), None, sampled.expected_forward()[0][:, :, 0]), {})
    assert_close(lane.forward(local), exact.expected_forward()[0], local.expected_forward()[1])


# ---- effective receptive fields --------------------------------------------------------------------------------------


@each_lane
def test_the_effective_receptive_field_is_the_sum_over_paths(lane: Lane) -> None:
    """DK Eq. 8 and 10: what a pixel has of each input, over two linear layers, is the sum over all paths."""
    size, pixel = 9, (4, 3)
    layers = []
    for seed in (0, 1):
        scope = normal(lane.dtype, 1, 1, 4, 4, seed=seed)
        layers.append((scope, eighths(lane.dtype, 1, 1, 3, 3, 2, size, size, seed=seed, reach=2)))
    image = rounded(np.zeros((1, 1, size, size)), lane.dtype)
    seen = np.zeros((1, 1, size, size))
    seen[0, 0, *pixel] = 1
    gradient: Any = rounded(seen, lane.dtype)
    for scope, offset in reversed(layers):
        call = Call(DEFORMABLE_CONV2D, (image, scope, offset, None, None, None), {"padding": 1})
        gradient = lane.backward(call, gradient, needs=["x"])[0]

    kernels = [sampled_kernels(values(scope)[0, 0], values(offset)[0, 0]) for scope, offset in layers]
    field, terms = np.zeros((size, size)), np.zeros((size, size))
    taps = list(itertools.product((-1, 0, 1), repeat=2))
    for second, first in itertools.product(taps, taps):
        middle = pixel[0] + second[0], pixel[1] + second[1]
        start = middle[0] + first[0], middle[1] + first[1]
        path = kernels[1][second[0] + 1, second[1] + 1, *pixel] * kernels[0][first[0] + 1, first[1] + 1, *middle]
        field[start] += path
        terms[start] += abs(path) + 1  # the weights of each step are sums themselves
    eps = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(lane.dtype, 0.0)  # the gradient in between is rounded
    scale = 1 + eps / 2.0**-24
    assert_close(gradient, field[None, None], terms[None, None] * scale)


def sampled_kernels(scope: Any, offset: Any) -> Any:
    """Return the kernel (kh, kw) of every pixel, one point at a time."""
    kernels = np.zeros((3, 3, *offset.shape[-2:]))
    for i, j, y, x in np.ndindex(kernels.shape):
        row, column = np.clip(np.array([i, j]) + 0.5 + offset[i, j, :, y, x], 0, 3)
        kernels[i, j, y, x] = between(scope, row, column)
    return kernels


# ---- points far away, and no numbers ---------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize("far", [3e4, -3e4, 2.0**30, -(2.0**31), 1e20, np.inf, -np.inf])
@pytest.mark.parametrize("groups", [1, 2])
def test_offsets_far_outside(lane: Lane, far: float, groups: int) -> None:
    """Data offsets leave nothing of a tap, kernel offsets take the border of the scope, or nothing of it."""
    x, scope = normal(lane.dtype, 1, 2, 4, 20), normal(lane.dtype, 2, 2 // groups, 3, 3)
    moved = rounded(np.full((1, 1, 3, 3, 2, 4, 20), far), lane.dtype)
    grad_out = normal(lane.dtype, 1, 2, 4, 20)
    border = values(scope)[:, :, *((-1, -1) if far > 0 else (0, 0)), None, None]
    for boundary, kernel in (("clip", np.broadcast_to(border, scope.shape)), ("zeros", 0 * values(scope))):
        options = {"padding": 1, "groups": groups}
        call = Call(DEFORMABLE_CONV2D, (x, scope, moved, None, None, None), {**options, "kernel_boundary": boundary})
        expected = convolution("torch", values(x), kernel.copy(), np.zeros(2), options)
        assert_close(lane.forward(call), expected, call.expected_forward()[1])
        assert not values(lane.backward(call, grad_out)[2]).any()
    call = Call(DEFORMABLE_CONV2D, (x, scope, None, moved, None, None), {"padding": 1, "groups": groups})
    for result in (lane.forward(call), *lane.backward(call, grad_out)):
        assert result is None or not values(result).any()


@each_lane
@pytest.mark.parametrize("argument", ["kernel_offset", "data_offset"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("along", [0, 1])
def test_a_nan_offset_reaches_its_own_pixel_alone(lane: Lane, argument: str, groups: int, along: int) -> None:
    """It makes the pixel's outputs NaN; gradients of the other image, and of the other offsets, stay as they are."""
    arrays = [normal(lane.dtype, 2, 2, 4, 20), normal(lane.dtype, 2, 2 // groups, 3, 3), None, None, None, None]
    place = DEFORMABLE_CONV2D.arrays.index(argument)
    arrays[place] = eighths(lane.dtype, 2, 1, 3, 3, 2, 4, 20)
    options = {"padding": 1, "groups": groups}
    clean = Call(DEFORMABLE_CONV2D, tuple(arrays), options)
    arrays[place] = arrays[place].copy()
    arrays[place][1, 0, 1, 1, along, 2, 7] = np.nan
    call = Call(DEFORMABLE_CONV2D, tuple(arrays), options)
    out, was = lane.forward(call), lane.forward(clean)
    assert np.isnan(values(out)[1, :, 2, 7]).all()
    out[1, :, 2, 7] = was[1, :, 2, 7]
    assert bits(out) == bits(was)
    grad_out = normal(lane.dtype, *out.shape)
    gradients, before = lane.backward(call, grad_out), lane.backward(clean, grad_out)
    assert bits(gradients[0][0]) == bits(before[0][0])
    offsets, offsets_before = gradients[place].copy(), before[place].copy()
    offsets[1, 0, 1, 1, :, 2, 7] = offsets_before[1, 0, 1, 1, :, 2, 7] = 0
    assert bits(offsets) == bits(offsets_before)


@each_lane
@pytest.mark.parametrize("boundary", ["clip", "zeros"])
@pytest.mark.parametrize("place", [0, 1], ids=["grad_out", "x"])
def test_no_number_reaches_a_weight_that_does_not_read_it(lane: Lane, boundary: str, place: int) -> None:
    """Of one channel of 20, at one pixel, which few of the positions of its scope read."""
    inputs = [normal(lane.dtype, 1, 20, 5, 6), normal(lane.dtype, 1, 20, 6, 7, seed=1)]
    weight, offsets = normal(lane.dtype, 20, 1, 5, 4), eighths(lane.dtype, 1, 1, 2, 2, 2, 5, 6)
    results = []
    for number in (None, np.nan, np.inf):
        if number is not None:
            inputs[place][0, 7, 2, 3] = number
        arrays = (inputs[1], weight, offsets, None, None, None)
        call = Call(DEFORMABLE_CONV2D, arrays, {"groups": 20, "kernel_boundary": boundary})
        results.append(lane.backward(call, inputs[0])[1])
        want, terms = (kind[1] for kind in call.expected_backward(inputs[0]))
        assert_close(results[-1], want, terms)
        untouched = np.isfinite(want)
        assert bits(results[-1][untouched]) == bits(results[0][untouched])
        assert untouched.all() == (number is None)
        assert untouched[7].any()


@each_lane
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("data", [False, True])
def test_where_a_tap_is_in_its_kernel_matters_to_what_it_sees_alone(lane: Lane, groups: int, data: bool) -> None:
    call = nan_taps(lane.dtype, groups, data=data)
    expected, magnitude = call.expected_forward()
    assert np.isnan(expected).any() == data
    assert not np.isnan(expected).all()
    assert_close(lane.forward(call), expected, magnitude)


@each_lane
@pytest.mark.parametrize(("argument", "groups"), [("kernel_offset", 2), ("data_offset", 1), ("data_offset", 2)])
def test_between_equal_values_the_slope_is_0(lane: Lane, argument: str, groups: int) -> None:
    """Exactly, however the shares of the values are rounded: times an infinite gradient it is NaN."""
    equal, points = (lambda *shape: rounded(np.full(shape, 1 / 3), lane.dtype)), (1, 1, 1, 1, 2, 5, 20)
    offset = rounded(np.random.default_rng(0).uniform(0.01, 0.99, points), lane.dtype)
    if argument == "kernel_offset":
        arrays = normal(lane.dtype, 1, 2, 5, 20), equal(2, 2 // groups, 3, 3), offset, None, None, None
    else:
        arrays = equal(1, 2, 5, 20), normal(lane.dtype, 2, 2 // groups, 1, 1), None, offset, None, None
    call = Call(DEFORMABLE_CONV2D, arrays, {"groups": groups, "kernel_size": 1})
    gradients = lane.backward(call, normal(lane.dtype, 1, 2, 5, 20))
    gradient = values(gradients[DEFORMABLE_CONV2D.arrays.index(argument)])
    assert not (gradient if argument == "kernel_offset" else gradient[..., :-1, :-1]).any()


@pytest.mark.parametrize("lane", [p for p in each_lane.args[1] if p.id in ("cpu-float32", "reference-float32")])
def test_points_are_exact_in_images_of_any_size(lane: Lane) -> None:
    """Where float32 no longer holds every pixel's number, an offset of a quarter is still one."""
    width = (1 << 25) + 3
    x = np.broadcast_to(np.float32(0), (1, 1, 1, width)).copy()
    x[..., -3:] = 1, 2, 4
    offset = np.zeros((1, 1, 1, 1, 2, 1, 2), np.float32)
    offset[..., 1, :, 1] = 0.25
    arrays = x, np.ones((1, 1, 1, 1), np.float32), None, offset, None, None
    call = Call(DEFORMABLE_CONV2D, arrays, {"stride": (1, width - 2)})
    np.testing.assert_array_equal(lane.forward(call).ravel(), [0, 2.5])


@pytest.mark.parametrize("lane", [p for p in each_lane.args[1] if p.id.endswith("float64")])
def test_a_sum_over_many_kernels_is_as_exact_as_one_over_few(lane: Lane) -> None:
    """Also the reference's: all terms are equal, so that added one after the other they would err to one side."""
    kernels, offset = 4096, np.zeros((1, 1, 1, 2, 2))
    offset[..., 1] = -0.2  # between 0.1 and 0.7
    weight, grad_out = np.full((kernels, 1, 1, 3), 0.1), np.full((1, kernels, 1, 1, 2), 0.9)
    weight[..., 1] = 0.7
    call = Call(SAMPLE_KERNEL, (weight, offset), {"kernel_size": (1, 2)})
    slope = math.fsum([0.9 * (0.7 - 0.1)] * kernels)
    size = kernels * 0.9 * (0.7 + 0.1)
    gradient = lane.backward(call, grad_out)[1]
    assert_close(gradient[..., 1].ravel(), [slope, -slope], [size, size])
