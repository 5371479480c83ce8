"""Dynamic filters in the place of a network's convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def convert(
    model: Network,
    layer: Any,
    *,
    where: Callable[[str, nn.Conv2d], bool] | None = None,
    **options: Any,
) -> Network:
    """Put a dynamic filter in the place of a network's convolutions.

    Parameters
    ----------
    model : torch.nn.Module
        The network, which is changed in place.
    layer : DDF, Involution, or callable
        What takes the place: a class with `from_conv` and `replaces`, or a function that makes a layer of a
        `torch.nn.Conv2d`.
    where : callable (name, conv) -> bool, optional
        Which convolutions are replaced. If None all that the class can stand in for: k x k convolutions, k above 1,
        with as many outputs as inputs and outputs of the size of their inputs. A function replaces all with k above 1.
    **options
        Passed on, such as `groups=2` for `DDF`.

    Returns
    -------
    torch.nn.Module
        `model`, or what takes its place if it is a convolution itself. A convolution that is used at several places
        becomes one layer that is used there.

    Raises
    ------
    TypeError
        If `layer` is a class that cannot stand in for a convolution, such as PADConv2d, which passes a state on.
    ValueError
        Where `where` chooses a convolution that the layer cannot stand in for.

    Examples
    --------
    >>> import dynk_torch, torch
    >>> from dynk_torch.nn import DDF
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1))
    >>> _ = dynk_torch.convert(network, DDF)
    >>> [type(layer).__name__ for layer in network]
    ['Conv2d', 'ReLU', 'DDF']
    """
    if isinstance(layer, type) and not hasattr(layer, "replaces"):
        msg = f"convert: layer must be able to stand in for a convolution, as DDF or Involution, got {layer.__name__}"
        raise TypeError(msg)
    make = getattr(layer, "from_conv", layer)
    fits = getattr(layer, "replaces", _has_several_taps)
    made: dict[nn.Conv2d, nn.Module] = {}
    for name, conv in list(model.named_modules(remove_duplicate=False)):
        if type(conv) is not nn.Conv2d or not (fits(conv) if where is None else where(name, conv)):
            continue
        if conv not in made:
            made[conv] = make(conv, **options)
        if not name:
            return made[conv]  # type: ignore[return-value]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[conv])
    return model


def _has_several_taps(conv: nn.Conv2d) -> bool:
    return conv.kernel_size != (1, 1)
