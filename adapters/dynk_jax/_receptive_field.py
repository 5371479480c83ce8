"""What an output sees of the image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def effective_receptive_field(fn: Callable[[jax.Array], jax.Array], x: jax.Array, at: tuple[int, int]) -> jax.Array:
    r"""Return how much each pixel of the image counts for an output position (LS-DFN Fig. 6, DK section 3.2).

    .. math::
        R_{n,y,x} = \sum_c \left| \frac{\partial}{\partial X_{n,c,y,x}} \sum_o out_{n,o,at} \right|

    Parameters
    ----------
    fn : callable (N, C, H, W) -> (N, O, Ho, Wo)
        A layer or a network.
    x : array (N, C, H, W)
        The image, floating.
    at : (int, int)
        Row and column of the output position; negative ones count from the end.

    Returns
    -------
    jax.Array (N, H, W)
        Of one backward pass. `dynk.plot_erf` draws it.

    Raises
    ------
    ValueError
        If image or output have no four axes, or the position is outside the output.

    Examples
    --------
    >>> import jax.numpy as jnp, dynk_jax
    >>> def blur(x):
    ...     return dynk_jax.ddf(x, None, jnp.ones((1, 1, 3, 3)))
    >>> dynk_jax.effective_receptive_field(blur, jnp.ones((1, 1, 4, 4)), (0, 1))[0]
    Array([[1., 1., 1., 0.],
           [1., 1., 1., 0.],
           [0., 0., 0., 0.],
           [0., 0., 0., 0.]], dtype=float32)
    """
    if jnp.ndim(x) != 4:
        msg = f"effective_receptive_field: x must have shape (N, C, H, W), got {jnp.shape(x)}"
        raise ValueError(msg)

    def seen(image: jax.Array) -> jax.Array:
        out = fn(image)
        if out.ndim != 4 or not all(-size <= i < size for i, size in zip(at, out.shape[2:], strict=True)):
            msg = f"effective_receptive_field: at must be a position of the output {out.shape}, got {at}"
            raise ValueError(msg)
        return out[:, :, at[0], at[1]].sum()

    return jnp.abs(jax.grad(seen)(x)).sum(1)
