import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch._inductor
from torch._inductor.cpu_vec_isa import VecISA

from maml_dist.core.compile import inductor
from maml_dist.core.compile.tracing import TracedFunction, trace


def test_without_a_compiler_the_trace_is_replayed_and_that_is_said_once(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\nand a long explanation")

    for name in ("compile", "standalone_compile"):
        monkeypatch.setattr(torch._inductor, name, broken)
    monkeypatch.setattr(inductor, "_said", set())
    run = TracedFunction(lambda a: a * 2, compiled=True)
    with pytest.warns(UserWarning, match="engine.running=compiled: .*No working C.. compiler"):
        assert run(torch.ones(2)).tolist() == [2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(torch.ones(3)).tolist() == [2, 2, 2]
        assert TracedFunction(lambda a: a * 3, compiled=True)(torch.ones(2)).tolist() == [3, 3]


class OnGPU:
    """A tensor as the compiler sees one of a GPU; what is computed of it stays here."""

    is_cuda = True

    def clone(self):
        return torch.ones(2)


def compiled_for_gpu(monkeypatch, run):
    """What `compiled` gives where inductor's code is `run`, and the settings it was compiled by."""
    asked = {}

    def compile_(traced, clones, *, dynamic_shapes, options):
        asked.update(options["config_patches"])
        return run

    monkeypatch.setattr(torch._inductor, "standalone_compile", compile_)
    traced, _ = trace(lambda a: a * 2, [torch.ones(2)])
    return inductor.compiled(traced, [OnGPU()]), asked


def test_on_a_gpu_cuda_graphs_are_asked_for_and_their_results_copied(monkeypatch):
    buffer, begun = torch.zeros(2), []  # what every replay of a CUDA graph writes into

    def replay(tensor):
        buffer.add_(tensor)
        return [buffer]

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    run, asked = compiled_for_gpu(monkeypatch, replay)
    assert asked["triton.cudagraphs"] is True
    (first,), (second,) = (run(torch.ones(2)) for _ in range(2))
    assert (first.tolist(), second.tolist()) == ([2, 2], [3, 3]) and len(begun) == 2


def test_a_gpu_without_memory_is_no_missing_compiler(monkeypatch):
    def run(tensor):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compiled_for_gpu(monkeypatch, run)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_the_compiler_is_asked_which_instructions_it_knows():
    def knows(flags):
        return inductor.knows(SimpleNamespace(build_arch_flags=lambda: flags), "")

    assert knows("") and knows("-O1 -g1")
    assert not knows("-O1 -mno-such-instructions")


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_to_compile_the_processor_is_not_tried_out(monkeypatch):
    def tries(instructions, code):
        raise AssertionError(f"{instructions} is tried out")

    asked, compile_ = [], torch._inductor.standalone_compile

    def seen(*args, **options):
        asked.append(VecISA.check_build)
        return compile_(*args, **options)

    monkeypatch.setattr(VecISA, "check_build", tries)
    monkeypatch.setattr(torch._inductor, "standalone_compile", seen)
    values = torch.linspace(0, 1, 50)
    traced, _ = trace(lambda a: a * 7 + 3, [values])
    run = inductor.compiled(traced, [values])
    assert run is not None and run(values)[0].equal(values * 7 + 3)
    assert asked == [inductor.knows] and VecISA.check_build is tries
