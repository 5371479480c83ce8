"""Weights from PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx


def load_torch_state_dict(layer: nnx.Module, state_dict: Mapping[str, Any]) -> None:
    """Load the weights of a layer of `dynk_torch.nn` into its twin of `dynk_jax.nn`.

    Both have the same names. A checkpoint of the authors' code comes here by way of
    `dynk_torch.nn.load_author_state_dict`.

    Parameters
    ----------
    layer : nnx.Module
        The twin, which is changed in place.
    state_dict : mapping of str to array
        What the PyTorch layer's `state_dict()` returns, tensors or NumPy arrays.

    Raises
    ------
    ValueError
        Where names or shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from dynk_jax.nn import FilterNorm, load_torch_state_dict
    >>> from flax import nnx
    >>> norm = FilterNorm((1, 1, 3), learn_scale=True, rngs=nnx.Rngs(0))
    >>> load_torch_state_dict(norm, {"scale": np.ones(3, np.float32)})
    >>> norm.scale[...]
    Array([1., 1., 1.], dtype=float32)
    """
    state = nnx.state(layer, (nnx.Param, nnx.BatchStat))
    own = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    # PyTorch counts the batches that its normalisation has seen, and makes nothing of it.
    given = {name: _array(array) for name, array in state_dict.items() if not name.endswith("num_batches_tracked")}
    if own.keys() != given.keys():
        msg = f"load_torch_state_dict: state_dict must have {sorted(own)}, got {sorted(given)}"
        raise ValueError(msg)
    for name, array in given.items():
        if array.shape != own[name].shape:
            msg = f"load_torch_state_dict: {name} must have shape {own[name].shape}, got {array.shape}"
            raise ValueError(msg)
    for name, array in given.items():
        own[name][...] = jnp.array(array, own[name].dtype)  # a copy: PyTorch writes to its own in place
    nnx.update(layer, state)


def _array(array: Any) -> Any:
    """Return a tensor or an array as NumPy's."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
