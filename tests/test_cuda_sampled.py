"""The CUDA C kernels of the sampled family on the emulator: every path that shapes and options choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated, emulator_unavailable
from emulated import EmulatedCupy
from hypothesis import given
from hypothesis import strategies as st
from test_cuda_c import check, check_normal, normal

from dynk.kernels.common import cuda_launch
from dynk.kernels.sampled import cupy_raw
from dynk.kernels.sampled.geometry import REDUCTIONS
from dynk.sampled import DYNAMIC_FILTER, LS_DFN
from dynk.testing import Call, strategies

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))


@emulation
@pytest.mark.parametrize("dtype", list(cuda_launch.ELEMENT))
@pytest.mark.parametrize("op", [DYNAMIC_FILTER, LS_DFN], ids=lambda op: op.name)
@given(data=st.data())
def test_samples_equal_reference(op: Any, dtype: str, data: st.DataObject) -> None:
    special = data.draw(st.booleans())
    call = data.draw(strategies.calls(op, dtype, allow_nan=special, allow_infinity=special))
    with emulated(order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        check(call, data.draw(strategies.grad_outs(call)))
