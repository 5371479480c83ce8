"""What an output sees of the image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def effective_receptive_field(fn: Callable[[Tensor], Tensor], x: Tensor, at: tuple[int, int]) -> Tensor:
    r"""Return how much each pixel of the image counts for an output position (LS-DFN Fig. 6, DK section 3.2).

    .. math::
        R_{n,y,x} = \sum_c \left| \frac{\partial}{\partial X_{n,c,y,x}} \sum_o out_{n,o,at} \right|

    Parameters
    ----------
    fn : callable (N, C, H, W) -> (N, O, Ho, Wo)
        A layer or a network, such as a `torch.nn.Module`; put it into evaluation first if it draws numbers.
    x : Tensor (N, C, H, W)
        The image, floating.
    at : (int, int)
        Row and column of the output position; negative ones count from the end.

    Returns
    -------
    Tensor (N, H, W)
        Of one backward pass. `dynk.plot_erf` draws it.

    Raises
    ------
    ValueError
        If image or output have no four axes, or the position is outside the output.

    Examples
    --------
    >>> import torch, dynk_torch
    >>> blur = torch.nn.AvgPool2d(3, stride=1, padding=1)
    >>> dynk_torch.effective_receptive_field(blur, torch.rand(1, 1, 4, 4), (0, 1))[0] * 9
    tensor([[1., 1., 1., 0.],
            [1., 1., 1., 0.],
            [0., 0., 0., 0.],
            [0., 0., 0., 0.]])
    """
    if x.ndim != 4:
        msg = f"effective_receptive_field: x must have shape (N, C, H, W), got {tuple(x.shape)}"
        raise ValueError(msg)
    with torch.enable_grad():
        image = x.detach().requires_grad_()
        out = fn(image)
        if out.ndim != 4 or not all(-size <= i < size for i, size in zip(at, out.shape[2:], strict=True)):
            msg = f"effective_receptive_field: at must be a position of the output {tuple(out.shape)}, got {at}"
            raise ValueError(msg)
        seen = out[:, :, at[0], at[1]].sum()
        if not seen.requires_grad:  # the output is no function of the image
            return torch.zeros_like(image[:, 0])
        (gradient,) = torch.autograd.grad(seen, image, allow_unused=True, materialize_grads=True)
    return gradient.abs().sum(1)
