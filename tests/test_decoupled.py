"""What makes the decoupled family what it is: properties, and NumPy one-liners that share nothing with its kernels."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lanes import Lane, bits, each_lane

import dynk
from dynk.decoupled import DDF, DDF_UPSAMPLE, FILTER_NORM
from dynk.kernels.common.dtypes import EPS, accumulator
from dynk.testing import Call, assert_close, rounded, strategies, values


def normal(dtype: str, *shape: int, seed: int = 0) -> Any:
    return rounded(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def small_integers(dtype: str, *shape: int, seed: int = 0) -> Any:
    """Return integers so small that sums of a few products of them are exact in every dtype."""
    return rounded(np.random.default_rng([seed, *shape]).integers(-2, 3, shape), dtype)


def windows(x: Any, kh: int, kw: int, stride: int, dilation: int) -> Any:
    """Return (N, C, Ho, Wo, kh, kw): the pixels that each tap reads, 0 outside the image."""
    above, left = (kh - 1) // 2 * dilation, (kw - 1) // 2 * dilation
    below, right = (kh - 1) * dilation - above, (kw - 1) * dilation - left
    padded = np.pad(values(x), ((0, 0), (0, 0), (above, below), (left, right)))
    reach = ((kh - 1) * dilation + 1, (kw - 1) * dilation + 1)
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    return seen[:, :, ::stride, ::stride, ::dilation, ::dilation]


# ---- ddf -------------------------------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize(("kh", "kw"), [(1, 1), (3, 3), (5, 5), (7, 7), (2, 2), (4, 3), (1, 6)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_channel_only_is_depthwise_convolution(lane: Lane, kh: int, kw: int, stride: int, dilation: int) -> None:
    x, channel = normal(lane.dtype, 2, 5, 9, 37), normal(lane.dtype, 2, 5, kh, kw)
    out = lane.forward(Call(DDF, (x, None, channel), {"stride": stride, "dilation": dilation}))
    seen, taps = windows(x, kh, kw, stride, dilation), values(channel)
    expected = np.einsum("ncyxij,ncij->ncyx", seen, taps)
    assert_close(out, expected, np.einsum("ncyxij,ncij->ncyx", abs(seen), abs(taps)))


@each_lane
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_spatial_only_is_involution(lane: Lane, groups: int, stride: int) -> None:
    N, C, H, W, k = 2, 6, 7, 35, 3
    Ho, Wo = math.ceil(H / stride), math.ceil(W / stride)
    x, spatial = normal(lane.dtype, N, C, H, W), normal(lane.dtype, N, groups, k, k, Ho, Wo)
    out = lane.forward(Call(DDF, (x, spatial, None), {"stride": stride}))
    seen = windows(x, k, k, stride, 1).reshape(N, groups, C // groups, Ho, Wo, k, k)
    terms = np.einsum("ngcyxij,ngijyx->ngcyx", abs(seen), abs(values(spatial))).reshape(N, C, Ho, Wo)
    expected = np.einsum("ngcyxij,ngijyx->ngcyx", seen, values(spatial)).reshape(N, C, Ho, Wo)
    assert_close(out, expected, terms)


@each_lane
@pytest.mark.parametrize("op", [DDF, DDF_UPSAMPLE], ids=lambda op: op.name)
@given(data=st.data())
def test_add_is_the_sum_of_both_filters_alone(lane: Lane, op: Any, data: st.DataObject) -> None:
    call = data.draw(strategies.calls(op, lane.dtype).filter(lambda call: all(a is not None for a in call.arrays)))
    x, spatial, channel = call.arrays
    out = lane.forward(Call(op, call.arrays, {**call.options, "combine": "add"}))
    one, its_terms = call.with_arrays(x, spatial, None).expected_forward()
    other, other_terms = call.with_arrays(x, None, channel).expected_forward()
    assert_close(out, one + other, its_terms + other_terms)


@each_lane
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_linear_in_the_image_and_homogeneous_in_each_filter(lane: Lane, combine: str) -> None:
    """Exactly: the sums are of small integers."""
    first, second = (small_integers(lane.dtype, 2, 4, 6, 33, seed=seed) for seed in (1, 2))
    spatial, channel = small_integers(lane.dtype, 2, 2, 3, 3, 6, 33), small_integers(lane.dtype, 2, 4, 3, 3)

    def ddf(*arrays: Any) -> Any:
        return values(lane.forward(Call(DDF, arrays, {"combine": combine})))

    out = ddf(first, spatial, channel)
    both = rounded(values(first) + values(second), lane.dtype)
    np.testing.assert_array_equal(ddf(both, spatial, channel), out + ddf(second, spatial, channel))
    twice_spatial, twice_channel = (rounded(2 * values(f), lane.dtype) for f in (spatial, channel))
    if combine == "mul":
        np.testing.assert_array_equal(ddf(first, twice_spatial, channel), 2 * out)
        np.testing.assert_array_equal(ddf(first, spatial, twice_channel), 2 * out)
    else:
        np.testing.assert_array_equal(ddf(first, twice_spatial, twice_channel), 2 * out)


@each_lane
@pytest.mark.parametrize(
    ("image", "kernel"),
    [((1, 130, 1, 4), (3, 3)), ((1, 1, 12, 11), (12, 11)), ((1, 1, 130, 3), (3, 1)), ((1, 2, 2, 200), (1, 3))],
    ids=["channels", "taps", "rows", "columns"],
)
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_sums_of_several_chains(lane: Lane, image: Any, kernel: Any, combine: str) -> None:
    """More than twice 64 terms, which every kernel sums in stages."""
    N, C, H, W = image
    x, grad_out = (small_integers(lane.dtype, *image, seed=seed) for seed in (1, 2))
    filters = small_integers(lane.dtype, N, 1, *kernel, H, W), small_integers(lane.dtype, N, C, *kernel)
    for arrays in ((x, *filters), (x, filters[0], None), (x, None, filters[1])):
        call = Call(DDF, arrays, {"combine": combine})
        assert_close(lane.forward(call), *call.expected_forward())
        for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
            assert gradient is want is None or assert_close(gradient, want, terms) is None


@each_lane
@pytest.mark.parametrize("image", [(1, 2049, 1, 1), (1, 1, 1, 20490)], ids=["channels", "columns"])
def test_a_sum_of_thousands_of_equal_terms(lane: Lane, image: Any) -> None:
    """Added one by one, each is rounded the same way, and the error exceeds the bound."""
    N, C, H, W = image
    x, spatial, channel = (
        rounded(np.full(shape, 0.1), lane.dtype) for shape in (image, (N, 1, 1, 1, H, W), (N, C, 1, 1))
    )
    call, grad_out = Call(DDF, (x, spatial, channel), {}), rounded(np.ones(image), lane.dtype)
    for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert_close(gradient, want, terms)


@each_lane
@pytest.mark.parametrize(
    ("image", "groups", "kernel", "stride"),
    [
        ((2, 5, 46, 47), 1, 7, 1),
        ((1, 34, 32, 33), 17, 1, 1),
        ((2, 12, 9, 11), 2, 3, 2),
        ((2, 12, 9, 11), 2, 5, 3),
        ((2, 12, 9, 11), 2, 3, 1),
    ],
    ids=["bands", "blocks", "stride 2", "stride 3", "channels"],
)
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_many_channels_and_large_planes(
    lane: Lane, image: Any, groups: int, kernel: int, stride: int, combine: str
) -> None:
    """Kernels take several channels at once, and cut a large plane into parts whose sums must not mix."""
    N, C, H, W = image
    anchors = -(-H // stride), -(-W // stride)
    arrays = (
        normal(lane.dtype, *image),
        normal(lane.dtype, N, groups, kernel, kernel, *anchors),
        normal(lane.dtype, N, C, kernel, kernel),
    )
    call = Call(DDF, arrays, {"combine": combine, "stride": stride})
    assert_close(lane.forward(call), *call.expected_forward())
    grad_out = normal(lane.dtype, N, C, *anchors, seed=1)
    for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert_close(gradient, want, terms)


@each_lane
@pytest.mark.parametrize(
    ("image", "kernel", "options"),
    [
        ((1, 20, 1, 5), (3, 3), {"dilation": 5}),
        ((2, 9, 2, 20), (3, 3), {"dilation": 2}),
        ((1, 9, 8, 3), (1, 3), {"stride": (8, 1)}),
    ],
    ids=["before", "behind", "outputs"],
)
def test_vectors_beyond_the_first_or_the_last_image(lane: Lane, image: Any, kernel: Any, options: Any) -> None:
    """Kernels that read whole vectors of four channels must not where these would leave the array."""
    call = Call(DDF, (normal(lane.dtype, *image), None, normal(lane.dtype, *image[:2], *kernel)), options)
    assert_close(lane.forward(call), *call.expected_forward())
    grad_out = normal(lane.dtype, *call.plan.out_shape, seed=1)
    (grad_x, _, grad_channel), wants, terms = lane.backward(call, grad_out), *call.expected_backward(grad_out)
    assert_close(grad_x, wants[0], terms[0])
    assert_close(grad_channel, wants[2], terms[2])


@each_lane
def test_a_tap_outside_the_image_is_not_read(lane: Lane) -> None:
    """NaN and infinity in the filters show which taps are: those of the border must not be multiplied by 0."""
    x = normal(lane.dtype, 1, 2, 4, 33)
    spatial = np.ones((1, 1, 3, 3, 4, 33))
    spatial[:, :, 0, :, 0] = spatial[:, :, 2, :, -1] = np.nan
    spatial[..., 0, :, 0] = spatial[..., 2, :, -1] = np.inf
    out = lane.forward(Call(DDF, (x, rounded(spatial, lane.dtype), None), {}))
    seen = windows(x, 3, 3, 1, 1)
    assert_close(out, seen.sum((-2, -1)), abs(seen).sum((-2, -1)))


@each_lane
@pytest.mark.parametrize(
    ("op", "kernel", "options"),
    [
        (DDF, (3, 3), {}),
        (DDF, (5, 5), {}),
        (DDF, (2, 3), {"stride": (2, 1)}),
        (DDF, (1, 3), {"stride": (2, 1)}),
        (DDF_UPSAMPLE, (3, 3), {"scale": 2}),
        (DDF_UPSAMPLE, (3, 3), {"scale": 3}),
    ],
)
def test_what_is_not_finite_stays_where_it_is_read(lane: Lane, op: Any, kernel: Any, options: Any) -> None:
    """At the ends of rows, next to pixels of the next and the last row, and amid whole vectors."""
    N, C, H, W = 2, 8, 6, 40
    s, (stride, _) = options.get("scale", 1), options.get("stride", (1, 1))
    sub_pixels = (s, s) if s > 1 else ()
    x, channel = normal(lane.dtype, N, C, H, W), normal(lane.dtype, N, C, *sub_pixels, *kernel)
    spatial = normal(lane.dtype, N, 2, *sub_pixels, *kernel, -(-H // stride), W)
    call = Call(op, (x, spatial, channel), options)
    grad_out = normal(lane.dtype, *call.plan.out_shape)
    for array in (x, grad_out):
        array[0, 1, 2, 0] = array[0, 5, 1, -1] = array[1, 7, -1, -1] = np.inf
        array[0, 0, 0, 0] = array[1, 2, 0, -1] = array[1, 6, 2, 17] = np.nan
    assert_close(lane.forward(call), *call.expected_forward())
    for gradient, want, magnitude in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert_close(gradient, want, magnitude)


@each_lane
@pytest.mark.parametrize("op", [DDF, DDF_UPSAMPLE], ids=lambda op: op.name)
def test_empty_batch(lane: Lane, op: Any) -> None:
    shapes, options = op.samples[0]
    arrays = tuple(rounded(np.empty((0, *shape[1:])), lane.dtype) for shape in shapes)
    call = Call(op, arrays, options)
    out = lane.forward(call)
    assert out.shape == call.plan.out_shape
    assert out.shape[0] == 0
    assert [g.shape for g in lane.backward(call, out)] == [a.shape for a in arrays]


@each_lane
def test_parameters_of_an_empty_batch_of_filters_have_gradient_0(lane: Lane) -> None:
    """A sum of no terms, not memory that nobody wrote."""
    f, scale, shift = (rounded(np.ones(shape), lane.dtype) for shape in ((0, 3, 3, 3), (3, 1, 1), (3, 3, 3)))
    grads = tuple(lane.put(rounded(np.full(a.shape, np.nan), lane.dtype)) for a in (f, scale, shift))
    call = lane.put_call(Call(FILTER_NORM, (f, scale, shift), {"axes": (2, 3)}))
    call.backward(call.arrays[0], grads=grads, backend=lane.backend)
    assert [values(lane.get(g)).any() for g in grads] == [False, False, False]


@each_lane
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_a_gradient_has_the_same_bits_alone(lane: Lane, combine: str) -> None:
    """A product that two sums share must be rounded, or not, as where one of them is not wanted."""
    shapes = (2, 5, 3, 31), (2, 1, 3, 3, 3, 31), (2, 5, 3, 3)
    call = Call(DDF, tuple(normal(lane.dtype, *shape) for shape in shapes), {"combine": combine})
    grad_out = normal(lane.dtype, *call.plan.out_shape)
    together = lane.backward(call, grad_out)
    for k, name in enumerate(DDF.arrays):
        assert bits(lane.backward(call, grad_out, needs=(name,))[k]) == bits(together[k])


# ---- ddf_upsample ----------------------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize("s", [1, 2, 3, 4])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_each_sub_pixel_is_ddf_with_its_own_filters(lane: Lane, s: int, combine: str) -> None:
    x = normal(lane.dtype, 2, 4, 5, 34)
    spatial, channel = normal(lane.dtype, 2, 2, s, s, 3, 3, 5, 34), normal(lane.dtype, 2, 4, s, s, 3, 3)
    out = lane.forward(Call(DDF_UPSAMPLE, (x, spatial, channel), {"scale": s, "combine": combine}))
    for p, q in product(range(s), repeat=2):
        its = Call(DDF, (x, spatial[:, :, p, q], channel[:, :, p, q]), {"combine": combine})
        assert_close(out[:, :, p::s, q::s], *its.expected_forward(), what=f"sub-pixel {p, q}")


# ---- filter_norm -----------------------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 2), (7, 4)])
def test_normalised_filters_have_mean_0_and_unbiased_deviation_1(lane: Lane, kernel: tuple[int, int]) -> None:
    f = normal(lane.dtype, 2, 3, *kernel, 4, 9)
    z = values(lane.forward(Call(FILTER_NORM, (f, None, None), {"axes": (2, 3), "eps": 0.0})))
    # Every element was rounded to the dtype before the mean was taken here.
    rounding = EPS[lane.dtype] / EPS[accumulator(lane.dtype)]
    inner = accumulator(lane.dtype)
    mean, deviation = z.mean((2, 3)), z.std((2, 3), ddof=1)
    terms = abs(z).max((2, 3)) * rounding
    assert_close(rounded(mean, inner), np.zeros_like(mean), terms, what="mean")
    assert_close(rounded(deviation, inner), np.ones_like(mean), terms, what="deviation")


# Values whose squares leave the range of the type.
HUGE = {"float16": 3e4, "bfloat16": 1e30, "float32": 1e30, "float64": 1e300}
TINY = {"float16": 1e-6, "bfloat16": 1e-30, "float32": 1e-30, "float64": 1e-300}


@each_lane
@pytest.mark.parametrize("value_of", [lambda _: 0.0, lambda _: 0.1, lambda _: -3.7, HUGE.get, TINY.get])
def test_equal_taps_give_0_and_gradient_0(lane: Lane, value_of: Any) -> None:
    """Exactly, and never NaN: what remains is the shift."""
    f = rounded(np.full((2, 3, 3, 3, 5), value_of(lane.dtype)), lane.dtype)
    scale, shift = normal(lane.dtype, 3, 1, 1, 1), normal(lane.dtype, 3, 1, 1, 1, seed=1)
    call = Call(FILTER_NORM, (f, scale, shift), {"axes": (2, 3)})
    np.testing.assert_array_equal(values(lane.forward(call)), np.broadcast_to(values(shift), f.shape))
    gradients = lane.backward(call, normal(lane.dtype, *f.shape))
    np.testing.assert_array_equal(values(gradients[0]), np.zeros(f.shape))
    np.testing.assert_array_equal(values(gradients[1]), np.zeros(scale.shape))


@each_lane
@pytest.mark.parametrize("eps", [0.0, 1e-10])
@pytest.mark.parametrize("size", [HUGE, TINY], ids=["huge", "tiny"])
def test_huge_and_tiny_filters(lane: Lane, size: dict[str, float], eps: float) -> None:
    # Any taps, and filters of which only two differ from the mean: those that a unit of deviation must not miss.
    two = np.eye(9)[:-1] - np.eye(9)[1:]
    f = np.concatenate([np.random.default_rng(3).uniform(-1, 1, (12, 9)), two]).reshape(5, 4, 3, 3) * size[lane.dtype]
    call = Call(FILTER_NORM, (rounded(f, lane.dtype), None, None), {"axes": (-2, -1), "eps": eps})
    out = lane.forward(call)
    assert np.isfinite(values(out)).all()
    assert_close(out, *call.expected_forward())
    grad_out = normal(lane.dtype, *f.shape)
    (gradient, *_), (expected, *_), (terms, *_) = lane.backward(call, grad_out), *call.expected_backward(grad_out)
    assert_close(gradient, expected, terms)


@each_lane
def test_a_large_offset_costs_no_accuracy(lane: Lane) -> None:
    """f + constant has the normalised filter of f, to the rounding of the filter's range."""
    f = small_integers(lane.dtype, 4, 5, 3, 3)
    offset = 2.0 ** {"float16": 8, "bfloat16": 5, "float32": 21, "float64": 50}[lane.dtype]
    raised = rounded(values(f) + offset, lane.dtype)
    near, far = (lane.forward(Call(FILTER_NORM, (a, None, None), {"axes": (2, 3)})) for a in (f, raised))
    assert bits(near) == bits(far)


