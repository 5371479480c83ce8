"""What makes `adaptive_dilation_conv2d` what it is: the frameworks' own dilated convolutions, borders, indices."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from lanes import Lane, each_lane_of
from torch.nn import functional

import dynk
from dynk import _dispatch
from dynk.dilated import ADAPTIVE_DILATION_CONV2D as OPERATOR
from dynk.testing import Call, assert_close, rounded, values

each_lane = each_lane_of(OPERATOR)


def normal(dtype: str, *shape: int, seed: int = 0) -> Any:
    return rounded(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def indices(D: int, *shape: int, dtype: Any = np.int64) -> Any:
    return np.random.default_rng([D, *shape]).integers(0, D, shape).astype(dtype)


def one_hot(index: Any, D: int) -> Any:
    return np.moveaxis(np.eye(D)[index], -1, 1)


def torch_convolution(x: Any, weight: Any, stride: Any, dilation: Any, groups: int) -> Any:
    """Return PyTorch's own convolution of odd kernels, whose "same" padding is symmetric."""
    padding = tuple((k // 2) * d for k, d in zip(weight.shape[2:], dilation, strict=True))
    return functional.conv2d(x, weight, None, stride, padding, dilation, groups)


def jax_convolution(x: Any, weight: Any, stride: Any, dilation: Any, groups: int) -> Any:
    padding = [((k // 2) * d,) * 2 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    return lax.conv_general_dilated(x, weight, stride, padding, rhs_dilation=dilation, feature_group_count=groups)


# ---- the frameworks' convolutions ------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Draw the shapes of an image and a kernel of odd extents, and options."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 6]))
    C = groups * draw(st.integers(1, 4 if groups == 1 else 1 if groups == 6 else 2))
    O = groups * draw(st.integers(1, 10 if groups == 1 else 2))  # noqa: E741
    kernel = draw(st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5])))
    one = st.tuples(st.integers(1, 6), st.integers(1, 6))
    options = {
        "dilations": draw(st.lists(one, min_size=1, max_size=4)),
        "stride": draw(st.sampled_from([(1, 1), (2, 2), (1, 3)])),
        "groups": groups,
    }
    return (
        (draw(st.integers(1, 2)), C, *draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))),
        (
            O,
            C // groups,
            *kernel,
        ),
        options,
    )


