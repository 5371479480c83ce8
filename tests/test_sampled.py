"""What makes the sampled family what it is: properties, and NumPy one-liners that share nothing with its kernels."""

from __future__ import annotations

from itertools import product
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lanes import Lane, bits, each_lane_of

from dynk import _dispatch
from dynk._operator import Operator
from dynk.sampled import DYNAMIC_FILTER, LS_DFN
from dynk.testing import Call, assert_close, rounded, strategies, values

each_lane = each_lane_of(LS_DFN)
each_operator = pytest.mark.parametrize("op", [DYNAMIC_FILTER, LS_DFN], ids=lambda op: op.name)
each_reduction = pytest.mark.parametrize("reduce", ["sum", "mean", "max", "none"])
needs_jit = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="a case of real size takes the compiler")
REDUCE = {"sum": np.sum, "mean": np.mean, "max": np.max}


def normal(dtype: str, *shape: int, seed: int = 0) -> Any:
    return rounded(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def small_integers(dtype: str, *shape: int, seed: int = 0) -> Any:
    """Return integers so small that sums of a few products of them are exact in every dtype."""
    return rounded(np.random.default_rng([seed, *shape]).integers(-1, 2, shape), dtype)


def seen(image: Any, dy: int, dx: int) -> Any:
    """Return what each pixel sees at (dy, dx), 0 outside the image."""
    reach = max(abs(dy), abs(dx))
    H, W = image.shape[-2:]
    padded = np.pad(image, ((0, 0),) * (image.ndim - 2) + ((reach, reach),) * 2)
    return padded[..., reach + dy : reach + dy + H, reach + dx : reach + dx + W]


def offsets(extent: int, step: int) -> list[int]:
    return [(k - (extent - 1) // 2) * step for k in range(extent)]


def samples_by_equation(
    x: Any,
    kernel: Any,
    by_sample: Any,
    by_position: Any,
    *,
    s: int,
    step: int,
    dilation: int,
    outside: float,
) -> Any:
    """LS-DFN Eq. 4, term by term: attentions with their residual in them, the positions' one `outside` the image."""
    N, O, _, kh, kw, H, W = kernel.shape  # noqa: E741
    result = np.zeros((N, s, s, O, H, W))
    for (a, dy), (b, dx) in product(enumerate(offsets(s, step)), repeat=2):
        for (i, ty), (j, tx) in product(enumerate(offsets(kh, dilation)), enumerate(offsets(kw, dilation))):
            attention = seen(by_position[:, :, i, j] - outside, dy, dx) + outside
            term = np.einsum("nchw,nochw->nohw", seen(x, dy + ty, dx + tx), kernel[:, :, :, i, j])
            result[:, a, b] += by_sample[:, :, a, b] * attention * term
    return result


def composed(across: Any, within: Any, residual: bool) -> Any:
    """Return the kernel K of Eq. 4."""
    C, (kh, kw) = across.shape[2], within.shape[2:4]
    kernel = np.repeat(within[:, :, None], C, 2)
    kernel[:, :, :, (kh - 1) // 2, (kw - 1) // 2] += across + (1 / C if residual else 0)
    return kernel


# ---- equations -------------------------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize(("kh", "kw"), [(1, 1), (3, 3), (5, 2), (4, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_one_sample_is_the_dynamic_filter_network(lane: Lane, kh: int, kw: int, dilation: int) -> None:
    x, kernel = normal(lane.dtype, 2, 3, 6, 19), normal(lane.dtype, 2, 2, 3, kh, kw, 6, 19)
    out = lane.forward(Call(DYNAMIC_FILTER, (x, kernel), {"dilation": dilation}))
    above, left = (kh - 1) // 2 * dilation, (kw - 1) // 2 * dilation
    below, right = (kh - 1) * dilation - above, (kw - 1) * dilation - left
    padded = np.pad(values(x), ((0, 0), (0, 0), (above, below), (left, right)))
    reach = ((kh - 1) * dilation + 1, (kw - 1) * dilation + 1)
    patches = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))[..., ::dilation, ::dilation]
    equation = "ncyxij,nocijyx->noyx"
    terms = np.einsum(equation, abs(patches), abs(values(kernel)))
    assert_close(out, np.einsum(equation, patches, values(kernel)), terms)


@each_lane
@each_reduction
@pytest.mark.parametrize("residual", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("s", "kernel"), [(3, (3, 3)), (2, (2, 5)), (4, (1, 3))])
def test_ls_dfn_is_equation_4(lane: Lane, reduce: str, residual: Any, s: int, kernel: tuple[int, int]) -> None:
    N, C, O, H, W = 1, 4, 2, 5, 9  # noqa: E741
    fill = small_integers if reduce == "max" else normal
    x, across = fill(lane.dtype, N, C, H, W), fill(lane.dtype, N, O, C, H, W)
    within, by_position = (fill(lane.dtype, N, O, *kernel, H, W, seed=seed) for seed in (1, 2))
    by_sample = fill(lane.dtype, N, O, s, s, H, W)
    options = {"samples": s, "sample_stride": 2, "dilation": 2, "reduce": reduce}
    call = Call(
        LS_DFN,
        (x, across, within, by_sample, by_position),
        {**options, "kernel_residual": residual[0], "attention_residual": residual},
    )
    taps = composed(values(across), values(within), residual[0])
    sizes = {"s": s, "step": 2, "dilation": 2}
    expected = samples_by_equation(
        values(x),
        taps,
        values(by_sample) + residual[0],
        values(by_position) + residual[1],
        outside=float(residual[1]),
        **sizes,
    )
    terms = samples_by_equation(
        abs(values(x)),
        composed(abs(values(across)), abs(values(within)), residual[0]),
        abs(values(by_sample)) + residual[0],
        abs(values(by_position)) + residual[1],
        outside=float(residual[1]),
        **sizes,
    )
    if reduce != "none":
        expected, terms = (REDUCE[reduce](a, axis=(1, 2)) for a in (expected, terms))
    assert_close(lane.forward(call), expected, terms)


@each_lane
@each_reduction
@pytest.mark.parametrize("s", [1, 3])
def test_without_attention_it_is_the_dynamic_filter_of_the_composed_kernel(lane: Lane, reduce: str, s: int) -> None:
    """Exactly: the sums are of small integers, and 1/C is a power of two."""
    x, across = small_integers(lane.dtype, 2, 4, 5, 8), small_integers(lane.dtype, 2, 2, 4, 5, 8)
    within = small_integers(lane.dtype, 2, 2, 3, 2, 5, 8)
    kernel = rounded(composed(values(across), values(within), True), lane.dtype)
    options = {"samples": s, "sample_stride": 2, "reduce": reduce}
    one = lane.forward(Call(LS_DFN, (x, across, within, None, None), options))
    assert bits(values(one)) == bits(values(lane.forward(Call(DYNAMIC_FILTER, (x, kernel), options))))


@each_lane
@pytest.mark.parametrize(("s", "step"), [(1, 1), (3, 1), (4, 3), (5, 8)])
def test_at_initialisation_it_is_the_channel_mean_of_the_samples_inside(lane: Lane, s: int, step: int) -> None:
    N, C, O, H, W = 2, 3, 2, 7, 9  # noqa: E741
    x = normal(lane.dtype, N, C, H, W)
    zeros = [
        rounded(np.zeros(shape), lane.dtype)
        for shape in ((N, O, C, H, W), (N, O, 3, 3, H, W), (N, O, s, s, H, W), (N, O, 3, 3, H, W))
    ]
    out = lane.forward(Call(LS_DFN, (x, *zeros), {"samples": s, "sample_stride": step}))
    shifts = list(product(offsets(s, step), repeat=2))
    expected, terms = (sum(seen(a, dy, dx) for dy, dx in shifts).mean(1) for a in (values(x), abs(values(x))))
    for o in range(O):
        assert_close(out[:, o], expected, terms)


# ---- samples ---------------------------------------------------------------------------------------------------------


@each_lane
@each_operator
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@given(data=st.data())
def test_the_order_of_samples_does_not_matter(lane: Lane, op: Operator, reduce: str, data: st.DataObject) -> None:
    call = data.draw(strategies.calls(op, lane.dtype, small=True))
    options = {**call.options, "reduce": "none"}
    samples, terms = Call(op, call.arrays, options).expected_forward()
    N, s, _, *rest = samples.shape
    order = data.draw(st.permutations(range(s * s)))
    flat, flat_terms = (a.reshape(N, s * s, *rest)[:, order] for a in (samples, terms))
    out = lane.forward(Call(op, call.arrays, {**call.options, "reduce": reduce}))
    assert_close(out, REDUCE[reduce](flat, axis=1), REDUCE[reduce](flat_terms, axis=1))


@each_lane
@pytest.mark.parametrize("residual", [True, False])
def test_linear_in_each_attention(lane: Lane, residual: bool) -> None:
    """A constant added to an attention adds the operator of that constant; exactly, the sums are of small integers."""
    x, across = small_integers(lane.dtype, 1, 2, 5, 8), small_integers(lane.dtype, 1, 2, 2, 5, 8)
    within, by_position = (small_integers(lane.dtype, 1, 2, 3, 3, 5, 8, seed=seed) for seed in (1, 2))
    by_sample = small_integers(lane.dtype, 1, 2, 3, 3, 5, 8, seed=3)
    two = rounded(np.full(by_sample.shape, 2.0), lane.dtype)

    def apply(by_sample: Any, by_position: Any, residuals: Any) -> Any:
        options = {"samples": 3, "sample_stride": 1, "kernel_residual": False, "attention_residual": residuals}
        return values(lane.forward(Call(LS_DFN, (x, across, within, by_sample, by_position), options)))

    def plus_two(attention: Any) -> Any:
        return rounded(values(attention) + 2, lane.dtype)

    out = apply(by_sample, by_position, residual)
    raised = apply(plus_two(by_sample), by_position, residual)
    np.testing.assert_array_equal(raised, out + apply(two, by_position, (False, residual)))
    raised = apply(by_sample, plus_two(by_position), residual)
    np.testing.assert_array_equal(raised, out + apply(by_sample, two, (residual, False)))


@each_lane
@each_operator
def test_max_takes_the_first_of_equal_samples_and_nan_before_all(lane: Lane, op: Operator) -> None:
    """Along a row of 5 pixels of one channel, of which each output sees its neighbours."""
    x = rounded(np.array([[[[3.0, 3.0, 1.0, np.nan, -np.inf]]]]), lane.dtype)
    kernel = rounded(np.ones((1, 1, 1, 1, 5)), lane.dtype)
    arrays = (x, kernel, None, None, None) if op is LS_DFN else (x, kernel.reshape(1, 1, 1, 1, 1, 1, 5))
    options: dict[str, Any] = {"samples": 3, "sample_stride": 1, "reduce": "max"}
    call = Call(op, arrays, {**options, "kernel_residual": False} if op is LS_DFN else options)
    # The rows above and below are outside the image: their samples are 0.
    np.testing.assert_array_equal(values(lane.forward(call))[0, 0, 0], [3, 3, np.nan, np.nan, np.nan])
    grad_out = rounded(np.array([[[[1.0, 2.0, 4.0, 8.0, 16.0]]]]), lane.dtype)
    grad_x, grad_kernel, *_ = lane.backward(call, grad_out)
    np.testing.assert_array_equal(values(grad_x)[0, 0, 0], [1 + 2, 0, 0, 4 + 8 + 16, 0])
    np.testing.assert_array_equal(values(grad_kernel).ravel(), [3, 2 * 3, np.nan, np.nan, np.nan])


@each_lane
@each_reduction
def test_sums_of_several_chains(lane: Lane, reduce: str) -> None:
    """More than twice 64 terms over channels, taps and samples, which every kernel sums in stages."""
    for image, kernel, s in (((1, 130, 2, 5), (1, 2), 2), ((1, 2, 3, 40), (12, 11), 1), ((1, 1, 2, 40), (1, 1), 12)):
        N, C, H, W = image
        shapes: list[Any] = [image, (N, 1, C, H, W), (N, 1, *kernel, H, W), (N, 1, s, s, H, W), (N, 1, *kernel, H, W)]
        arrays = tuple(small_integers(lane.dtype, *shape, seed=k) for k, shape in enumerate(shapes))
        options: dict[str, Any] = {"samples": s, "sample_stride": 1, "kernel_residual": False, "reduce": reduce}
        filters = small_integers(lane.dtype, N, 1, C, *kernel, H, W)
        others = {name: value for name, value in options.items() if name != "kernel_residual"}
        for call in (Call(LS_DFN, arrays, options), Call(DYNAMIC_FILTER, (arrays[0], filters), others)):
            assert_close(lane.forward(call), *call.expected_forward())
            grad_out = small_integers(lane.dtype, *call.plan.out_shape)
            results = zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True)
            for gradient, want, terms in results:
                assert_close(gradient, want, terms)


@each_lane
@pytest.mark.parametrize(
    ("reduce", "C", "O", "H", "W", "s"),
    [("sum", 6, 5, 3, 5, 9), ("max", 6, 5, 3, 5, 9), ("none", 6, 5, 3, 5, 9), ("mean", 33, 2, 34, 1, 2)],
)
def test_more_than_kernels_take_at_once(lane: Lane, reduce: str, C: int, O: int, H: int, W: int, s: int) -> None:  # noqa: E741
    """Of samples, outputs, channels and rows, with a rest of each."""
    fill = small_integers if reduce == "max" else normal
    shapes: list[Any] = [(1, C, H, W), (1, O, C, H, W), (1, O, 1, 2, H, W), (1, O, s, s, H, W), (1, O, 1, 2, H, W)]
    arrays = tuple(fill(lane.dtype, *shape, seed=k) for k, shape in enumerate(shapes))
    call = Call(LS_DFN, arrays, {"samples": s, "sample_stride": 1, "kernel_residual": False, "reduce": reduce})
    assert_close(lane.forward(call), *call.expected_forward())
    grad_out = fill(lane.dtype, *call.plan.out_shape)
    results = zip(LS_DFN.arrays, lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True)
    for name, gradient, want, terms in results:
        assert_close(gradient, want, terms, what=name)


@each_lane
@each_operator
@pytest.mark.parametrize(("C", "O"), [(2049, 1), (1, 2049)])
def test_a_sum_of_thousands_of_equal_terms(lane: Lane, op: Operator, C: int, O: int) -> None:  # noqa: E741
    """Added one by one, each is rounded the same way, and the error exceeds the bound."""
    x, kernel = rounded(np.full((1, C, 1, 1), 0.1), lane.dtype), rounded(np.ones((1, O, C, 1, 1)), lane.dtype)
    if op is LS_DFN:
        call = Call(op, (x, kernel, None, None, None), {"samples": 1, "sample_stride": 1, "kernel_residual": False})
    else:
        call = Call(op, (x, kernel.reshape(1, O, C, 1, 1, 1, 1)), {})
    grad_out = rounded(np.full(call.plan.out_shape, 0.1), lane.dtype)
    number = float(values(x)[0, 0, 0, 0])
    # Against the exact sum: the reference is one of the lanes.
    for result, want in zip(
        (lane.forward(call), *lane.backward(call, grad_out)), (C * number, O * number, number**2), strict=False
    ):
        assert_close(result, np.full(result.shape, want), want)


# ---- borders ---------------------------------------------------------------------------------------------------------


@each_lane
@each_operator
def test_a_tap_outside_the_image_is_not_read(lane: Lane, op: Operator) -> None:
    """NaN and infinity in the filters show which taps are: those of the border must not be multiplied by 0."""
    x = normal(lane.dtype, 1, 2, 4, 33)
    filters = np.ones((1, 1, 3, 3, 4, 33))
    filters[:, :, 0, :, 0] = filters[:, :, 2, :, -1] = np.nan
    filters[..., 0, :, 0] = filters[..., 2, :, -1] = np.inf
    if op is LS_DFN:
        call = Call(op, (x, None, rounded(filters, lane.dtype), None, None), {"samples": 1, "sample_stride": 1})
        call.options["kernel_residual"] = False  # type: ignore[index]
    else:
        call = Call(op, (x, rounded(np.repeat(filters[:, :, None], 2, 2), lane.dtype)), {})
    shifts = list(product([-1, 0, 1], repeat=2))
    expected, terms = (sum(seen(a, dy, dx) for dy, dx in shifts).sum(1) for a in (values(x), abs(values(x))))
    assert_close(lane.forward(call)[:, 0], expected, terms)


@each_lane
@pytest.mark.parametrize("residual", [True, False])
def test_position_attention_outside_the_image(lane: Lane, residual: bool) -> None:
    """A sample centred beyond the edge reads an image of NaN through its taps inside, unless its attention is 0."""
    x = rounded(np.full((1, 1, 1, 3), np.nan), lane.dtype)
    within, attention = (rounded(np.ones((1, 1, 1, 3, 1, 3)), lane.dtype) for _ in range(2))
    call = Call(
        LS_DFN,
        (x, None, within, None, attention),
        {"samples": 3, "sample_stride": 1, "attention_residual": residual, "reduce": "none"},
    )
    # Of the leftmost pixel the sample at the left is centred outside; its right tap is at the pixel.
    left = values(lane.forward(call))[0, 1, 0, 0, 0, 0]
    np.testing.assert_equal(left, np.nan if residual else 0.0)


@each_lane
@each_operator
def test_empty_batch(lane: Lane, op: Operator) -> None:
    shapes, options = op.samples[0]
    arrays = tuple(rounded(np.empty((0, *shape[1:])), lane.dtype) for shape in shapes)
    call = Call(op, arrays, options)
    out = lane.forward(call)
    assert out.shape == call.plan.out_shape
    assert out.shape[0] == 0
    assert [g.shape for g in lane.backward(call, out)] == [a.shape for a in arrays]


# ---- declarations ----------------------------------------------------------------------------------------------------


@each_operator
def test_a_backend_without_kernels_says_so(op: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Operator, "has_launchers", lambda self, backend: False)
    monkeypatch.setattr(_dispatch, "_chosen", {})
    with pytest.raises(NotImplementedError, match=f"cupy: has no kernels for {op.name}; numba-cuda: has no kernels"):
        _dispatch.choose(op.name, op, "cuda", "float32")


@pytest.mark.parametrize("max_of", ["ls_dfn", "dynamic_filter"])
def test_max_has_no_further_derivative(max_of: str) -> None:
    op = LS_DFN if max_of == "ls_dfn" else DYNAMIC_FILTER
    assert op.derivative is not None
    options = op.canonical(samples=2, sample_stride=1, reduce="max")
    with pytest.raises(NotImplementedError, match=f'{max_of}: reduce must not be "max"'):
        op.derivative(0, None, (None,) * len(op.arrays), options)


def equal_terms(dtype: str, C: int, O: int) -> Call:  # noqa: E741
    """Return a call on one pixel whose sums over channels round alike at every term: chains too long would show."""
    x, across = np.full((1, C, 1, 1), 0.1), np.full((1, O, C, 1, 1), 0.1)
    options = {"samples": 1, "sample_stride": 1, "kernel_residual": False}
    return Call(LS_DFN, (rounded(x, dtype), rounded(across, dtype), None, None, None), options)


@needs_jit
@each_lane
@pytest.mark.parametrize(("C", "O"), [(40001, 1), (1, 40001)])
def test_sums_of_very_many_channels_are_formed_in_stages(lane: Lane, C: int, O: int) -> None:  # noqa: E741
    call = equal_terms(lane.dtype, C, O)
    grad_out = rounded(np.full(call.plan.out_shape, 0.1), lane.dtype)
    assert_close(lane.forward(call), *call.expected_forward())
    for name, gradient, expected, magnitude in zip(
        call.op.arrays, lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True
    ):
        if gradient is not None:
            assert_close(gradient, expected, magnitude, what=name)