@each_lane
@pytest.mark.parametrize("axes", [(2, 3), (3, 2), (-2, -3), (0, -1), (4, 1)])
def test_axes_in_any_order_and_from_either_end(lane: Lane, axes: tuple[int, int]) -> None:
    f = normal(lane.dtype, 2, 3, 3, 2, 4)
    z = values(f)
    centred = z - z.mean(axes, keepdims=True)
    deviation = z.std(axes, ddof=1, keepdims=True)
    span = (z.max(axes, keepdims=True) - z.min(axes, keepdims=True)) / deviation
    out = lane.forward(Call(FILTER_NORM, (f, None, None), {"axes": axes}))
    assert_close(out, centred / (deviation + 1e-10), abs(centred / deviation) + span)


@each_lane
@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (3, 1), (4, 1, 1), (2, 1, 3, 2), (2, 4, 3, 2), (1, 4, 1, 2)])
def test_scale_and_shift_broadcast_as_in_numpy(lane: Lane, shape: tuple[int, ...]) -> None:
    f, scale, shift = normal(lane.dtype, 2, 4, 3, 2), normal(lane.dtype, *shape), normal(lane.dtype, *shape, seed=1)
    alone, terms = Call(FILTER_NORM, (f, None, None), {"axes": (2, 3)}).expected_forward()
    call = Call(FILTER_NORM, (f, scale, shift), {"axes": (2, 3)})
    by, plus = values(scale), values(shift)
    assert_close(lane.forward(call), alone * by + plus, terms * abs(by) + abs(plus))
    grad_out = normal(lane.dtype, 2, 4, 3, 2, seed=2)
    _, grad_scale, grad_shift = lane.backward(call, grad_out)
    summed = tuple(d for d in range(4) if d < 4 - len(shape) or shape[d - 4] == 1)
    for gradient, expected, its_terms in (
        (grad_scale, values(grad_out) * alone, abs(values(grad_out)) * terms),
        (grad_shift, values(grad_out), abs(values(grad_out))),
    ):
        assert_close(gradient, expected.sum(summed).reshape(shape), its_terms.sum(summed).reshape(shape))


