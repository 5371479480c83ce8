"""`plot_erf`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def plot_erf(erf: Any, image: Any = None, *, at: tuple[float, float] | None = None, axes: Any = None) -> Any:
    """Draw an effective receptive field, over the image if there is one.

    Parameters
    ----------
    erf : array (H, W)
        One image's field, as `dynk_torch.effective_receptive_field` or its twin of `dynk_jax` returns it for each; of
        NumPy, CuPy, Numba, PyTorch or JAX.
    image : array (H, W), (C, H, W) or (H, W, C), optional
        Grey or RGB, of 1 or 3 channels; drawn in grey behind the field.
    at : (float, float), optional
        Row and column in the image of what the field belongs to; marked with a cross.
    axes : matplotlib.axes.Axes, optional
        What to draw on; a figure of its own if None.

    Returns
    -------
    matplotlib.axes.Axes
        Its `figure` can be saved.

    Raises
    ------
    ValueError
        For a field that is no matrix, or an image of another size.
    ImportError
        Without matplotlib, which `pip install "dynk[plot]"` brings.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> erf = np.zeros((5, 7))
    >>> erf[1:4, 2:5] = 1
    >>> axes = dynk.plot_erf(erf, at=(2, 3))
    >>> axes.images[0].get_array().shape
    (5, 7)
    """
    field = _numpy(erf)
    if field.ndim != 2:
        msg = f"plot_erf: erf must have shape (H, W), got {field.shape}"
        raise ValueError(msg)
    grey = None if image is None else _grey(_numpy(image), field.shape)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        msg = 'plot_erf needs matplotlib: pip install "dynk[plot]"'
        raise ImportError(msg) from error
    if axes is None:
        axes = Figure(layout="constrained").add_subplot()
    largest = float(field.max(initial=0.0))
    strength = np.sqrt(np.clip(field / largest if largest > 0 else field, 0, 1))  # the tails of a field are long
    if grey is None:
        axes.imshow(strength, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(grey, cmap="gray", interpolation="nearest")
        axes.imshow(strength, cmap="magma", vmin=0, vmax=1, alpha=0.15 + 0.75 * strength, interpolation="nearest")
    if at is not None:
        axes.plot(at[1], at[0], marker="+", markersize=12, markeredgewidth=2, color="#21d07a")
    axes.set_xlim(-0.5, field.shape[1] - 0.5)
    axes.set_ylim(field.shape[0] - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _numpy(array: Any) -> npt.NDArray[np.float64]:
    """Return any library's array as NumPy's."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().double().numpy()
    elif hasattr(array, "copy_to_host"):
        array = array.copy_to_host()
    elif hasattr(array, "get"):
        array = array.get()
    return np.asarray(array, np.float64)


def _grey(image: npt.NDArray[np.float64], size: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return an image as a matrix of the field's size."""
    for axis in (0, -1):
        if image.ndim == 3 and image.shape[axis] in (1, 3) and np.moveaxis(image, axis, 0).shape[1:] == size:
            image = image.mean(axis)
    if image.shape != size:
        expected = f"(H, W), (C, H, W) or (H, W, C) with (H, W) = {size}"
        msg = f"plot_erf: image must have shape {expected}, got {image.shape}"
        raise ValueError(msg)
    return image
