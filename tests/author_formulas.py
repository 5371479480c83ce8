"""What the authors' layers compute, step by step in float64: filters from 1x1 convolutions, one after another.

Slow on purpose, and made of nothing that dynk has: shifted images, sums and einsum.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """Return the image whose pixel (y, x) is that at (y + dy, x + dx), 0 outside."""
    H, W = x.shape[2:]
    reach = max(abs(dy), abs(dx))
    return F.pad(x, (reach,) * 4)[:, :, reach + dy : reach + dy + H, reach + dx : reach + dx + W]


def conv1x1(x: Tensor, state: State, name: str) -> Tensor:
    """Mix channels by a 1x1 convolution of a checkpoint."""
    out = torch.einsum("nchw,oc->nohw", x, state[f"{name}.weight"][:, :, 0, 0])
    bias = state.get(f"{name}.bias")
    return out if bias is None else out + bias[:, None, None]


def batch_norm(x: Tensor, state: State, name: str) -> Tensor:
    """Normalise by the statistics of a checkpoint, as in evaluation."""
    weight, bias, mean, var = (
        state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def normalised(filters: Tensor, dim: int, scale: float | Tensor) -> Tensor:
    mean, std = filters.mean(dim, keepdim=True), filters.std(dim, keepdim=True, unbiased=True)
    return (filters - mean) / (std + 1e-10) * scale


def spatial_filters(guide: Tensor, state: State, name: str, taps: int, gain: float) -> Tensor:
    """Return (N, G, T, H, W): a depth-wise look where the checkpoint has one, a 1x1 convolution, and the norm."""
    conv = f"{name}.0"
    for behind in ("1", "1.0"):
        if f"{name}.{behind}.weight" in state:
            look = state[f"{name}.0.weight"]
            size = look.shape[-1]
            seen = [
                look[:, 0, i, j, None, None] * shifted(guide, i - size // 2, j - size // 2)
                for i in range(size)
                for j in range(size)
            ]
            guide = torch.stack(seen).sum(0) + state[f"{name}.0.bias"][:, None, None]
            conv = f"{name}.{behind}"
    filters = conv1x1(guide, state, conv)
    return normalised(filters.reshape(len(filters), -1, taps, *filters.shape[2:]), 2, gain / taps**0.5)


def channel_filters(x: Tensor, state: State, name: str, taps: int) -> Tensor:
    """Return (N, C, T) by pooling, two layers and the norm with a learned scale."""
    pooled = x.mean((2, 3), keepdim=True)
    hidden = conv1x1(pooled, state, f"{name}.1").clamp_min(0)
    filters = conv1x1(hidden, state, f"{name}.3").reshape(*x.shape[:2], taps)
    return normalised(filters, 2, state[f"{name}.4.std"].reshape(x.shape[1], taps))


def filtered(x: Tensor, spatial: Tensor, channel: Tensor, *, size: int, dilation: int, combine: str) -> Tensor:
    """Apply spatial (N, G, T, H, W) and channel (N, C, T) filters at every pixel."""
    spatial = spatial.repeat_interleave(x.shape[1] // spatial.shape[1], dim=1)
    out = torch.zeros_like(x)
    for tap in range(size * size):
        dy, dx = (tap // size - size // 2) * dilation, (tap % size - size // 2) * dilation
        here, everywhere = spatial[:, :, tap], channel[:, :, tap, None, None]
        out += shifted(x, dy, dx) * (here * everywhere if combine == "mul" else here + everywhere)
    return out


def ddf_pack(x: Tensor, state: State, *, size: int, stride: int, dilation: int, combine: str) -> Tensor:
    """Return the output of DDFPack; a stride takes every stride-th pixel."""
    spatial = spatial_filters(x, state, "spatial_branch", size * size, 2**0.5)
    channel = channel_filters(x, state, "channel_branch", size * size)
    out = filtered(x, spatial, channel, size=size, dilation=dilation, combine=combine)
    return out[:, :, ::stride, ::stride]


def bottleneck(x: Tensor, state: State, *, stride: int) -> Tensor:
    """Return the output of a ResNet's bottleneck in evaluation, whose 3x3 convolution is DDFPack."""
    hidden = batch_norm(conv1x1(x, state, "conv1"), state, "bn1").clamp_min(0)
    pack = {key.removeprefix("conv2."): tensor for key, tensor in state.items() if key.startswith("conv2.")}
    hidden = ddf_pack(hidden, pack, size=3, stride=stride, dilation=1, combine="mul")
    hidden = conv1x1(batch_norm(hidden, state, "bn2").clamp_min(0), state, "conv3")
    if "downsample.0.weight" in state:
        x = batch_norm(conv1x1(x[:, :, ::stride, ::stride], state, "downsample.0"), state, "downsample.1")
    return (batch_norm(hidden, state, "bn3") + x).clamp_min(0)


