"""Deformable kernels (DK): convolutions whose kernels are sampled from larger ones, with what infers the points."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dynk.deformable._grid import grid_offsets, sampling
from dynk_jax.functional import ddf, deformable_conv2d, sample_kernel
from dynk_jax.nn._convolution import Pair, check_divides, pair, with_bias


class OffsetParam(nnx.Param[jax.Array]):
    """A parameter of a layer that infers offsets, for optimisers that let those learn at a rate of their own."""


def spread(weight: jax.Array, scope: tuple[int, int], key: jax.Array) -> jax.Array:
    """Return a kernel of the size of the scope that is `weight` where it is sampled on the uniform grid.

    What that leaves open is drawn, as large as the weights: a scope of equal values would have no use for its points.
    """
    sizes = zip(weight.shape[2:], scope, strict=True)
    (rows, of_rows), (columns, of_columns) = ([jnp.asarray(m, weight.dtype) for m in sampling(*s)] for s in sizes)
    drawn = jax.random.normal(key, (*weight.shape[:2], *scope), weight.dtype) * jnp.sqrt((weight**2).mean())
    missing = weight - jnp.einsum("is,ocst,jt->ocij", rows, drawn, columns)
    return drawn + jnp.einsum("si,ocij,tj->ocst", of_rows, missing, of_columns)


class _Generator(nnx.Module):
    """What infers offsets: weights of 0 and a bias, which is what it gives at the start."""

    def __init__(self, shape: tuple[int, ...], offsets: Any, dtype: Any) -> None:
        self.weight = OffsetParam(jnp.zeros(shape, dtype))
        self.bias = OffsetParam(jnp.asarray(offsets, dtype))


class _DeformableKernel(nnx.Module):
    """What local and global deformable kernels share: the kernel in its scope, and the options of the convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        scope: Pair | None,
        options: dict[str, Any],
        groups: int,
        bias: bool,
        rngs: nnx.Rngs,
        dtype: Any,
    ) -> None:
        name = type(self).__name__
        check_divides(name, "groups", groups, in_channels)
        check_divides(name, "groups", groups, out_channels)
        self.kernel_size, self.scope = pair(kernel_size), pair(kernel_size if scope is None else scope)
        if any(k > s for k, s in zip(self.kernel_size, self.scope, strict=True)):
            msg = f"{name}: scope must be at least kernel_size = {self.kernel_size}, got {self.scope}"
            raise ValueError(msg)
        self.stride, self.padding, self.dilation = (pair(options[n]) for n in ("stride", "padding", "dilation"))
        self.groups = groups
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        bound = math.prod(shape[1:]) ** -0.5
        weight = jax.random.uniform(rngs.params(), shape, dtype, -bound, bound)
        self.weight = nnx.Param(spread(weight, self.scope, rngs.params()))
        self.bias: Any = nnx.Param(jax.random.uniform(rngs.params(), shape[:1], dtype, -bound, bound)) if bias else None


