"""Whatever is passed, a call ends in an error that names function and argument, what it must be and what it was.

No call here may reach a kernel: the table runs with a backend whose launch fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from unittest import mock

import pytest
from wrong_arrays import CHANNEL, SPATIAL, WRONG_ARRAYS, X
from wrong_options import WRONG_OPTIONS

import dynk
from dynk import _dispatch

WRONG = WRONG_ARRAYS | WRONG_OPTIONS


@pytest.fixture
def _no_launch() -> Iterator[None]:
    """Make a launch on any CPU backend fail the test."""
    launch = mock.Mock(side_effect=AssertionError("a kernel was launched"))
    with (
        mock.patch.object(_dispatch.runner_of("cpu"), "run", launch),
        mock.patch.object(_dispatch.runner_of("reference"), "run", launch),
    ):
        yield


@pytest.mark.usefixtures("_no_launch")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name: str) -> None:
    call, exception, message = WRONG[name]
    beginning = message.removesuffix("...")
    pattern = re.escape(beginning) + ("" if message.endswith("...") else "$")
    with pytest.raises(exception, match=f"^{pattern}") as caught:
        call()
    assert type(caught.value) is exception


def test_every_backend_that_refuses_gives_its_reason() -> None:
    """Where no backend is asked for by name, the error lists each with its reason."""
    with pytest.raises(NotImplementedError) as caught:
        _dispatch.choose("ddf", dynk.decoupled.DDF, "tpu", "float32")
    assert str(caught.value) == (
        "ddf: no backend for float32 arrays on tpu "
        "(cpu: runs on cpu arrays; cupy: runs on cuda arrays; numba-cuda: runs on cuda arrays)"
    )


def test_a_backend_that_lacks_the_dtype_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"float16 arrays on cuda \(numba-cuda: has no float16\)"):
        _dispatch.choose("ddf", dynk.decoupled.DDF, "cuda", "float16", "numba-cuda")


def test_an_unknown_name_in_a_with_block_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^backend: backend must be one of .*, got 'opencl'"), dynk.backend("opencl"):
        pass


def test_a_failed_call_leaves_the_requested_backend_as_it_was() -> None:
    with dynk.backend("reference"):
        with pytest.raises(ValueError, match="combine"), dynk.backend("cpu"):
            dynk.ddf(X, SPATIAL, CHANNEL, combine="max")
        assert _dispatch.choose("ddf", dynk.decoupled.DDF, "cpu", "float32").NAME == "reference"