def ddf_up_pack(x: Tensor, joint: Tensor, state: State, *, scale: int, size: int, combine: str) -> Tensor:
    """Return the output of DDFUpPack: a DDF for each sub-pixel, put in its place."""
    N, C, H, W = x.shape
    out = x.new_empty(N, C, H * scale, W * scale)
    for b in range(scale * scale):
        spatial = spatial_filters(joint, state, f"spatial_branch.{b}", size * size, 1.0)
        channel = channel_filters(x, state, f"channel_branch.{b}", size * size)
        one = filtered(x, spatial, channel, size=size, dilation=1, combine=combine)
        out[:, :, b // scale :: scale, b % scale :: scale] = one
    return out


def involution(x: Tensor, state: State, *, size: int, stride: int, dilation: int, group_channels: int) -> Tensor:
    """Return the output of involution in evaluation."""
    N, C, H, W = x.shape
    pooled = x.reshape(N, C, H // stride, stride, W // stride, stride).mean((3, 5))
    hidden = batch_norm(conv1x1(pooled, state, "conv1.conv"), state, "conv1.bn")
    kernels = conv1x1(hidden.clamp_min(0), state, "conv2.conv").reshape(
        N, C // group_channels, size * size, *pooled.shape[2:]
    )
    kernels = kernels.repeat_interleave(group_channels, dim=1)
    out = torch.zeros_like(pooled)
    for tap in range(size * size):
        dy, dx = (tap // size - size // 2) * dilation, (tap % size - size // 2) * dilation
        out += kernels[:, :, tap] * shifted(x, dy, dx)[:, :, ::stride, ::stride]
    return out


def carafe(x: Tensor, state: State, *, scale: int, size: int) -> Tensor:
    """Return the output of CARAFE with one group."""
    N, C, H, W = x.shape
    compressed = conv1x1(x, state, "channel_compressor")
    encoder = state["content_encoder.weight"]
    logits = sum(
        torch.einsum("nchw,oc->nohw", shifted(compressed, i - 1, j - 1), encoder[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    logits = logits + state["content_encoder.bias"][:, None, None]
    weights = F.pixel_shuffle(logits, scale).softmax(1)  # (N, T, s*H, s*W)
    out = x.new_zeros(N, C, H * scale, W * scale)
    for tap in range(size * size):
        source = shifted(x, tap // size - size // 2, tap % size - size // 2)
        nearest = source.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
        out += weights[:, tap, None] * nearest
    return out


def hat(distance: Tensor) -> Tensor:
    """Return the bilinear weight of a grid point at a distance."""
    return (1 - distance.abs()).clamp_min(0)


def sampled(grid: Tensor, points: Tensor) -> Tensor:
    """Return grids (..., S, T) at points (2, ...) of the shape of the grids' other axes, 0 outside."""
    rows, columns = torch.arange(grid.shape[-2]), torch.arange(grid.shape[-1])
    return torch.einsum(
        "...st,...s,...t->...", grid, hat(points[0][..., None] - rows), hat(points[1][..., None] - columns)
    )


def kernel_points(offset: Tensor, size: int, scope: int, *, clip: bool) -> Tensor:
    """Return the points (2, T, ...) of taps in the scope, of offsets (T, 2, ...)."""
    taps = torch.arange(size * size)
    base = torch.stack([taps // size, taps % size]) + (scope - size) / 2
    points = base.reshape(2, -1, *[1] * (offset.ndim - 2)) + offset.transpose(0, 1)
    return points.clamp(0, scope - 1) if clip else points


def deformable_kernel(
    x: Tensor, state: State, *, size: int, padding: int, dilation: int, stride: int, clip: bool
) -> Tensor:
    """Return the output of LocalDeformKernel2d or DeformKernelConv2d: depth-wise, tap by tap, channel by channel."""
    N, C, H, W = x.shape
    weight, scope = state["inner_conv.weight"], state["inner_conv.weight"].shape[-1]
    shape = {"stride": stride, "padding": padding, "dilation": dilation}

    def generated(name: str, groups: int) -> Tensor:
        out = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **shape)
        return out.reshape(N, groups, size * size, 2, *out.shape[2:])

    if "rotation_conv.weight" in state:
        groups = len(state["rotation_conv.bias"]) // (2 * size * size)
        rotation = generated("rotation_conv", groups)
        offset = torch.zeros_like(rotation[:, 0])
    else:
        offset = generated("offset_conv", 1)[:, 0] * dilation
        groups, rotation = 1, torch.zeros_like(offset)[:, None]
    Ho, Wo = offset.shape[-2:]
    out = x.new_zeros(N, C, Ho, Wo)
    anchors = torch.meshgrid(torch.arange(Ho) * stride - padding, torch.arange(Wo) * stride - padding, indexing="ij")
    for n in range(N):
        for c in range(C):
            points = kernel_points(rotation[n, c % groups], size, scope, clip=clip)
            for tap in range(size * size):
                step = tap // size * dilation, tap % size * dilation
                here = torch.stack([anchors[axis] + step[axis] + offset[n, tap, axis] for axis in (0, 1)])
                seen = sampled(x[n, c].expand(Ho, Wo, H, W), here)
                out[n, c] += seen * sampled(weight[c, 0].expand(Ho, Wo, scope, scope), points[:, tap])
    return out


def global_deformable_kernel(x: Tensor, state: State, *, size: int, padding: int) -> Tensor:
    """Return the output of GlobalDeformKernel2d, depth-wise or of size 1."""
    weight = state["weight"]
    scope, out = weight.shape[-1], []
    for image in x:
        offset = state["fc.weight"] @ image.mean((1, 2)) + state["fc.bias"]
        points = kernel_points(offset.reshape(size * size, 2), size, scope, clip=True)
        taps = [
            sampled(weight, points[:, tap].reshape(2, 1, 1).expand(2, *weight.shape[:2])) for tap in range(size * size)
        ]
        kernel = torch.stack(taps, -1).reshape(*weight.shape[:2], size, size)
        out.append(F.conv2d(image, kernel, padding=padding, groups=len(image) // weight.shape[1]))
    return torch.stack(out)
