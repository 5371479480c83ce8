"""torch.vmap of an operator: the mapped dimension joins the batch where it can, else the samples run in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from dynk._operator import Operator, Options
from dynk_torch import _autograd
from dynk_torch._autograd import own
from dynk_torch._kernel import Needs, Tensors

InDims = tuple[int | None, ...]


def forward(op: Operator, size: int, in_dims: InDims, tensors: Tensors, options: Options) -> Tensor:
    """Return the mapped output, its mapped dimension first."""
    mapped = _mapped_first(size, in_dims, tensors)
    its_own = own(op)
    if its_own is not None and not _no_batch(mapped):
        return _autograd.forward(op, *its_own.fold(mapped, options))
    if all(name in op.batched for name, dim in zip(op.arrays, in_dims, strict=True) if dim is not None):
        batch = next(
            t.shape[1] for name, t in zip(op.arrays, mapped, strict=True) if t is not None and name in op.batched
        )
        out = _autograd.forward(op, _into_batch(op, mapped), options)
        return out.reshape(size, batch, *out.shape[1:])
    return torch.stack([_autograd.forward(op, _sample(mapped, b), options) for b in range(size)])


def backward(op: Operator, size: int, in_dims: InDims, everything: Tensors, options: Options, needs: Needs) -> Tensors:
    """Return the mapped gradients, their mapped dimension first; `in_dims` and `everything` begin with grad_out."""
    grad, *others = _mapped_first(size, in_dims, everything)
    assert grad is not None  # grad_out is a tensor
    mapped = tuple(others)
    its_own = own(op)
    if its_own is not None and not _no_batch(mapped):
        folded, options = its_own.fold(mapped, options)
        return _unfold(_autograd.backward(op, grad, folded, options, needs), mapped)
    # An argument without N would get one gradient summed over all samples.
    if all(
        name in op.batched or (dim is None and not needed)
        for name, dim, needed in zip(op.arrays, in_dims[1:], needs, strict=True)
    ):
        grads = _autograd.backward(op, grad.flatten(0, 1), _into_batch(op, mapped), options, needs)
        return _unfold(grads, mapped)
    samples = [_autograd.backward(op, grad[b], _sample(mapped, b), options, needs) for b in range(size)]
    return tuple(None if grads[0] is None else torch.stack(grads) for grads in zip(*samples, strict=True))


def _mapped_first(size: int, in_dims: InDims, tensors: Tensors) -> Tensors:
    """Move the mapped dimension to the front; a tensor without one is repeated, as a view."""
    return tuple(
        None if t is None else t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for dim, t in zip(in_dims, tensors, strict=True)
    )


def _into_batch(op: Operator, mapped: Tensors) -> Tensors:
    """Merge the mapped dimension with N; arguments without N, which are not mapped here, stay as they were."""
    return tuple(
        None if t is None else t.flatten(0, 1) if name in op.batched else t[0]
        for name, t in zip(op.arrays, mapped, strict=True)
    )


def _sample(mapped: Tensors, b: int) -> Tensors:
    return tuple(None if t is None else t[b] for t in mapped)


def _unfold(grads: Tensors, mapped: Tensors) -> Tensors:
    return tuple(
        None if grad is None or t is None else grad.reshape(t.shape) for grad, t in zip(grads, mapped, strict=True)
    )


def _no_batch(mapped: Tensors) -> bool:
    """Return whether a sample is empty, whose N of 0 would no longer be the leading dimension after folding."""
    return any(t is not None and 0 in t.shape[1:] for t in mapped)
