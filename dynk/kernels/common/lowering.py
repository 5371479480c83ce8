"""How Numba's compiler makes machine code of a CPU kernel: once, of all that the kernel holds.

By itself Numba optimises every function and makes machine code of it, then does so again for each that calls it, and
for each of the three functions it makes of a parallel loop. That takes two to three times as long and changes nothing.
Nor does looking up anew what each sum of two integers is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from llvmlite.binding import Linkage
from numba.core import codegen, compiler, compiler_machinery, typed_passes, types

# Numba is typed in part only.
JITCodeLibrary: Any = codegen.JITCodeLibrary
CompilerBase: Any = compiler.CompilerBase
DefaultPassBuilder: Any = compiler.DefaultPassBuilder
NativeLowering: Any = typed_passes.NativeLowering
NativeParforLowering: Any = typed_passes.NativeParforLowering
register_pass: Any = compiler_machinery.register_pass
Function: Any = types.Function
NopythonRewrites: Any = typed_passes.NopythonRewrites
unliteral: Any = types.unliteral

VECTOR_BYTES = 64


class AlignedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code whose functions align the stack to vectors, so that those put there do not lie across lines of the cache.

    Reading such a vector back takes some twenty cycles on Zen 4, and where the stack begins differs from run to run.
    """

    def add_ir_module(self, ir_module: Any) -> None:
        for function in ir_module.functions:
            if not function.is_declaration:
                function.attributes.add("nounwind")  # true, and without any in the set llvmlite prints no attribute
                function.attributes.alignstack = VECTOR_BYTES
        super().add_ir_module(ir_module)


class PartLibrary(AlignedLibrary):
    """Code that is only ever linked into other code.

    It is neither optimised nor made machine code by itself: a kernel does both once, with all that it holds.
    """

    @property
    def codegen(self) -> Any:
        return WithoutEngine(self._codegen)

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class KernelLibrary(AlignedLibrary):
    """The code of a kernel. Nothing else calls its parts: LLVM may inline them wherever that pays, and drop them.

    They have no names in machine code ("private", not "internal"), or code that is loaded later and holds the same part
    would call what LLVM made of it here.
    """

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage is Linkage.linkonce_odr:
                function.linkage = Linkage.private
        super()._optimize_final_module()


class WithoutEngine:
    """The code generator of a library that the execution engine does not know."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def set_env(self, env_name: str, env: Any) -> None:
        pass


@register_pass(mutates_CFG=True, analysis_only=False)
class PartLowering(NativeLowering):  # type: ignore[misc]
    """Lowers a function that only kernels call."""

    _name = "dynk_part_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return bool(super().run_pass(state))


@register_pass(mutates_CFG=True, analysis_only=False)
class KernelLowering(NativeParforLowering):  # type: ignore[misc]
    """Lowers a kernel; the functions that Numba makes of its parallel loops are parts of it."""

    _name = "dynk_kernel_lowering"

    def run_pass(self, state: Any) -> bool:
        generator = state.targetctx.codegen()
        state.library = KernelLibrary(generator, state.func_id.func_qualname)
        state.library.enable_object_caching()
        generator._library_class = PartLibrary  # hides that of its class; the compiler's lock is held
        try:
            return bool(super().run_pass(state))
        finally:
            del generator._library_class


@contextmanager
def remembering() -> Iterator[None]:
    """Have Numba remember what a function or an operator returns for some types.

    By itself it tries all that they may be for each call anew. The compiler's lock is held.
    """
    find, known = Function.get_call_type, {}

    def get_call_type(self: Any, context: Any, args: Any, keywords: Any) -> Any:
        if self.typing_key is min or self.typing_key is max:  # else compiled for each number written out
            args = map(unliteral, args)
        args = tuple(args)
        if keywords or not all(kind.is_precise() for kind in args):
            return find(self, context, args, keywords)
        call = (self, context, args)
        if call not in known:
            known[call] = find(self, context, args, keywords)
        return known[call]

    Function.get_call_type = get_call_type  # hides that of its base
    try:
        yield
    finally:
        del Function.get_call_type


class PartCompiler(CompilerBase):  # type: ignore[misc]
    lowering: type = PartLowering

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        of_numba = (NativeLowering, NativeParforLowering)
        pipeline.passes = [
            (self.lowering if step in of_numba else step, says)
            for step, says in pipeline.passes
            if step is not NopythonRewrites  # of array expressions, which kernels do not have
        ]
        pipeline._finalized = False
        pipeline.finalize()
        return [pipeline]


class KernelCompiler(PartCompiler):
    lowering = KernelLowering

    def compile_extra(self, function: Any) -> Any:
        with remembering():
            return super().compile_extra(function)


def without_literals(dispatcher: Any) -> Any:
    """Have a function compiled for the type of its arguments alone, not once more for each number written out."""
    if isinstance(dispatcher, FunctionType):  # the compiler is off
        return dispatcher
    template_of = dispatcher.get_call_template

    def get_call_template(args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return template_of(tuple(map(unliteral, args)), {name: unliteral(kind) for name, kind in keywords.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher
