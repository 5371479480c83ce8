"""Run CUDA kernels on the CPU, with a checker that watches every access. For tests, on machines without a GPU.

Use
---
::

    module = RawModule(source, options=("-Ifolder",), name_expressions=["scale<float, 3>"])
    kernel = module.get_function("scale<float, 3>")
    with emulated(order="reverse"):
        kernel((blocks,), (threads,), (x, y, np.int32(n)), shared_mem=0)

``RawModule`` is called as ``cupy.RawModule`` is; arrays are NumPy's, with float16 stored as int16 or float16 and
bfloat16 as uint16. ``numba_kernels.NumbaKernel(kernel)[grid, block, stream, shared_mem](*args)`` runs a kernel of
``numba.cuda.jit``. ``fake_cupy`` has the few functions of CuPy that a launcher needs; its ``empty`` knows which bytes
were never written. Whatever is wrong with a kernel or its call raises ``KernelCheckError``: the kind of fault, the
source line, block and thread, and the other party of a race.

How it works
------------
Compiling. CUDA C++ is nearly C++. ``cuda_on_cpu.h``, included before the unmodified source, defines the keywords away,
the built-in variables as calls into the runtime, and the functions that have no C++ counterpart; NVIDIA's own
headers compute the half types on the host. ``__shared__`` becomes ``thread_local``: one OS thread runs everything, so
that is one copy for all, found in the symbol table, and legal after ``extern``. Dynamic shared arrays stay undefined
symbols, which a few lines of assembly then place, all at one address. ``library`` caches what it compiles, by content.

Running (``runtime/scheduler.cpp``). Each CUDA thread of a block is a fibre with a stack of 64 KiB. It runs until it
waits at a barrier or in a warp operation, or ends; when all that must arrive have arrived, the scheduler lets them go
on. Blocks run one after the other. The order of blocks and threads is sequential, reverse or shuffled.

Checking (``runtime/checker.cpp``). In mode "check" g++ compiles with -fsanitize=thread,undefined, which puts a call
before every load and store, and a call wherever undefined behaviour is met (a misaligned vector, a signed overflow, an
index outside a fixed array). The sanitizers' libraries are not linked:
``runtime/hooks.cpp`` implements those calls. For every byte of every array, shadow memory holds the last write and the
last read (who, and after how many barriers) and whether it was ever written, from which follow

- out-of-bounds accesses: an address in no array of this launch; arrays are lent as copies far apart from each other,
- uninitialised reads: of shared memory, which is poisoned before each block, and of ``fake_cupy.empty``,
- races: two accesses, one of them a write, not both atomic, by two threads with neither a block barrier nor a
  whole-warp ``__syncwarp`` between them, or by two blocks: found in any order in which the threads happen to run,
- writes through ``const`` pointers and to read-only arrays.

The scheduler finds divergent barriers (two different lines, or threads that have left the kernel), warp operations
without their lanes, and deadlocks. ``runtime/faults.cpp`` turns wild pointers, stack overflows and divisions by zero
into findings, in both modes, so that a wrong kernel does not end the test process. ``raw_module`` checks the arguments
against the kernel's own parameter types, and the launch against the limits of a GPU.

Numba kernels (``numba_kernels``). Their Python functions are compiled again, by Numba for the CPU, with ``cuda``
replaced by a stand-in and arrays by a type whose every access calls the same checker; bounds are checked in both modes.

Limits
------
x86-64 Linux and g++ 11 or newer. Fences order nothing: a flag passed between blocks through global memory is reported
as a race. Arrays on a thread's own stack are watched only where the compiler knows their size. ``memcpy`` of a
variable size goes unseen. Approximate functions are exact, and a*b+c is rounded twice unless written as ``fma``. There
is no inline PTX (sources may test ``CUDA_EMULATOR``), nor textures, cooperative groups or dynamic parallelism;
``__CUDA_ARCH__`` is undefined. Three things are findings though some GPUs get away with them: a shuffle from a lane
that takes no part, a barrier that some threads left behind by returning, and a negative index in a Numba kernel.
"""

from .errors import Finding, KernelCheckError, Place
from .raw_module import Kernel, RawModule
from .settings import ORDERS, Settings, emulated
from .toolchain import emulator_unavailable

__all__ = [
    "ORDERS",
    "Finding",
    "Kernel",
    "KernelCheckError",
    "Place",
    "RawModule",
    "Settings",
    "emulated",
    "emulator_unavailable",
]
