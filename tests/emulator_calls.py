"""Calls that the emulator's own tests make."""

import numpy as np
import pytest
from cuda_emulator import KernelCheckError
from cuda_emulator import fake_cupy as cupy


def launch(module, name, grid, block, *args, **kwargs):
    module.get_function(name)((grid,), (block,), args, **kwargs)


def found(module, name, *args, grid=1, block=64, **kwargs):
    with pytest.raises(KernelCheckError) as caught:
        launch(module, name, grid, block, *args, **kwargs)
    return caught.value


def ramp():
    return cupy.asarray(np.arange(64, dtype=np.float32))


def assert_equal(actual, expected):
    assert np.array_equal(np.asarray(actual), expected)
