import shutil
import subprocess
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch._inductor

from maml_dist.core import compiler
from maml_dist.core.replay import Replay


def test_without_a_compiler_the_trace_is_replayed_and_that_is_said_once(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\nand a long explanation")

    for name in ("compile", "standalone_compile"):
        monkeypatch.setattr(torch._inductor, name, broken)
    monkeypatch.setattr(compiler, "_said", set())
    run = Replay(lambda a: a * 2, compiled=True)
    with pytest.warns(UserWarning, match="engine.running=compiled: .*No working C.. compiler"):
        assert run(torch.ones(2)).tolist() == [2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(torch.ones(3)).tolist() == [2, 2, 2]
        assert Replay(lambda a: a * 3, compiled=True)(torch.ones(2)).tolist() == [3, 3]


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_the_compiler_is_asked_which_instructions_it_knows():
    def knows(flags):
        return compiler.knows(SimpleNamespace(build_arch_flags=lambda: flags), "")

    assert knows("") and knows("-O1 -g1")
    assert not knows("-O1 -mno-such-instructions")


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_to_compile_no_program_is_run_that_tries_out_the_processor(monkeypatch, tmp_path):
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    ran, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: ran.append(str(a[0])) or run(*a, **k))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    valid_vec_isa_list.cache_clear()
    values = torch.linspace(0, 1, 50)
    assert Replay(lambda a: a * 7 + 3, compiled=True)(values).equal(values * 7 + 3)
    assert ran and not any("LoadLibrary" in each for each in ran)