class DeformableKernelConv2d(_DeformableKernel):
    r"""A convolution whose kernel is sampled at each pixel from a larger one (local deformable kernels, DK Eq. 7).

    A convolution like the layer's own, with 2*kh*kw outputs, infers how far each tap moves within the scope; it starts
    at 0, from taps spread uniformly over the scope.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of any convolution.
    scope : int or (h, w), optional
        The stored size of the kernel, at least `kernel_size`, which it is if None.
    offset_groups : int, default 1
        Blocks of input channels with offsets of their own.
    data_offsets : bool, default False
        Whether another such convolution, which starts at 0, moves the points in the image too (DK Eq. 11).
    kernel_boundary : {"clip", "zeros"}, default "clip"
        As of `dynk_jax.deformable_conv2d`.
    rngs : nnx.Rngs
        What the parameters are drawn from.

    See Also
    --------
    parameter_labels : tells optimisers what infers offsets.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import DeformableKernelConv2d
    >>> from flax import nnx
    >>> layer = DeformableKernelConv2d(16, 16, 3, scope=4, padding=1, groups=16, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 16, 7, 9))).shape
    (2, 16, 7, 9)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        scope: Pair | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
        data_offsets: bool = False,
        kernel_boundary: str = "clip",
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        super().__init__(in_channels, out_channels, kernel_size, scope, options, groups, bias, rngs, dtype)
        check_divides("DeformableKernelConv2d", "offset_groups", offset_groups, in_channels)
        start = np.tile(grid_offsets(self.kernel_size, self.scope).ravel(), offset_groups)
        self.offset = _Generator((len(start), in_channels, *self.kernel_size), start, dtype)
        still = np.zeros(2 * math.prod(self.kernel_size))
        shape = (len(still), in_channels, *self.kernel_size)
        self.data_offset: Any = _Generator(shape, still, dtype) if data_offsets else None
        self.offset_groups, self.kernel_boundary = offset_groups, kernel_boundary

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution (N, O, Ho, Wo) of an image (N, C, H, W)."""
        return deformable_conv2d(
            x,
            self.weight[...].astype(x.dtype),
            self._offsets(self.offset, x, self.offset_groups),
            None if self.data_offset is None else self._offsets(self.data_offset, x, 1),
            bias=None if self.bias is None else self.bias[...].astype(x.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            kernel_boundary=self.kernel_boundary,
        )

    def _offsets(self, generator: _Generator, x: jax.Array, blocks: int) -> jax.Array:
        weight, sides = generator.weight[...].astype(x.dtype), [(p, p) for p in self.padding]
        out = lax.conv_general_dilated(x, weight, self.stride, sides, rhs_dilation=self.dilation)
        out = with_bias(out, generator.bias)
        return out.reshape(len(x), blocks, *self.kernel_size, 2, *out.shape[2:])


class GlobalDeformableKernelConv2d(_DeformableKernel):
    r"""A convolution whose kernel is sampled for each image from a larger one (global deformable kernels, DK Eq. 6).

    The mean over all pixels and a linear layer with 2*kh*kw outputs, which starts at 0, infer how far each tap moves
    within the scope, from taps spread uniformly over it.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of any convolution: a depth-wise one of an odd kernel with "same" padding and as many outputs as inputs, or a
        1 x 1 one without groups.
    scope : int or (h, w), optional
        The stored size of the kernel, at least `kernel_size`, which it is if None.
    kernel_boundary : {"clip", "zeros"}, default "clip"
        As of `dynk_jax.sample_kernel`.
    rngs : nnx.Rngs
        What the parameters are drawn from.

    See Also
    --------
    parameter_labels : tells optimisers what infers offsets.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import GlobalDeformableKernelConv2d
    >>> from flax import nnx
    >>> layer = GlobalDeformableKernelConv2d(16, 32, 1, scope=2, stride=2, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 16, 8, 10))).shape
    (2, 32, 4, 5)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        scope: Pair | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        kernel_boundary: str = "clip",
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        super().__init__(in_channels, out_channels, kernel_size, scope, options, groups, bias, rngs, dtype)
        same = tuple((k - 1) // 2 * d for k, d in zip(self.kernel_size, self.dilation, strict=True))
        depthwise = groups == in_channels == out_channels and all(k % 2 for k in self.kernel_size)
        if self.padding != same or not (groups == 1 if self.kernel_size == (1, 1) else depthwise):
            msg = (
                "GlobalDeformableKernelConv2d: the layer must be depth-wise with an odd kernel and zero padding that "
                f"keeps the size, or 1x1 without groups, got kernel_size {self.kernel_size}, padding {self.padding}, "
                f"{groups} groups"
            )
            raise ValueError(msg)
        start = grid_offsets(self.kernel_size, self.scope).ravel()
        self.offset = _Generator((len(start), in_channels), start, dtype)
        self.kernel_boundary = kernel_boundary

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution (N, O, Ho, Wo) of an image (N, C, H, W)."""
        weight, bias = (p[...].astype(x.dtype) for p in (self.offset.weight, self.offset.bias))
        offset = (x.mean((2, 3)) @ weight.T + bias).reshape(len(x), 1, *self.kernel_size, 2)
        kernels = sample_kernel(self.weight[...].astype(x.dtype), offset, kernel_boundary=self.kernel_boundary)
        if self.kernel_size != (1, 1):
            out = ddf(x, None, kernels[:, :, 0], stride=self.stride, dilation=self.dilation)
        else:
            out = jnp.einsum("noc,ncyx->noyx", kernels[..., 0, 0], x[:, :, :: self.stride[0], :: self.stride[1]])
        return with_bias(out, self.bias)


def parameter_labels(model: nnx.Module) -> Any:
    """Label a network's parameters for `optax.multi_transform`: "offsets" for what infers offsets, else "rest".

    Parameters
    ----------
    model : nnx.Module
        A network with deformable kernels.

    Returns
    -------
    nnx.State
        A string in the place of each parameter.

    Examples
    --------
    >>> import optax
    >>> from dynk_jax.nn import DeformableKernelConv2d, parameter_labels
    >>> from flax import nnx
    >>> layer = DeformableKernelConv2d(8, 8, 3, scope=4, padding=1, rngs=nnx.Rngs(0))
    >>> rates = {"rest": optax.sgd(0.1), "offsets": optax.sgd(0.01)}
    >>> optimiser = nnx.Optimizer(layer, optax.multi_transform(rates, parameter_labels(layer)), wrt=nnx.Param)
    """

    def label(parameter: Any) -> Any:
        return parameter.replace("offsets" if isinstance(parameter, OffsetParam) else "rest")

    return jax.tree.map(label, nnx.state(model, nnx.Param), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
