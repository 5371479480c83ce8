"""What `ddf` and `ddf_upsample` share: the options of a filter, its geometry and its derivative."""

from __future__ import annotations

from typing import Any

from dynk import _checks
from dynk._operator import Options, Plan, Shape, Shapes
from dynk.kernels.decoupled.geometry import FilterGeometry

_COMBINE = ("mul", "add")


def combination(function: str, combine: Any) -> str:
    """Return how two filters make one."""
    return _checks.choice(function, "combine", combine, _COMBINE)


def filter_plan(
    function: str,
    dtype: str,
    shapes: Shapes,
    options: Options,
    out_shape: Shape,
    sizes: dict[str, int],
    scale: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    combine: str,
) -> Plan:
    """Make the plan that `ddf` and `ddf_upsample` share once their shapes are bound."""
    _, spatial, channel = shapes
    if spatial is None and channel is None:
        msg = f"{function}: spatial and channel must not both be None"
        raise ValueError(msg)
    groups = sizes.get("G", 1)
    _checks.divides(function, "spatial", groups, "G", "C", sizes["C"])
    _checks.reach(function, sizes["kh"], dilation[0])
    _checks.reach(function, sizes["kw"], dilation[1])
    geometry = FilterGeometry(
        N=sizes["N"],
        C=sizes["C"],
        G=groups,
        H=sizes["H"],
        W=sizes["W"],
        Ho=sizes["Ho"],
        Wo=sizes["Wo"],
        kh=sizes["kh"],
        kw=sizes["kw"],
        scale=scale,
        stride_h=stride[0],
        stride_w=stride[1],
        dilation_h=dilation[0],
        dilation_w=dilation[1],
        has_spatial=int(spatial is not None),
        has_channel=int(channel is not None),
        add=int(combine == "add"),
    )
    return Plan(dtype, out_shape, geometry, options=options)


def filter_derivative(
    index: int, tangent: Any, arrays: tuple[Any, ...], options: Options
) -> tuple[tuple[Any, ...], Options]:
    """Return the call that is the derivative along `tangent`: linear in each argument, or in the pair for "add"."""
    x, spatial, channel = arrays
    if index == 0:
        return (tangent, spatial, channel), options
    adds = options[-1] == "add"
    if index == 1:
        return (x, tangent, None if adds else channel), options
    return (x, None if adds else spatial, tangent), options
