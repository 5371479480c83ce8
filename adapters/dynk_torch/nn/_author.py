"""Checkpoints of the authors' own code, in the layout of these layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynk_torch.nn._decoupled import DDF, DDFUp
from dynk_torch.nn._deformable import DeformableKernelConv2d, GlobalDeformableKernelConv2d
from dynk_torch.nn._special_cases import CARAFE, Involution

State = dict[str, Tensor]


def load_author_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], *, strict: bool = True) -> Any:
    """Load a checkpoint of the authors' code into a network that holds layers of `dynk_torch.nn`.

    ==============================  ========================================================================
    layer                           keys of the authors' code, behind the name of the layer
    ==============================  ========================================================================
    `DDF`                           DDFPack: spatial_branch.0.*, and .1.* behind a generator of its own
                                    size; channel_branch.{1,3}.*, channel_branch.4.std
    `DDFUp`                         DDFUpPack: the same for each sub-pixel b, spatial_branch.{b}.*,
                                    channel_branch.{b}.*
    `Involution`                    conv1.conv.*, conv1.bn.*, conv2.conv.*
    `CARAFE`                        channel_compressor.*, content_encoder.*
    `DeformableKernelConv2d`        LocalDeformKernel2d: rotation_conv.*, inner_conv.weight;
                                    DeformKernelConv2d: offset_conv.*, inner_conv.weight
    `GlobalDeformableKernelConv2d`  GlobalDeformKernel2d: fc.*, weight
    ==============================  ========================================================================

    All other keys are taken as they are. Give `DDF` the `groups` of the authors' head, and `DDFUp` the
    `guidance_channels` of their joint_channels; local deformable kernels `kernel_boundary="zeros"` unless the authors'
    rotation_clip is "scope", `data_offsets=True` for DeformKernelConv2d, and `offset_groups` as many as channels for
    several rotation_groups: theirs deal the channels out one by one, ours are blocks of them, so that each channel gets
    a copy of what infers its offsets, which further training tells apart.

    Parameters
    ----------
    model : torch.nn.Module
        A layer or a network of layers, of the shape of the checkpoint.
    state_dict : mapping of str to Tensor
        The checkpoint; it is not changed.
    strict : bool, default True
        Whether all keys must be there and none be left.

    Returns
    -------
    NamedTuple
        What `torch.nn.Module.load_state_dict` returns.

    Raises
    ------
    ValueError
        Where a layer of s*s branches finds fewer of them, and where the `offset_groups` of a layer are neither 1 nor
        as many as channels.
    RuntimeError
        As `torch.nn.Module.load_state_dict`, for other keys or shapes.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import Involution, load_author_state_dict
    >>> layer = Involution(16, 3)
    >>> author = {"conv2.conv.weight": torch.ones(9, 4, 1, 1), "conv2.conv.bias": torch.zeros(9)}
    >>> load_author_state_dict(layer, author, strict=False).unexpected_keys
    []
    >>> layer.branch.predict.weight[0, 0].item()
    1.0
    """
    translated = dict(state_dict)
    for name, layer in model.named_modules(remove_duplicate=False):
        translate = TRANSLATIONS.get(type(layer))
        if translate is None:
            continue
        prefix = f"{name}." if name else ""
        own = {key.removeprefix(prefix): translated.pop(key) for key in state_dict if key.startswith(prefix)}
        translated |= {prefix + key: tensor for key, tensor in translate(layer, own).items()}
    return model.load_state_dict(translated, strict=strict)


def _renamed(state: State, names: Mapping[str, str]) -> State:
    """Return a state with the starts of its keys replaced."""
    found = {}
    for key, tensor in state.items():
        start = next((start for start in names if key.startswith(start)), "")
        found[names.get(start, "") + key.removeprefix(start)] = tensor
    return found


def _ddf(layer: nn.Module, state: State) -> State:
    assert isinstance(layer, DDF)
    spatial = ("look", "predict") if len(layer.spatial_branch) == 2 else ("predict",)
    names = {f"spatial_branch.{i}.": f"spatial_branch.{name}." for i, name in enumerate(spatial)}
    names |= {"channel_branch.1.": "channel_branch.squeeze.", "channel_branch.3.": "channel_branch.predict."}
    return _renamed(state, names | {"channel_branch.4.std": "channel_norm.scale"})


def _ddf_up(layer: nn.Module, state: State) -> State:
    assert isinstance(layer, DDFUp)
    left = dict(state)
    branches = range(layer.scale**2)

    def take(key: str) -> list[Tensor]:
        """Return a tensor of each branch; the key of the first names it."""
        keys = [key.format(b) for b in branches]
        missing = [key for key in keys if key not in left]
        if missing:
            expected = f"{missing[0]} for scale = {layer.scale}"
            msg = f"load_author_state_dict: state_dict must have {expected}, got {list(state)}"
            raise ValueError(msg)
        return [left.pop(key) for key in keys]

    looks = layer.spatial_look is not None
    # Where each branch looks for itself, some releases nest what comes behind.
    behind = next((i for i in ("1.0", "1") if f"spatial_branch.0.{i}.weight" in state), "1") if looks else "0"
    found: State = {}
    for kind in ("weight", "bias"):
        if looks:
            each = take(f"spatial_branch.{{}}.0.{kind}")
            found[f"spatial_look.{kind}"] = torch.stack(each, dim=1).flatten(0, 1)
        found[f"spatial_predict.{kind}"] = torch.cat(take(f"spatial_branch.{{}}.{behind}.{kind}"))
        found[f"channel_branch.squeeze.{kind}"] = torch.cat(take(f"channel_branch.{{}}.1.{kind}"))
        found[f"channel_branch.predict.{kind}"] = torch.cat(take(f"channel_branch.{{}}.3.{kind}"))
    scales = torch.stack([scale.unflatten(0, (layer.channels, -1)) for scale in take("channel_branch.{}.4.std")])
    found["channel_norm.scale"] = scales.transpose(0, 1).flatten()
    return left | found


def _involution(_layer: nn.Module, state: State) -> State:
    return _renamed(
        state, {"conv1.conv.": "branch.reduce.", "conv1.bn.": "branch.norm.", "conv2.conv.": "branch.predict."}
    )


def _carafe(layer: nn.Module, state: State) -> State:
    assert isinstance(layer, CARAFE)
    found = _renamed(state, {"channel_compressor.": "compress.", "content_encoder.": "predict."})
    for key in ("predict.weight", "predict.bias"):
        if key in found:  # the authors' outputs have the sub-pixel innermost, as a pixel shuffle wants them
            outputs = found[key].unflatten(0, (layer.groups, -1, layer.scale**2))
            found[key] = outputs.transpose(1, 2).flatten(0, 2)
    return found


def _local_kernel(layer: nn.Module, state: State) -> State:
    assert isinstance(layer, DeformableKernelConv2d)
    channels = layer.offset.in_channels
    if layer.offset_groups not in (1, channels):
        expected = f"a layer of offset_groups = 1 or {channels}"
        msg = f"load_author_state_dict: rotation_groups need {expected}, got {layer}"
        raise ValueError(msg)
    found = _renamed(
        state, {"rotation_conv.": "offset.", "offset_conv.": "data_offset.", "inner_conv.weight": "weight"}
    )
    factors = torch.tensor(layer.dilation * (layer.kernel_size[0] * layer.kernel_size[1]))
    for kind, like in layer.offset.named_parameters():
        key, moved = f"offset.{kind}", f"data_offset.{kind}"
        if key in found and layer.offset_groups == channels:  # the authors' channel c takes group c % rotation_groups
            given = found[key]
            found[key] = given.repeat(len(like) // max(1, len(given)), *[1] * (given.ndim - 1))
        if moved in found:  # in multiples of the dilation, and the points in the kernel stay where they are
            found[moved] = found[moved] * factors.to(found[moved]).view(-1, *[1] * (found[moved].ndim - 1))
            found.setdefault(key, torch.zeros_like(like))
    return found


def _global_kernel(_layer: nn.Module, state: State) -> State:
    return _renamed(state, {"fc.": "offset."})


TRANSLATIONS: dict[type[nn.Module], Callable[[nn.Module, State], State]] = {
    DDF: _ddf,
    DDFUp: _ddf_up,
    Involution: _involution,
    CARAFE: _carafe,
    DeformableKernelConv2d: _local_kernel,
    GlobalDeformableKernelConv2d: _global_kernel,
}