@each_lane
@pytest.mark.parametrize(("kh", "H", "W"), [(2, 70, 5), (1, 130, 2)])
def test_gradients_of_parameters_are_summed_in_parts(lane: Lane, kh: int, H: int, W: int) -> None:
    """Over so many filters that every kernel splits the sum; several elements, whose parts must not mix."""
    f = normal(lane.dtype, 2, 3, kh, 2, H, W)
    scale, shift = normal(lane.dtype, 3, 1, 1, 1, W), normal(lane.dtype, 3, kh, 1, 1, W)
    call = Call(FILTER_NORM, (f, scale, shift), {"axes": (2, 3)})
    grad_out = normal(lane.dtype, *f.shape, seed=1)
    for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert_close(gradient, want, terms)


K = 0  # stands for the extent of a kernel


@each_lane
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        ((3, 1, 1, 1, 1), (3, 1, 1, 1, 1)),
        ((3, K, K, 1, 1), (3, K, K, 1, 1)),
        ((9, 41), (9, 41)),
        ((2, 3, K, 1, 9, 41), (1,)),
        ((1, K, 1, 1), (K, K, 1, 41)),
    ],
)
def test_spatial_filters_side_by_side(lane: Lane, kernel: int, scale: tuple[int, ...], shift: tuple[int, ...]) -> None:
    """Whole runs of them and a rest, where some have equal taps; parameters of groups, taps and places."""
    f = normal(lane.dtype, 2, 3, kernel, kernel, 9, 41)
    f[:, :, :, :, 2, 3:7] = f[0, 0, 0, 0, 0, 0]
    shapes = ([extent or kernel for extent in shape] for shape in (scale, shift))
    parameters = (normal(lane.dtype, *shape, seed=seed) for seed, shape in enumerate(shapes))
    call = Call(FILTER_NORM, (f, *parameters), {"axes": (2, 3)})
    assert_close(lane.forward(call), *call.expected_forward())
    grad_out = normal(lane.dtype, *f.shape, seed=1)
    for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert_close(gradient, want, terms)


