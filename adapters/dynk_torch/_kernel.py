"""From plain tensors to the kernels: one check, no copy of what is contiguous, outputs from `torch.empty`.

Plain tensors alone come here: nothing records, traces or transforms the call any more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from dynk import _dispatch
from dynk._arrays import CPU
from dynk._kinds import torch_view
from dynk._operator import Operator, Options, Plan

Tensors = tuple[Tensor | None, ...]
Needs = tuple[bool, ...]

DTYPE_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int32: "int32",
    torch.int64: "int64",
}

_modes_active = torch._C._len_torch_dispatch_stack
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor  # of torch.autograd.grad(is_grads_batched=True)


def plain(tensors: Tensors) -> bool:
    """Return whether kernels may read these tensors' memory as it is; the dispatcher sorts out all others."""
    if _modes_active():
        return False
    for tensor in tensors:
        if tensor is not None:
            cls = type(tensor)
            if (
                (cls is not Tensor and cls is not Parameter)
                or tensor.is_meta
                or tensor.is_neg()
                or tensor._is_zerotensor()
                or _is_legacy_batched(tensor)
            ):
                return False
    return True


def forward(op: Operator, tensors: Tensors, options: Options) -> Tensor:
    """Run the forward kernel."""
    metadata = _metadata(tensors)
    if metadata is None:  # the core finds the words for what is wrong
        return _dispatch.forward(op, tensors, options, None, None)  # type: ignore[no-any-return]
    like, shapes, dtypes = metadata
    plan = op.plan(op.name, shapes, dtypes, options)
    runner = _dispatch.choose(op.name, op, like.device.type, plan.dtype)  # before anything is allocated
    out = torch.empty(plan.out_shape, dtype=like.dtype, device=like.device)
    _launch(runner, op, "forward", plan, like, tensors, dtypes, (out,))
    return out


def backward(op: Operator, everything: Tensors, options: Options, needs: Needs) -> tuple[Tensor, ...]:
    """Run the backward kernels on (grad_out, *tensors); return the needed gradients alone, in order."""
    name = f"{op.name}_backward"
    metadata = _metadata(everything)
    if metadata is not None:
        like, shapes, dtypes = metadata
        plan = op.plan(name, shapes[1:], dtypes[1:], options)
        runner = _dispatch.choose(name, op, like.device.type, plan.dtype)
        found = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed and tensor is not None else None
            for needed, tensor in zip(needs, everything[1:], strict=True)
        ]
        grads = tuple([grad for grad in found if grad is not None])
        agrees = shapes[0] == plan.out_shape and dtypes[0] == plan.dtype
        if agrees and len(grads) == sum(needs) and all(grad.dtype is like.dtype for grad in grads):
            _launch(runner, op, "backward", plan, like, everything, dtypes, tuple(found))
            return grads
    names = [name for name, needed in zip(op.arrays, needs, strict=True) if needed]
    core = _dispatch.backward(op, everything[0], everything[1:], options, names, None, None)
    return tuple(grad for grad in core if grad is not None)


def base(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor without its class, which could have its own idea of shapes and dtypes."""
    if tensor is None or type(tensor) is Tensor:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _metadata(tensors: Tensors) -> tuple[Tensor, tuple[Any, ...], tuple[Any, ...]] | None:
    """Return the first tensor and all shapes and dtype names; None if anything about the tensors is unusual."""
    first = device = None
    shapes: list[tuple[int, ...] | None] = []
    dtypes: list[str | None] = []
    for tensor in tensors:
        if tensor is None:
            shapes.append(None)
            dtypes.append(None)
            continue
        name = DTYPE_NAMES.get(tensor.dtype)
        if first is None:
            first, device = tensor, tensor.device
            if not (tensor.is_cpu or tensor.is_cuda):
                return None
        elif tensor.device != device:
            return None
        if name is None or tensor.layout is not torch.strided or tensor.is_nested:
            return None
        if not tensor.data_ptr() and tensor.numel():  # its storage was freed
            return None
        shapes.append(tuple(tensor.shape))
        dtypes.append(name)
    return None if first is None else (first, tuple(shapes), tuple(dtypes))


def _launch(
    runner: Any,
    op: Operator,
    direction: str,
    plan: Plan,
    like: Tensor,
    inputs: Tensors,
    dtypes: tuple[str | None, ...],
    outputs: Tensors,
) -> None:
    """Run the kernels on PyTorch's current stream of the device of `like`."""
    device, stream = CPU, 0
    if not like.is_cpu:
        device = "cuda", like.get_device()
        stream = int(torch.cuda.current_stream(device[1]).cuda_stream)
    if any(output is not None and output.numel() for output in outputs):
        reads = tuple([None if t is None else _view(t, dtype) for t, dtype in zip(inputs, dtypes, strict=True)])
        writes = tuple([None if t is None else torch_view(t, plan.dtype) for t in outputs])
        runner.run(op, direction, plan, reads, writes, device, stream)


def _view(tensor: Tensor, dtype: Any) -> Any:
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()  # on CUDA too, where it lands in PyTorch's own, capturable memory pool
    return torch_view(tensor.detach() if tensor.requires_grad else tensor, dtype)
