"""Kernels built as one source compute what they compute when each is built by itself."""

import shutil

import pytest
import torch
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppPythonBindingsCodeCache, LambdaFuture

from maml_dist.core.compile import inductor, inductor_kernels
from maml_dist.core.compile.inductor_kernels import Kernel, built, joined
from maml_dist.core.compile.tracing import trace

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")

TIMES = """
#include <cstdint>
{before}
static float factor() {{ return {factor}; }}
extern "C" void kernel(const float* in, float* out, int64_t n)
{{
    for (int64_t i = 0; i < n; i++) out[i] = in[i] * factor();
}}
"""


def times(factor, before=""):
    return Kernel(["const float*", "float*", "int64_t"], TIMES.format(factor=factor, before=before))


def results(functions):
    """Of each function on 0, 1, 2."""
    values = torch.arange(3, dtype=torch.float32)
    outs = [torch.empty(3) for _ in functions]
    for function, out in zip(functions, outs, strict=True):
        function(values, out, 3)
    return [out.tolist() for out in outs]


def test_each_kernel_keeps_its_own_names_in_one_library(monkeypatch):
    def alone(*args, **options):
        raise AssertionError("built by itself")

    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_pybinding", alone)
    functions = built([times(2), times(3), times(0.5)])
    assert results(functions) == [[0, 2, 4], [0, 3, 6], [0, 0.5, 1]]
    assert len({function.__self__.__file__ for function in functions}) == 1
    with pytest.raises(RuntimeError, match="requires 3 args"):
        functions[1](torch.ones(3))


def test_kernels_that_do_not_compile_together_are_built_one_by_one():
    # A macro is not held by a namespace: the second definition of `two` is no C++.
    functions = built([times("two", "#define two 2"), times("two()", "float two() { return 3; }")])
    assert results(functions) == [[0, 2, 4], [0, 3, 6]]


def test_one_kernel_and_none():
    assert built([]) == []
    assert results(built([times(7)])) == [[0, 7, 14]]


def test_a_compiled_graph_is_one_library(monkeypatch):
    def two(a, b):
        c = torch.sin(a) @ b
        return torch.cos(c) @ b, (c * 2).sum(1)

    asked = []
    monkeypatch.setattr(
        inductor_kernels, "built", lambda found: asked.append(found) or built(found)
    )
    a, b = torch.rand(5, 5, dtype=torch.float64), torch.rand(5, 5, dtype=torch.float64)
    traced, _ = trace(two, [a, b])
    run = inductor.compiled(traced, [a, b])
    assert run is not None and [len(found) > 1 for found in asked if found] == [True]
    for result, expected in zip(run(a, b), two(a, b), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=0)


def test_what_else_inductor_waits_for_is_still_waited_for(monkeypatch):
    monkeypatch.setattr("torch._inductor.async_compile.get_compile_threads", lambda: 2)
    scope = {"other": LambdaFuture(lambda: "done"), "ours": times(2)}
    with joined():
        AsyncCompile().wait(scope)
    assert scope["other"] == "done" and results([scope["ours"]]) == [[0, 2, 4]]


def test_outside_inductor_is_as_it_was():
    before = AsyncCompile.cpp_pybinding, AsyncCompile.wait
    with joined():
        assert AsyncCompile.cpp_pybinding is not before[0]
    assert (AsyncCompile.cpp_pybinding, AsyncCompile.wait) == before
