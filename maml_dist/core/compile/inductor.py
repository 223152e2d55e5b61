"""The compiler of traced graphs: torch's inductor; where it cannot compile here, that is said once.

What is compiled is kept by inductor's own cache, for the next start too.
"""

import os
import subprocess
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from maml_dist.core.compile.inductor_kernels import joined
from maml_dist.core.process_lock import EXCLUSIVE

_said: set[str] = set()


def compiled(traced: fx.GraphModule, tensors: list[Tensor]) -> Callable[..., Any] | None:
    """The graph for arguments like these; None, said once, where there is no compiler."""
    import torch._inductor as inductor

    on_gpu = any(tensor.is_cuda for tensor in tensors)
    options = {
        "triton.cudagraphs": on_gpu,
        "realize_opcount_threshold": 12,  # a hash used twice is not computed twice: seconds
    }
    _own_buffers(traced.graph)
    traced.recompile()
    patches = {"config_patches": options}
    clones: list[Any] = [tensor.clone() for tensor in tensors]
    try:
        from torch._inductor.cpu_vec_isa import VecISA

        # What a processor can do is known from its name: trying it out takes ten seconds.
        known = mock.patch.object(VecISA, "check_build", knows)
        with EXCLUSIVE, torch.no_grad(), known, joined():
            run: Callable[..., Any] = inductor.standalone_compile(
                traced, clones, dynamic_shapes="from_example_inputs", options=patches
            )
            run(*clones)
    except torch.OutOfMemoryError:  # of a GPU: there is a compiler, and smaller chunks may fit
        raise
    except Exception as error:  # noqa: BLE001 - whatever a compiler or its absence raises
        line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        if line not in _said:
            _said.add(line)
            warnings.warn(
                f"engine.running=compiled: inductor cannot compile here ({line.strip()[:200]}); "
                "the trace is replayed instead",
                stacklevel=2,
            )
        return None
    if not on_gpu:
        return run

    def fresh(*tensors: Tensor) -> list[Tensor]:
        """The results, copied: those of a CUDA graph are overwritten by its next replay."""
        torch.compiler.cudagraph_mark_step_begin()
        return [result.clone() for result in run(*tensors)]

    return fresh


def knows(instructions: Any, code: str) -> bool:
    """Whether the C++ compiler knows a processor's instructions (inductor's VecISA).

    Inductor keeps the answer for this process. Which of them the processor has it knows by itself.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    flags = instructions.build_arch_flags().split()
    command = [get_cpp_compiler(), *flags, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _own_buffers(graph: fx.Graph) -> None:
    """Copy what is scattered into: inductor (2.13) writes into expanded zeros as one element."""
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "")
        if name.startswith(("index_add", "index_put", "scatter", "index_copy")):
            with graph.inserting_before(node):
                form: dict[str, Any] = {"memory_format": torch.contiguous_format}
                own = graph.call_function(torch.ops.aten.clone.default, (node.args[0],), form)
            node.args = (own, *node.args[1:])