@each_lane
@pytest.mark.parametrize("library", ["torch", "jax"])
@given(data=st.data())
def test_one_hot_mixtures_are_the_dilated_convolution(lane: Lane, library: str, data: st.DataObject) -> None:
    image, kernel, options = data.draw(convolutions())
    x, weight, bias = normal(lane.dtype, *image), normal(lane.dtype, *kernel), normal(lane.dtype, kernel[0])
    chosen = data.draw(st.integers(0, len(options["dilations"]) - 1))
    stride, dilation, groups = options["stride"], options["dilations"][chosen], options["groups"]
    pixels = (image[0], -(-image[2] // stride[0]), -(-image[3] // stride[1]))
    index = np.full(pixels, chosen, data.draw(st.sampled_from([np.int32, np.int64])))

    def convolve(*arrays: Any) -> Any:
        if library == "torch":
            return torch_convolution(*map(torch.from_numpy, arrays), stride, dilation, groups).numpy()
        with jax.enable_x64(True):
            return np.asarray(jax_convolution(*map(jax.numpy.asarray, arrays), stride, dilation, groups))

    expected = convolve(values(x), values(weight)) + values(bias)[:, None, None]
    magnitude = convolve(abs(values(x)), abs(values(weight))) + abs(values(bias))[:, None, None]
    for mixture in (index, rounded(one_hot(index, len(options["dilations"])), lane.dtype)):
        assert_close(lane.forward(Call(OPERATOR, (x, weight, mixture, bias), options)), expected, magnitude)


@each_lane
@pytest.mark.parametrize(
    ("image", "kernel", "options"),
    [
        ((2, 5, 9, 20), (10, 5, 3, 3), {}),
        ((1, 6, 12, 13), (4, 3, 3, 5), {"dilations": ((1, 2), (3, 1)), "stride": (2, 1), "groups": 2}),
        ((2, 6, 11, 14), (12, 1, 3, 3), {"groups": 6}),
        ((1, 20, 7, 7), (9, 20, 1, 1), {"dilations": (1, 2, 3, 4, 5), "stride": 2}),
    ],
    ids=["dense", "grouped", "depth-wise", "pointwise"],
)
def test_mixtures_and_gradients_are_those_of_weighted_convolutions(
    lane: Lane, image: Any, kernel: Any, options: Any
) -> None:
    """PyTorch's convolutions, one for each dilation, weighted pixel by pixel, summed and differentiated."""
    call = OPERATOR.canonical(**options)
    dilations, stride, groups = call
    pixels = (-(-image[2] // stride[0]), -(-image[3] // stride[1]))
    shapes = image, kernel, (image[0], len(dilations), *pixels), kernel[:1]
    arrays = tuple(normal(lane.dtype, *shape) for shape in shapes)
    grad_out = normal(lane.dtype, image[0], kernel[0], *pixels)

    def mixed(absolute: bool) -> tuple[Any, ...]:
        change = abs if absolute else np.asarray
        x, weight, shares, bias = (torch.from_numpy(change(values(a))).requires_grad_() for a in arrays)
        out = sum(
            shares[:, d, None] * torch_convolution(x, weight, stride, dilation, groups)
            for d, dilation in enumerate(dilations)
        )
        out = out + bias[:, None, None]
        gradients = torch.autograd.grad(out, (x, weight, shares, bias), torch.from_numpy(change(values(grad_out))))
        return out.detach().numpy(), *(g.numpy() for g in gradients)

    run = Call(OPERATOR, arrays, options)
    results = lane.forward(run), *lane.backward(run, grad_out)
    for name, result, want, terms in zip(("out", *OPERATOR.arrays), results, mixed(False), mixed(True), strict=True):
        assert_close(result, want, terms, what=name)


# ---- hard selection --------------------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("stride", [1, 2])
def test_indices_select_what_a_one_hot_mixture_does(lane: Lane, groups: int, stride: int) -> None:
    pixels = -(-19 // stride), -(-23 // stride)
    index = indices(3, 2, *pixels)
    options = {"stride": stride, "groups": groups}
    x, weight = normal(lane.dtype, 2, 12, 19, 23), normal(lane.dtype, 12, 12 // groups, 3, 3)
    hard = Call(OPERATOR, (x, weight, index, None), options)
    soft = Call(OPERATOR, (x, weight, rounded(one_hot(index, 3), lane.dtype), None), options)
    np.testing.assert_array_equal(values(lane.forward(hard)), values(lane.forward(soft)))
    grad_out = normal(lane.dtype, *hard.plan.out_shape)
    of_hard, of_soft = lane.backward(hard, grad_out), lane.backward(soft, grad_out)
    assert of_hard[2] is None
    for one, other in zip(of_hard[:2], of_soft[:2], strict=True):
        np.testing.assert_array_equal(values(one), values(other))


WRONG_INDICES = [-1, 3, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("wrong", WRONG_INDICES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_wrong_indices_are_refused_before_anything_is_computed(backend: str, wrong: int, dtype: Any) -> None:
    x, weight, index = np.ones((2, 3, 5, 6)), np.ones((4, 3, 3, 3)), indices(3, 2, 5, 6, dtype=dtype)
    index[1, 2, 3] = wrong
    out = np.full((2, 4, 5, 6), 7.0)
    message = rf"dilation_weights must hold indices from 0 to D - 1 = 2, got {wrong} at \(1, 2, 3\)"
    with pytest.raises(ValueError, match=f"^adaptive_dilation_conv2d: {message}$"):
        dynk.adaptive_dilation_conv2d(x, weight, index, out=out, backend=backend)
    with pytest.raises(ValueError, match=f"^adaptive_dilation_conv2d_backward: {message}$"):
        dynk.adaptive_dilation_conv2d_backward(out, x, weight, index, backend=backend)
    np.testing.assert_array_equal(out, 7)


@each_lane
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("wrong", WRONG_INDICES)
def test_a_wrong_index_that_nobody_looked_at_gives_nan(lane: Lane, groups: int, wrong: int) -> None:
    """Kernels are safe by themselves: on CUDA and in compiled programs of JAX no index is looked at."""
    unchecked = dataclasses.replace(OPERATOR, check_values=None)
    x, weight, index = normal(lane.dtype, 1, 3, 5, 40), normal(lane.dtype, 3, 3 // groups, 3, 3), indices(3, 1, 5, 40)
    index[0, 2, 3] = wrong
    arrays, options = tuple(map(lane.put, (x, weight, index, None))), OPERATOR.canonical(groups=groups)
    call = Call(OPERATOR, (x, weight, index, None), {"groups": groups})
    out = lane.get(_dispatch.forward(unchecked, arrays, options, None, lane.backend))
    assert_close(out, *call.expected_forward())
    assert np.isnan(values(out)[..., 2, 3]).all()
    assert np.isnan(values(out)).sum() == 3
    grad_out = normal(lane.dtype, *out.shape)
    gradients = _dispatch.backward(unchecked, lane.put(grad_out), arrays, options, None, None, lane.backend)
    assert np.isfinite(values(lane.get(gradients[0]))).all()
    assert np.isnan(values(lane.get(gradients[1]))).all()
    expected, magnitudes = call.expected_backward(grad_out)
    assert_close(lane.get(gradients[0]), expected[0], magnitudes[0])


# ---- borders ---------------------------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize("groups", [1, 2])
def test_a_tap_outside_the_image_is_not_read(lane: Lane, groups: int) -> None:
    """Weights of NaN and infinity at taps that no pixel reads leave no trace, nor do they in any gradient."""
    x, weight = normal(lane.dtype, 1, 2, 2, 40), values(normal(lane.dtype, 4, 2 // groups, 5, 3))
    weight[:, :, 0], weight[:, :, 4] = np.nan, np.inf  # three rows or more above and below: an image has two
    shares = normal(lane.dtype, 1, 2, 2, 40)
    call = Call(
        OPERATOR, (x, rounded(weight, lane.dtype), shares, None), {"dilations": ((1, 1), (2, 2)), "groups": groups}
    )
    weight[:, :, [0, 4]] = 0
    clean = Call(OPERATOR, (x, rounded(weight, lane.dtype), shares, None), call.options)
    np.testing.assert_array_equal(values(lane.forward(call)), values(lane.forward(clean)))
    grad_out = normal(lane.dtype, 1, 4, 2, 40)
    for gradient, want in zip(lane.backward(call, grad_out)[:3], lane.backward(clean, grad_out)[:3], strict=True):
        np.testing.assert_array_equal(values(gradient), values(want))


@each_lane
@pytest.mark.parametrize("groups", [1, 2])
def test_infinite_weights_are_not_multiplied_where_their_tap_is_outside(lane: Lane, groups: int) -> None:
    """An infinite weight makes the pixels that read its tap infinite, or NaN, and changes no bit of the others."""
    x, shares = normal(lane.dtype, 1, 2, 9, 40), normal(lane.dtype, 1, 3, 9, 40)
    weight = values(normal(lane.dtype, 4, 2 // groups, 3, 3))
    clean = Call(OPERATOR, (x, rounded(weight, lane.dtype), shares, None), {"groups": groups})
    weight[1, 0, 0, 2] = np.inf  # above, to the right
    call = clean.with_arrays(x, rounded(weight, lane.dtype), shares, None)
    out, was = values(lane.forward(call)), values(lane.forward(clean))
    assert_close(lane.forward(call), *call.expected_forward())
    touched = np.zeros(out.shape, bool)
    touched[:, 1, 1:, :-1] = True
    np.testing.assert_array_equal(np.isfinite(out), ~touched)
    np.testing.assert_array_equal(out[~touched], was[~touched])


@each_lane
def test_a_dilation_counts_only_where_its_tap_is_inside(lane: Lane) -> None:
    """The weight NaN of a dilation reaches no tap of it that is outside: here all but the centre."""
    x, weight = normal(lane.dtype, 1, 1, 3, 3), np.ones((1, 1, 3, 3))
    weight[0, 0, 1, 1] = 0
    shares = np.ones((1, 2, 3, 3))
    shares[:, 1] = np.nan
    call = Call(OPERATOR, (x, rounded(weight, lane.dtype), rounded(shares, lane.dtype), None), {"dilations": (1, 3)})
    assert np.isnan(values(lane.forward(call))).all()  # 0 * NaN at the centre, which is read
    weight = np.ones((1, 1, 1, 2))  # the centre is the tap on the left
    shares[:, 1, :, :] = np.nan
    call = Call(OPERATOR, (x, rounded(weight, lane.dtype), rounded(shares, lane.dtype), None), {"dilations": (1, 3)})
    assert np.isnan(values(lane.forward(call))).all()
    image = normal(lane.dtype, 1, 1, 1, 2)
    two_right = rounded(np.array([[[[0.0, 1.0, 0.0, 1.0]]]]), lane.dtype)  # taps at -1, 0, 1 and 2 times the dilation
    shares = np.ones((1, 2, 1, 2))
    call = Call(OPERATOR, (image, two_right, rounded(shares, lane.dtype), None), {"dilations": (1, 5)})
    assert_close(lane.forward(call), *call.expected_forward())


# ---- sizes -----------------------------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize(
    ("image", "kernel", "options"),
    [
        ((1, 530, 2, 3), (9, 530, 3, 1), {}),
        ((1, 3, 6, 5), (300, 3, 3, 3), {}),
        ((1, 2, 30, 30), (2, 2, 7, 7), {"dilations": (1, 2, 3, 4, 5, 6, 7, 8)}),
        ((3, 4, 40, 41), (4, 1, 9, 9), {"groups": 4, "dilations": (2, 1)}),
        ((1, 1, 1, 1), (1, 1, 1, 1), {"dilations": (1,)}),
        ((1, 2, 300, 150), (4, 1, 3, 3), {"groups": 2, "dilations": ((2, 9), (11, 1))}),
        ((1, 2, 3, 40), (2, 1, 3, 3), {"groups": 2, "dilations": (1, 20_000)}),
        ((2, 70, 5, 20), (140, 1, 3, 3), {"groups": 70}),
        ((1, 2, 6, 20), (140, 1, 3, 3), {"groups": 2}),
    ],
    ids=[
        "channels",
        "outputs",
        "dilations",
        "taps",
        "least",
        "rows",
        "far taps",
        "depth-wise channels",
        "depth-wise outputs",
    ],
)
def test_sums_of_several_chains_and_blocks(lane: Lane, image: Any, kernel: Any, options: Any) -> None:
    """More terms than one chain takes, and more channels, outputs and taps than one block."""
    dilations, stride, _ = OPERATOR.canonical(**options)
    pixels = (-(-image[2] // stride[0]), -(-image[3] // stride[1]))
    shapes = image, kernel, (image[0], len(dilations), *pixels), kernel[:1]
    call = Call(OPERATOR, tuple(normal(lane.dtype, *shape) for shape in shapes), options)
    assert_close(lane.forward(call), *call.expected_forward())
    grad_out = normal(lane.dtype, *call.plan.out_shape)
    for result in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert_close(*result)


@pytest.mark.parametrize(("channels", "outputs", "groups"), [(20, 520, 1), (60, 1040, 2), (912, 520, 1)])
def test_weights_that_the_cpu_copies_once_or_in_every_task(channels: int, outputs: int, groups: int) -> None:
    """In pieces of several blocks, of which one is not finite; the last are too many to be copied once."""
    weight = normal("float32", outputs, channels // groups, 3, 3)
    weight[outputs - 3, 1, 1, 1] = np.nan
    arrays = normal("float32", 1, channels, 3, 20), weight, normal("float32", 1, 2, 3, 20), None
    call = Call(OPERATOR, arrays, {"dilations": (1, 2), "groups": groups})
    out = dynk.adaptive_dilation_conv2d(*arrays, dilations=(1, 2), groups=groups, backend="cpu")
    assert_close(out, *call.expected_forward())


@each_lane
def test_empty_batch(lane: Lane) -> None:
    shapes, options = OPERATOR.samples[0]
    arrays = (
        *(rounded(np.empty(shape), lane.dtype) for shape in ((0, *shapes[0][1:]), shapes[1], (0, *shapes[2][1:]))),
        rounded(np.ones(shapes[3]), lane.dtype),
    )
    call = Call(OPERATOR, arrays, options)
    out = lane.forward(call)
    assert out.shape == call.plan.out_shape
    gradients = lane.backward(call, out)
    assert [g.shape for g in gradients] == [a.shape for a in arrays]
    assert not values(gradients[1]).any()
    assert not values(gradients[3]).any()


# ---- errors ----------------------------------------------------------------------------------------------------------

X, WEIGHT, SHARES = np.ones((2, 4, 8, 9)), np.ones((6, 4, 3, 3)), np.ones((2, 3, 8, 9))
ERRORS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "an int": (
        (X, WEIGHT, SHARES),
        {"dilations": 2},
        TypeError,
        "dilations must be a sequence of ints or (h, w) pairs, got 2",
    ),
    "text": (
        (X, WEIGHT, SHARES),
        {"dilations": "124"},
        TypeError,
        "dilations must be a sequence of ints or (h, w) pairs",
    ),
    "none": ((X, WEIGHT, SHARES), {"dilations": ()}, ValueError, "dilations must have 1 to 8 entries, got ()"),
    "nine": ((X, WEIGHT, SHARES), {"dilations": [1] * 9}, ValueError, "dilations must have 1 to 8 entries, got [1, "),
    "zero": (
        (X, WEIGHT, SHARES),
        {"dilations": (1, 0, 2)},
        ValueError,
        "dilations[1] must lie between 1 and 1073741824, got 0",
    ),
    "far": (
        (X, WEIGHT, SHARES),
        {"dilations": (1, 2, (1, 2**30))},
        ValueError,
        "dilations[2] must be at most 536870912 for 3 taps, got 1073741824",
    ),
    "groups of C": ((X, WEIGHT, SHARES), {"groups": 3}, ValueError, "groups must divide C = 4, got 3"),
    "groups of O": ((X, np.ones((6, 1, 3, 3)), SHARES), {"groups": 4}, ValueError, "groups must divide O = 6, got 4"),
    "weight": (
        (X, WEIGHT, SHARES),
        {"groups": 2},
        ValueError,
        "weight must have shape (O, C/groups, kh, kw) = (O, 2, kh, kw), got (6, 4, 3, 3)",
    ),
    "candidates": (
        (X, WEIGHT, SHARES),
        {"dilations": (1, 2)},
        ValueError,
        "dilation_weights must have shape (N, D, Ho, Wo) = (2, 2, 8, 9), got (2, 3, 8, 9)",
    ),
    "stride": (
        (X, WEIGHT, SHARES),
        {"stride": (2, 3)},
        ValueError,
        "dilation_weights must have shape (N, D, Ho, Wo) = (2, 3, 4, 3), got (2, 3, 8, 9)",
    ),
    "indices": (
        (X, WEIGHT, SHARES.astype(np.int32)),
        {},
        ValueError,
        "dilation_weights must have shape (N, Ho, Wo) = (2, 8, 9), got (2, 3, 8, 9)",
    ),
    "short integers": (
        (X, WEIGHT, np.zeros((2, 8, 9), np.uint8)),
        {},
        TypeError,
        "dilation_weights must have dtype 'float16', 'bfloat16', 'float32', 'float64', got uint8",
    ),
    "bias": ((X, WEIGHT, SHARES, np.ones(5)), {}, ValueError, "bias must have shape (O,) = (6,), got (5,)"),
}


@pytest.mark.parametrize(("arrays", "options", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_calls(arrays: Any, options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        dynk.adaptive_dilation_conv2d(*arrays, **options)
    assert str(error.value).startswith(f"adaptive_dilation_conv2d: {message}")
    with pytest.raises(kind) as error:
        dynk.adaptive_dilation_conv2d_backward(np.ones((2, 6, 8, 9)), *arrays, **options)
    assert str(error.value).startswith(f"adaptive_dilation_conv2d_backward: {message}")


def test_indices_have_no_gradient() -> None:
    index = np.zeros((2, 8, 9), np.int64)
    with pytest.raises(ValueError, match="needs must name floating arrays that were given, got 'dilation_weights'"):
        dynk.adaptive_dilation_conv2d_backward(np.ones((2, 6, 8, 9)), X, WEIGHT, index, needs=["x", "dilation_weights"])


# ---- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys
import numpy as np, dynk

def call(channels, size, groups):
    x = np.ones((1, channels, size, size), np.float32)
    weight = np.ones((channels, channels // groups, 3, 3), np.float32)
    shares, bias = np.ones((1, 3, size, size), np.float32), np.ones(channels, np.float32)
    arrays = x, weight, shares, bias
    out, grads = np.ones_like(x), tuple(map(np.ones_like, arrays))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dynk.adaptive_dilation_conv2d(*arrays, groups=groups, out=out)
    dynk.adaptive_dilation_conv2d_backward(out, *arrays, groups=groups, grads=grads)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

depthwise = sys.argv[1] == "depth-wise"
call(8, 8, 8 if depthwise else 1)  # compiles
print(call(64, 512, 64 if depthwise else 1) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured in Linux's units")
@pytest.mark.parametrize("kind", ["dense", "depth-wise"])
def test_neither_columns_nor_results_of_single_dilations_are_stored(kind: str) -> None:
    """One feature map takes 64 MiB here, its columns nine times that."""
    run = subprocess.run([sys.executable, "-c", MEMORY, kind], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 24 << 20
