"""The array libraries besides NumPy; imported when the first of their arrays arrives.

Importing this module imports none of the libraries: each is reached through `sys.modules`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from dynk._arrays import (
    CPU,
    NUMPY,
    CudaView,
    Device,
    View,
    loaded,
    numpy_name,
    numpy_view,
    on_line,
    register,
    show_device,
)
from dynk._operator import Shape
from dynk.kernels.common.dtypes import ITEMSIZE, STORAGE


def is_jax_tracer(array: object) -> bool:
    """Return whether `array` is a value that JAX is tracing."""
    jax = loaded("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def _is_subclass(module: str, name: str, cls: type) -> bool:
    owner = loaded(module)
    base = getattr(owner, name, None)
    return isinstance(base, type) and issubclass(cls, base)


# ---- PyTorch -------------------------------------------------------------------------------------------------------


class _Torch:
    name = "PyTorch"

    def describe(self, array: Any) -> tuple[Shape, str, Device]:
        torch = loaded("torch")
        if array.requires_grad and torch.is_grad_enabled():
            msg = "a tensor that does not require grad; call the function of dynk_torch, or pass tensor.detach()"
            raise TypeError(msg)
        if torch._C._functorch.is_functorch_wrapped_tensor(array) or _has_tangent(torch, array):
            msg = "a tensor outside torch.func and forward-mode differentiation; call the function of dynk_torch"
            raise TypeError(msg)
        if array.layout is not torch.strided or array.is_nested:
            msg = f"a dense tensor, got layout {array.layout}"
            raise TypeError(msg)
        device = array.device
        if device.type not in ("cpu", "cuda"):
            msg = f"on the CPU or a CUDA device, got device {device}"
            raise TypeError(msg)
        # What a subclass says of its dtype need not be so.
        dtype = array.dtype if type(array) is torch.Tensor else torch.Tensor.dtype.__get__(array)
        return tuple(array.shape), str(dtype).removeprefix("torch."), (device.type, device.index or 0)

    def view(self, array: Any, dtype: str) -> View:
        try:
            tensor = array.detach().resolve_conj().resolve_neg()
            if not tensor.data_ptr() and tensor.numel():
                msg = "a tensor with memory, got one whose storage was freed"
                raise TypeError(msg)
            return torch_view(tensor, dtype)
        except RuntimeError as error:  # as the tensors of torch.func.vmap and of fake modes raise
            msg = f"a tensor with memory of its own, got {type(array).__name__}: {error}"
            raise TypeError(msg) from None

    def writable(self, array: Any) -> str | None:
        if array.is_neg():
            return "a tensor without a pending negation"
        if not array.is_contiguous():
            return f"C-contiguous, got strides {tuple(array.stride())}"
        if not array.is_inference():  # a backward pass that saved it must notice the change
            loaded("torch").autograd.graph.increment_version(array)
        return None

    def allocate(self, shape: Shape, dtype: str, device: Device) -> tuple[View, Any]:
        torch = loaded("torch")
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=show_device(device))
        return torch_view(tensor, dtype), tensor

    def finish(self, memory: Any, dtype: str, like: Any) -> Any:
        return memory

    def send(self, values: npt.NDArray[Any], device: Device, like: Any) -> Any:
        return loaded("torch").from_numpy(values).to(show_device(device))

    def stream(self, device: Device) -> int:
        return 0 if device[0] == "cpu" else int(loaded("torch").cuda.current_stream(device[1]).cuda_stream)


def _has_tangent(torch: Any, tensor: Any) -> bool:
    forward_ad = torch.autograd.forward_ad
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def torch_view(tensor: Any, dtype: str) -> View:
    """Return the memory of a detached dense tensor as it lies."""
    if tensor.is_cuda:
        strides = tuple(step * ITEMSIZE[dtype] for step in tensor.stride())
        return CudaView(tensor, tensor.data_ptr(), tuple(tensor.shape), dtype, tensor.device.index or 0, strides)
    if dtype == "bfloat16":
        return np.asarray(tensor.view(loaded("torch").uint16).numpy())
    array: npt.NDArray[Any] = tensor.numpy()
    return array.view(np.int16) if dtype == "float16" else array


# ---- JAX -----------------------------------------------------------------------------------------------------------


class _Jax:
    name = "JAX"

    def describe(self, array: Any) -> tuple[Shape, str, Device]:
        if array.is_deleted():
            msg = "alive, got a JAX array whose buffer was deleted or donated"
            raise TypeError(msg)
        devices = array.devices()
        if len(devices) != 1:
            msg = f"on one device, got a JAX array sharded over {len(devices)}"
            raise TypeError(msg)
        (device,) = devices
        if device.platform not in ("cpu", "gpu"):
            msg = f"on the CPU or a CUDA device, got platform {device.platform}"
            raise TypeError(msg)
        # JAX may be told to see several devices in one CPU.
        where = ("cpu", int(device.id)) if device.platform == "cpu" else ("cuda", int(device.local_hardware_id or 0))
        return tuple(array.shape), array.dtype.name, where

    def view(self, array: Any, dtype: str) -> View:
        (device,) = array.devices()
        if device.platform == "cpu":
            return numpy_view(np.asarray(array), dtype)
        array.block_until_ready()  # a JAX array outside jit belongs to no stream of the caller's
        pointer = array.unsafe_buffer_pointer()
        return CudaView(array, pointer, tuple(array.shape), dtype, int(device.local_hardware_id or 0))

    def writable(self, array: Any) -> str | None:
        return "a mutable array, got a JAX array"

    def allocate(self, shape: Shape, dtype: str, device: Device) -> tuple[View, Any]:
        if device[0] == "cuda":
            return _cuda_allocate(shape, dtype, device)
        memory = on_line(shape, STORAGE[dtype])
        return memory, memory

    def finish(self, memory: Any, dtype: str, like: Any) -> Any:
        jax = loaded("jax")
        wanted = jax.numpy.dtype(dtype)
        (device,) = like.devices()
        # A float64 array may have come from a block where JAX keeps float64, though it does not here.
        with jax.enable_x64(True) if dtype == "float64" else nullcontext():
            if isinstance(memory, np.ndarray):
                # Aligned memory is taken over, not copied.
                return jax.device_put(memory.view(wanted), device, may_alias=True)
            return jax.dlpack.from_dlpack(memory).view(wanted)

    def send(self, values: npt.NDArray[Any], device: Device, like: Any) -> Any:
        (where,) = like.devices()
        return loaded("jax").device_put(values, where)

    def stream(self, device: Device) -> int:
        return 0 if device[0] == "cpu" else _cupy_stream(device)


# ---- CUDA arrays ---------------------------------------------------------------------------------------------------


def _cuda_interface_view(array: Any, dtype: str, device: int) -> CudaView:
    interface = array.__cuda_array_interface__
    return CudaView(array, interface["data"][0], tuple(interface["shape"]), dtype, device, interface.get("strides"))


def _cuda_allocate(shape: Shape, dtype: str, device: Device) -> tuple[View, Any]:
    cupy = _require_cupy()
    with cupy.cuda.Device(device[1]):
        memory = cupy.empty(shape, STORAGE[dtype])
    return _cuda_interface_view(memory, dtype, device[1]), memory


def _cuda_send(values: npt.NDArray[Any], device: Device) -> Any:
    cupy = _require_cupy()
    with cupy.cuda.Device(device[1]):
        return cupy.asarray(values)


def _require_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        msg = "CuPy is needed to make CUDA arrays of this kind: install dynk[cuda12] or dynk[cuda13]"
        raise NotImplementedError(msg) from error
    return cupy


def _cupy_stream(device: Device) -> int:
    return int(_require_cupy().cuda.get_current_stream(device[1]).ptr)


class _Cupy:
    name = "CuPy"

    def describe(self, array: Any) -> tuple[Shape, str, Device]:
        return tuple(array.shape), numpy_name(array.dtype), ("cuda", int(array.device.id))

    def view(self, array: Any, dtype: str) -> View:
        return _cuda_interface_view(array.view(STORAGE[dtype]), dtype, int(array.device.id))

    def writable(self, array: Any) -> str | None:
        return None if array.flags.c_contiguous else f"C-contiguous, got strides {array.strides}"

    def allocate(self, shape: Shape, dtype: str, device: Device) -> tuple[View, Any]:
        view, memory = _cuda_allocate(shape, dtype, device)
        return view, memory.view(_bfloat16() if dtype == "bfloat16" else dtype)

    def finish(self, memory: Any, dtype: str, like: Any) -> Any:
        return memory

    def send(self, values: npt.NDArray[Any], device: Device, like: Any) -> Any:
        return _cuda_send(values, device)

    def stream(self, device: Device) -> int:
        return _cupy_stream(device)


def _bfloat16() -> Any:
    import ml_dtypes  # CuPy's bfloat16 is that of ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


class _NumbaCuda:
    name = "Numba CUDA"

    def describe(self, array: Any) -> tuple[Shape, str, Device]:
        return tuple(array.shape), numpy_name(array.dtype), ("cuda", self._device())

    def view(self, array: Any, dtype: str) -> View:
        return _cuda_interface_view(array, dtype, self._device())

    def writable(self, array: Any) -> str | None:
        return None if array.is_c_contiguous() else f"C-contiguous, got strides {array.strides}"

    def allocate(self, shape: Shape, dtype: str, device: Device) -> tuple[View, Any]:
        memory = loaded("numba.cuda").device_array(shape, np.dtype(dtype))
        return _cuda_interface_view(memory, dtype, device[1]), memory

    def finish(self, memory: Any, dtype: str, like: Any) -> Any:
        return memory

    def send(self, values: npt.NDArray[Any], device: Device, like: Any) -> Any:
        return loaded("numba.cuda").to_device(values)

    def stream(self, device: Device) -> int:
        # Numba knows no current stream: its default one is the stream of every call without an explicit stream.
        return int(loaded("numba.cuda").default_stream().handle.value or 0)

    def _device(self) -> int:
        return int(loaded("numba.cuda").get_current_device().id)


# ---- DLPack --------------------------------------------------------------------------------------------------------


class _Dlpack:
    """Any other producer.

    DLPack reads arrays but makes none: results come back through the array namespace of one that has it, such as the
    libraries of the array API standard have, else as NumPy or CuPy arrays.
    """

    name = "DLPack"

    def describe(self, array: Any) -> tuple[Shape, str, Device]:
        borrowed, device = self._borrow(array)
        return tuple(borrowed.shape), numpy_name(borrowed.dtype), device

    def view(self, array: Any, dtype: str) -> View:
        borrowed, device = self._borrow(array)
        if device == CPU:
            return numpy_view(borrowed, dtype)
        return _cuda_interface_view(borrowed.view(STORAGE[dtype]), dtype, device[1])

    def writable(self, array: Any) -> str | None:
        borrowed, device = self._borrow(array)
        if device == CPU:
            return NUMPY.writable(borrowed)
        return None if borrowed.flags.c_contiguous else f"C-contiguous, got strides {borrowed.strides}"

    def allocate(self, shape: Shape, dtype: str, device: Device) -> tuple[View, Any]:
        return NUMPY.allocate(shape, dtype, device) if device == CPU else _cuda_allocate(shape, dtype, device)

    def finish(self, memory: Any, dtype: str, like: Any) -> Any:
        namespace = getattr(like, "__array_namespace__", None)
        return memory if namespace is None else namespace().from_dlpack(memory)

    def send(self, values: npt.NDArray[Any], device: Device, like: Any) -> Any:
        memory = values if device == CPU else _cuda_send(values, device)
        return self.finish(memory, values.dtype.name, like)

    def stream(self, device: Device) -> int:
        return 0 if device == CPU else _cupy_stream(device)

    def _borrow(self, array: Any) -> tuple[Any, Device]:
        try:
            device_type, device_id = array.__dlpack_device__()
            device_type, device_id = int(device_type), int(device_id)
        except Exception as error:
            msg = f"an array with a working __dlpack_device__, got {type(array).__name__}: {error}"
            raise TypeError(msg) from None
        try:
            if device_type == 1:
                return np.from_dlpack(array), CPU
            if device_type in (2, 13):  # CUDA memory, CUDA managed memory
                return _require_cupy().from_dlpack(array), ("cuda", device_id)
        except NotImplementedError:
            raise
        except Exception as error:
            msg = f"an array with a working __dlpack__, got {type(array).__name__}: {error}"
            raise TypeError(msg) from None
        msg = f"on the CPU or a CUDA device, got DLPack device type {device_type}"
        raise TypeError(msg)


register(lambda cls: issubclass(cls, np.ndarray) and not issubclass(cls, np.ma.MaskedArray), NUMPY)
register(lambda cls: _is_subclass("torch", "Tensor", cls), _Torch())
register(lambda cls: cls.__module__.startswith("jaxlib") and cls.__name__ == "ArrayImpl", _Jax())
register(lambda cls: _is_subclass("cupy", "ndarray", cls), _Cupy())
register(lambda cls: cls.__name__ == "DeviceNDArray" and loaded("numba.cuda") is not None, _NumbaCuda())
register(lambda cls: hasattr(cls, "__dlpack__") and hasattr(cls, "__dlpack_device__"), _Dlpack())
