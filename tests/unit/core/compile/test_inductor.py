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