@each_lane
@pytest.mark.parametrize("kernel", [(3, 3), (2, 7)])
def test_filters_of_every_size_side_by_side(lane: Lane, kernel: tuple[int, int]) -> None:
    """Each is normalised, and has gradients, as if its neighbours were of its own size."""
    sizes = np.geomspace(TINY[lane.dtype], HUGE[lane.dtype], 150)
    f = rounded(values(normal(lane.dtype, 1, *kernel, 150)) * sizes / 8, lane.dtype)
    scale, shift = normal(lane.dtype, 150), normal(lane.dtype, *kernel, 1)
    call = Call(FILTER_NORM, (f, scale, shift), {"axes": (1, 2)})
    assert_close(lane.forward(call), *call.expected_forward())
    # Gradients that are large where the filters are tiny would leave the range.
    grad_out = rounded(values(normal(lane.dtype, *f.shape, seed=1)) * np.sqrt(sizes / sizes[-1]), lane.dtype)
    for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert_close(gradient, want, terms)


@each_lane
def test_gradients_of_every_size_side_by_side(lane: Lane) -> None:
    """Also those that add up to almost more than the type holds."""
    largest = HUGE[lane.dtype] * (1e6 if lane.dtype in ("float32", "bfloat16") else 1)
    f, sizes = normal(lane.dtype, 1, 3, 3, 150), np.geomspace(TINY[lane.dtype], largest, 150)
    grad_out = rounded(values(normal(lane.dtype, *f.shape, seed=1)) / 4 * sizes, lane.dtype)
    call = Call(FILTER_NORM, (f, normal(lane.dtype, 150), None), {"axes": (1, 2)})
    for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, want, terms)


@each_lane
def test_as_many_dimensions_as_there_may_be(lane: Lane) -> None:
    """None of which can be merged with its neighbour, since scale varies along every other one."""
    f, scale = normal(lane.dtype, 2, 2, 3, 2, 2, 3, 2, 2), normal(lane.dtype, 2, 1, 3, 1, 2, 1, 1, 1)
    call = Call(FILTER_NORM, (f, scale, scale), {"axes": (6, 7)})
    assert_close(lane.forward(call), *call.expected_forward())
    grad_out = normal(lane.dtype, *f.shape, seed=1)
    for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
        assert_close(gradient, want, terms)


def test_a_single_tap_has_no_deviation() -> None:
    with pytest.raises(ValueError, match=r"filter_norm: f must have at least 2 taps .*, got shape \(2, 3, 1, 1\)"):
        dynk.filter_norm(np.ones((2, 3, 1, 1)), axes=(2, 3))
