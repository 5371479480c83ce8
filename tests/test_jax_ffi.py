"""The handlers that XLA calls: the layout of its structs, and what a CUDA backend gets, without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from lanes import OPERATORS

import dynk
from dynk._arrays import CudaView
from dynk.kernels.common import run_reference

jax = pytest.importorskip("jax", reason="JAX is not installed")
import dynk_jax  # noqa: E402
from dynk_jax import _ffi, _native, _python  # noqa: E402

DDF = OPERATORS[0]

# struct of c_api.h: (its ctypes counterpart, its fields in the order of the counterpart's)
STRUCTS: dict[str, tuple[Any, str]] = {
    "XLA_FFI_Api_Version": (_python._Version, "struct_size extension_start major_version minor_version"),
    "XLA_FFI_Api": (
        _python._Api,
        """struct_size extension_start api_version internal_api XLA_FFI_Error_Create XLA_FFI_Error_GetMessage
        XLA_FFI_Error_Destroy XLA_FFI_Handler_Register XLA_FFI_Stream_Get XLA_FFI_Type_Register
        XLA_FFI_ExecutionContext_Get XLA_FFI_State_Set XLA_FFI_State_Get XLA_FFI_DeviceMemory_Allocate
        XLA_FFI_DeviceMemory_Free XLA_FFI_ThreadPool_Schedule XLA_FFI_ThreadPool_NumThreads XLA_FFI_Future_Create
        XLA_FFI_Future_SetAvailable XLA_FFI_Future_SetError XLA_FFI_RunId_Get XLA_FFI_DeviceOrdinal_Get""",
    ),
    "XLA_FFI_Buffer": (_python._Buffer, "struct_size extension_start dtype data rank dims"),
    "XLA_FFI_Args": (_python._Buffers, "struct_size extension_start size types args"),
    "XLA_FFI_Rets": (_python._Buffers, "struct_size extension_start size types rets"),
    "XLA_FFI_ByteSpan": (_python._Span, "ptr len"),
    "XLA_FFI_Array": (_python._Array, "dtype size data"),
    "XLA_FFI_Attrs": (_python._Attributes, "struct_size extension_start size types names attrs"),
    "XLA_FFI_Metadata": (_python._Metadata, "struct_size api_version traits"),
    "XLA_FFI_CallFrame": (_python._Frame, "struct_size extension_start api ctx stage args rets attrs"),
    "XLA_FFI_Error_Create_Args": (_python._ErrorCreate, "struct_size extension_start message errc"),
    "XLA_FFI_Error_GetMessage_Args": (_python._ErrorPointer, "struct_size extension_start error message"),
    "XLA_FFI_Error_Destroy_Args": (_python._ErrorPointer, "struct_size extension_start error"),
    "XLA_FFI_Stream_Get_Args": (_python._StreamGet, "struct_size extension_start ctx stream"),
    "XLA_FFI_DeviceOrdinal_Get_Args": (_python._OrdinalGet, "struct_size extension_start ctx device_ordinal"),
}
# position in 64-bit words, as the compiled handlers read it: the C expression that gives its offset
WORDS = {
    "FRAME_EXTENSION": "offsetof(XLA_FFI_CallFrame, extension_start)",
    "FRAME_API": "offsetof(XLA_FFI_CallFrame, api)",
    "FRAME_ARGS": "offsetof(XLA_FFI_CallFrame, args.args)",
    "FRAME_RETS": "offsetof(XLA_FFI_CallFrame, rets.rets)",
    "FRAME_ATTRS": "offsetof(XLA_FFI_CallFrame, attrs.attrs)",
    "BUFFER_DATA": "offsetof(XLA_FFI_Buffer, data)",
    "BUFFER_RANK": "offsetof(XLA_FFI_Buffer, rank)",
    "BUFFER_DIMS": "offsetof(XLA_FFI_Buffer, dims)",
    "ARRAY_SIZE": "offsetof(XLA_FFI_Array, size)",
    "ARRAY_DATA": "offsetof(XLA_FFI_Array, data)",
    "API_VERSION": "offsetof(XLA_FFI_Api, api_version.major_version)",
    "API_ERROR_CREATE": "offsetof(XLA_FFI_Api, XLA_FFI_Error_Create)",
    "EXTENSION_METADATA": "offsetof(XLA_FFI_Metadata_Extension, metadata)",
    "METADATA_VERSION": "offsetof(XLA_FFI_Metadata, api_version.major_version)",
    "METADATA_TRAITS": "offsetof(XLA_FFI_Metadata, traits)",
    "ERROR_MESSAGE": "offsetof(XLA_FFI_Error_Create_Args, message)",
    "ERROR_CODE": "offsetof(XLA_FFI_Error_Create_Args, errc)",
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to read the headers with")
def test_layouts_are_those_of_the_header(tmp_path: Path) -> None:
    expressions = [f"offsetof({name}, {field})" for name, (_, fields) in STRUCTS.items() for field in fields.split()]
    expressions += [*WORDS.values(), "offsetof(XLA_FFI_Metadata_Extension, metadata)"]
    constants = ["XLA_FFI_ExecutionStage_EXECUTE", "XLA_FFI_Error_Code_INTERNAL", "XLA_FFI_API_MAJOR"]
    constants += [f"XLA_FFI_DataType_{name}" for name in ("F16", "BF16", "F32", "F64", "S32", "S64")]
    prints = "".join(f'printf("%ld\\n", (long)({expression}));' for expression in expressions + constants)
    source = tmp_path / "layouts.c"
    source.write_text(f'#include <stdio.h>\n#include "xla/ffi/api/c_api.h"\nint main(void) {{ {prints} return 0; }}\n')
    program = tmp_path / "layouts"
    subprocess.run(["cc", f"-I{jax.ffi.include_dir()}", str(source), "-o", str(program)], check=True)
    printed = map(int, subprocess.run([program], capture_output=True, text=True, check=True).stdout.split())

    for name, (struct, fields) in STRUCTS.items():
        for (field, _), its_name in zip(struct._fields_, fields.split(), strict=False):
            assert getattr(struct, field).offset == next(printed), f"{name}.{its_name}"
    for name in WORDS:
        assert getattr(_native, name) * 8 == next(printed), name
    assert _python._Extension.metadata.offset == next(printed)
    assert [next(printed) for _ in range(3)] == [_python._EXECUTE, _python._INTERNAL, 0]
    assert _native.INTERNAL == _python._INTERNAL
    names = ("float16", "bfloat16", "float32", "float64", "int32", "int64")
    assert {next(printed): name for name in names} == _python._DTYPES


def test_error_in_a_handler_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        msg = "no memory left"
        raise MemoryError(msg)

    monkeypatch.setattr(run_reference, "run", fail)
    x, channel = np.ones((1, 1, 3, 3), "float32"), np.ones((1, 1, 3, 3), "float32")
    failure = ValueError, jax.errors.JaxRuntimeError
    with dynk.backend("reference"), pytest.raises(failure, match="MemoryError: no memory left"):
        dynk_jax.ddf(x, None, channel).block_until_ready()


@numba.njit
def gather_kernel(x, index, unused, out, geometry, reals):  # type: ignore[no-untyped-def]
    """Copy x[index] to out times a factor, or fail."""
    for k in range(out.size):
        if index[k] >= x.size:
            raise IndexError
        out[k] = x[index[k]] * geometry[0] * reals[0] + unused.size


def test_compiled_handler_of_mixed_dtypes_and_its_error() -> None:
    handler = _native.handler(gather_kernel, 3, ("float32", "int32", "float32", "float32"))
    _ffi._register("dynk_test_gather", "cpu", lambda: handler)
    call = jax.ffi.ffi_call("dynk_test_gather", jax.ShapeDtypeStruct((2,), "float32"))
    attributes = {"geometry": np.array([3]), "reals": np.array([0.5]), "slots": np.array([0, 1, -1, 0, 1, 1, 1, 1])}
    x = np.array([1, 2, 4], "float32")
    np.testing.assert_array_equal(call(x, np.array([2, 0], "int32"), **attributes), [6, 1.5])
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="dynk: the kernel ran out of memory or failed"):
        call(x, np.array([0, 3], "int32"), **attributes).block_until_ready()


class FakeCuda:
    """A CUDA backend that only remembers what it was asked to run."""

    NAME, DEVICE = "fake", "cuda"

    def run(self, *arguments: Any) -> None:
        self.arguments = arguments


class FakeXla:
    """A call frame as XLA's CUDA client makes it, with the API functions that a handler needs.

    The frame calls `ddf_backward` of x (2, 3, 4, 5) with a channel filter, for the gradient of the filter.
    """

    def __init__(self, *, stream_error: int = 0) -> None:
        self.messages: list[bytes] = []
        self.destroyed: list[int] = []
        self.kept: list[Any] = []
        api = _python._Api(struct_size=ctypes.sizeof(_python._Api))
        api.stream_get = self._function(_python._StreamGet, self._stream_get)
        api.device_ordinal_get = self._function(_python._OrdinalGet, self._ordinal_get)
        api.error_create = self._function(_python._ErrorCreate, self._error_create)
        api.error_get_message = self._function(_python._ErrorPointer, self._error_get_message)
        api.error_destroy = self._function(_python._ErrorPointer, self._error_destroy)
        self.stream_error = stream_error
        x, channel = (2, 3, 4, 5), (2, 3, 3, 3)
        frame = _python._Frame(stage=_python._EXECUTE, api=ctypes.pointer(api), context=77)
        frame.arguments = self._buffers([(0x1000, x), (0x2000, x), (0x3000, channel)])
        frame.results = self._buffers([(0x4000, channel)])
        frame.attributes = self._attributes()
        self.frame = frame

    def call(self, handler: Any) -> int | None:
        result: int | None = handler.callback(ctypes.pointer(self.frame))
        return result

    def _keep(self, thing: Any) -> Any:
        self.kept.append(thing)
        return thing

    def _function(self, struct: Any, function: Any) -> int | None:
        called = lambda address: function(struct.from_address(address))  # noqa: E731
        return ctypes.cast(self._keep(_python._ApiFunction(called)), ctypes.c_void_p).value

    def _stream_get(self, arguments: Any) -> int:
        assert arguments.context == 77
        arguments.stream = 0xABC
        return self.stream_error

    def _ordinal_get(self, arguments: Any) -> None:
        arguments.ordinal = 3

    def _error_create(self, arguments: Any) -> int:
        self.messages.append(arguments.message)
        return 0xE

    def _error_get_message(self, arguments: Any) -> None:
        arguments.message = self._keep(b"no stream")

    def _error_destroy(self, arguments: Any) -> None:
        self.destroyed.append(arguments.error)

    def _buffers(self, memories: list[tuple[int, tuple[int, ...]]]) -> Any:
        buffers = [
            _python._Buffer(dtype=11, data=address, rank=len(shape), dims=(ctypes.c_int64 * len(shape))(*shape))
            for address, shape in memories
        ]
        pointers = (ctypes.POINTER(_python._Buffer) * len(buffers))(*map(ctypes.pointer, buffers))
        return self._keep(_python._Buffers(size=len(buffers), buffers=pointers))

    def _attributes(self) -> Any:
        options = ctypes.create_string_buffer(b"((1, 1), (1, 1), 'mul')")
        numbers = (ctypes.c_int64 * 7)(0, 1, -1, 2, -1, -1, 0)
        values = [
            _python._Span(ctypes.addressof(options), len(options.value)),
            _python._Array(5, 7, ctypes.addressof(numbers)),
        ]
        names = [ctypes.create_string_buffer(name) for name in (b"options", b"slots")]
        spans = [_python._Span(ctypes.addressof(name), len(name.value)) for name in names]
        self._keep((options, numbers, values, names))
        return _python._Attributes(
            size=2,
            names=(ctypes.POINTER(_python._Span) * 2)(*map(ctypes.pointer, spans)),
            values=(ctypes.c_void_p * 2)(*map(ctypes.addressof, values)),
        )


def test_a_cuda_backend_gets_views_device_and_stream() -> None:
    runner, xla = FakeCuda(), FakeXla()
    assert xla.call(_python.handler(DDF, "backward", runner)) is None
    op, direction, plan, inputs, outputs, device, stream = runner.arguments
    assert (op, direction, device, stream) == (DDF, "backward", ("cuda", 3), 0xABC)
    assert plan.out_shape == (2, 3, 4, 5)
    assert plan.geometry[-3:] == (0, 1, 0)  # no spatial filter, a channel filter, their product
    grad_out, x, spatial, channel = inputs
    assert (spatial, outputs[:2]) == (None, (None, None))
    for view, pointer, shape in (
        (grad_out, 0x1000, (2, 3, 4, 5)),
        (x, 0x2000, (2, 3, 4, 5)),
        (channel, 0x3000, (2, 3, 3, 3)),
        (outputs[2], 0x4000, (2, 3, 3, 3)),
    ):
        assert isinstance(view, CudaView)
        assert (view.pointer, view.shape, view.dtype, view.device) == (pointer, shape, "float32", 3)
        assert view.strides is None


def test_an_error_of_xla_is_handed_back_to_it() -> None:
    runner, xla = FakeCuda(), FakeXla(stream_error=0xBAD)
    assert xla.call(_python.handler(DDF, "backward", runner)) == 0xE
    assert xla.messages == [b"RuntimeError: XLA: no stream"]
    assert xla.destroyed == [0xBAD]
    assert not hasattr(runner, "arguments")


def test_an_old_xla_is_refused() -> None:
    runner, xla = FakeCuda(), FakeXla()
    xla.frame.api.contents.struct_size = ctypes.sizeof(_python._Api) - 8
    assert xla.call(_python.handler(DDF, "backward", runner)) == 0xE
    assert xla.messages[0].startswith(b"NotImplementedError: this version of XLA tells a handler no device")


def test_nothing_runs_outside_the_execute_stage() -> None:
    runner, xla = FakeCuda(), FakeXla()
    xla.frame.stage = 0
    assert xla.call(_python.handler(DDF, "backward", runner)) is None
    assert not hasattr(runner, "arguments")
