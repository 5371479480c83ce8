"""Every Python block of the README runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_is_a_block_for_raw_arrays_pytorch_and_jax():
    assert all(name in block for name, block in zip(("numpy", "dynk_torch", "dynk_jax"), BLOCKS, strict=True))


@pytest.mark.parametrize("block", BLOCKS, ids=["raw", "torch", "jax"])
def test_block_runs(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
