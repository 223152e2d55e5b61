"""The C++ kernels of a compiled graph, built as one source.

Inductor compiles each kernel by itself, and most of that second goes into templates that all of
them use: fifteen kernels in one source take twice as long as one. The kernels themselves and what
binds them to Python stay inductor's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock


class Kernel(NamedTuple):
    """A kernel that is not built yet, as inductor's generated module asks for it."""

    types: list[str]  # of the arguments, in C++
    source: str


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the kernels that inductor compiles for a CPU are built as one source a graph."""
    from torch._inductor.async_compile import AsyncCompile

    wait = AsyncCompile.wait

    def keep(self: Any, argtypes: list[str], source_code: str) -> Kernel:
        return Kernel(argtypes, source_code)

    def build_all(self: Any, scope: dict[str, Any]) -> None:
        kernels = {name: value for name, value in scope.items() if isinstance(value, Kernel)}
        scope.update(zip(kernels, built(list(kernels.values())), strict=True))
        wait(self, scope)

    with (
        mock.patch.object(AsyncCompile, "cpp_pybinding", keep),
        mock.patch.object(AsyncCompile, "wait", build_all),
    ):
        yield


def built(kernels: list[Kernel]) -> list[Callable[..., None]]:
    """The kernels as functions, from inductor's cache where they were built before.

    Kernels that do not compile beside each other (both define a name) are built one by one.
    """
    from torch._inductor.codecache import CppPythonBindingsCodeCache as Bound
    from torch._inductor.exc import CppCompileError

    if len(kernels) < 2:
        return [Bound.load_pybinding(*kernel) for kernel in kernels]
    # A Python module for each kernel, as inductor makes them, but all of them in one library.
    binders: list[Any] = [
        type("Binder", (Bound,), {"entry_function": f"kernel_{n}"}) for n in range(len(kernels))
    ]
    try:
        library = binders[0].load(_source(kernels, binders))
    except CppCompileError:
        return [Bound.load_pybinding(*kernel) for kernel in kernels]
    return [
        getattr(binder._load_library_inner(library.__file__, library.key), binder.entry_function)
        for binder in binders
    ]


def _source(kernels: list[Kernel], binders: list[Any]) -> str:
    """All kernels with their bindings, each in a namespace; what they include comes before."""
    parts = []
    for kernel, binder in zip(kernels, binders, strict=True):
        name = binder.entry_function
        arguments = ", ".join(
            f"parse_arg<{kind.replace('const ', '')}>(args, {place})"
            for place, kind in enumerate(kernel.types)
        )
        binding = binder.suffix_template.format(
            arg_len=len(kernel.types),
            call_entry_func=f"{name}({arguments}); Py_RETURN_NONE;",
            entry_func=name,
            extra_parse_arg="",
        )
        renamed = f"#define kernel {name}\n{kernel.source}\n#undef kernel"
        parts.append(f"namespace in_{name} {{\n{renamed}\n{binding}\n}}")
    lines = [line.strip() for part in parts for line in part.splitlines()]
    included = dict.fromkeys(line for line in lines if line.startswith("#include"))
    return "\n".join([*included, *parts])
