"""The engine: how a batch of tasks is differentiated, whatever the learner and the domain.

`auto` is decided by this rule:
    batching   one task at a time for convolutions on a CPU (a vmapped one becomes a slow grouped
               convolution), for rollouts on a CPU (one task's thousands of steps fill a core) and
               for recurrent layers; else all tasks of a chunk in one vmap
    running    compiled, where there is none of that (dispatch bounds small models); else traced, as
               are complex parameters, which inductor has no code for, and a learner with a
               meta-gradient of its own (inductor takes minutes for it)
    memory     one graph for a single inner step, step by step for more
    chunk      as many tasks as fit `budget`, by the trace of one task; on a GPU with less memory
               free, fewer (`chunks`)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.compile.partial_eval import PartialEval, PartialEvaluator, no_partial_eval
from maml_dist.core.compile.tracing import Function, TracedFunction
from maml_dist.core.validation import check_minimum, check_positive

GIB = 1 << 30


@dataclass(frozen=True)
class Engine:
    """How tasks are batched and run."""

    arranges: ClassVar[bool] = True  # whether a trace's convolutions may be computed in other ways

    batching: Literal["auto", "task", "vmap"] = "auto"  # one task at a time, or many in a vmap
    chunk: int | None = None  # tasks in one vmap at the most; null: as many as fit the budget
    budget: float = 4.0  # GiB that the tasks of one vmap may take, by a trace
    running: Literal["auto", "eager", "traced", "compiled"] = "auto"  # eager: to debug
    memory: Literal["auto", "graph", "steps"] = "auto"  # steps: flat in the number of inner steps
    # tf32: float32 whose products a GPU rounds to 10 bits; bfloat16: of the passes only
    precision: Literal["float32", "tf32", "float64", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_minimum(self, "engine", chunk=1)
        check_positive(self, "engine", "budget")
        for name in ("chunk", "budget"):
            value = getattr(self, name)
            if self.batching == "task" and value != getattr(Engine, name):
                raise ValueError(
                    f"engine.{name}={value}: engine.batching=task batches nothing; use vmap, or "
                    f"leave {name} out"
                )
        if self.running == "eager" and self.budget != Engine.budget:
            raise ValueError(
                f"engine.budget={self.budget}: engine.running=eager makes no trace to measure; "
                "give engine.chunk instead"
            )

    @property
    def singly(self) -> "Engine":
        """This engine, one task at a time."""
        return replace(self, batching="task", chunk=None, budget=Engine.budget)

    @property
    def dtype(self) -> torch.dtype:
        """Of the meta-parameters and their gradients."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def set_rounding(self) -> None:
        """Tell torch, for this process, to round float32 products on a GPU only where asked to.

        By itself it does so in convolutions: an error of 1% in the meta-gradient of Omniglot.
        """
        rounds = self.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounds

    def resolve(
        self,
        model: nn.Module,
        learner: Learner,
        device: str,
        *,
        on_policy: bool = False,
        peak: Callable[["Engine"], int] | None = None,
    ) -> "Engine":
        """This engine with every `auto` decided.

        Args:
            model: what is meta-learned.
            learner: how.
            device: "cpu" or "cuda".
            on_policy: whether the tasks are rollouts.
            peak: gives the bytes that one task takes.

        Raises:
            ValueError: what is chosen cannot be.
        """
        convolves = any(isinstance(part, nn.modules.conv._ConvNd) for part in model.modules())
        recurs = any(isinstance(part, nn.RNNBase | nn.RNNCellBase) for part in model.modules())
        if recurs and self.batching == "vmap":
            raise ValueError(
                "engine.batching=vmap: torch's recurrent layers have no vmap; use task, or auto"
            )
        whole = learner.own_gradient
        if whole and self.memory == "steps":
            kind = type(learner).__name__
            raise ValueError(
                f"engine.memory=steps: {kind} has a meta-gradient of its own, not step by step; "
                "use graph, or auto"
            )
        engine = self
        if self.batching == "auto":
            alone = recurs or ((convolves or on_policy) and device == "cpu")
            engine = engine.singly if alone else replace(engine, batching="vmap")
        if self.running == "auto":
            traced = convolves or on_policy or recurs or whole
            traced = traced or any(p.is_complex() for p in model.parameters())
            engine = replace(engine, running="traced" if traced else "compiled")
        if self.memory == "auto":
            steps = learner.steps > 1 and not whole
            engine = replace(engine, memory="steps" if steps else "graph")
        unbound = self.chunk is None and engine.batching == "vmap" and engine.running != "eager"
        if unbound and peak is not None:
            chunk = int(self.budget * GIB // max(1, peak(engine)))
            engine = replace(engine, chunk=max(1, chunk))
        return engine

    def parts(self, tensors: list[Tensor]) -> Iterator[list[Tensor]]:
        """Tensors of stacked tasks [task, …] as the engine takes them: single tasks, or chunks."""
        if self.batching == "task":
            yield from map(list, zip(*(tensor.unbind() for tensor in tensors), strict=True))
            return
        tasks = len(tensors[0])
        count = -(-tasks // (self.chunk or tasks))
        if count == 1:
            yield tensors
            return
        pieces = (tensor.tensor_split(count) for tensor in tensors)
        yield from map(list, zip(*pieces, strict=True))

    def over(self, function: Function, *, shared: int) -> Function:
        """`function` of one task's tensors, the first `shared` of them common to all tasks.

        Made one of a part: stacked tasks in one vmap, or a single task.
        """
        if self.batching == "task":
            return function

        def many(*tensors: Tensor) -> object:
            dims = (None,) * shared + (0,) * (len(tensors) - shared)
            return vmap(function, in_dims=dims)(*tensors)

        return many

    def run(self, function: Function, *, compiled: bool = True) -> Function:
        """`function` of tensors as the engine runs it; perhaps never compiled."""
        if self.running == "eager":
            return function
        compiled = compiled and self.running == "compiled"
        return TracedFunction(function, compiled=compiled, arranged=self.arranges)

    def partial_eval(self, function: Function) -> PartialEvaluator:
        """`function` of (tensor, *fixed), made ready at the fixed ones for many tensors."""
        if self.running == "eager":
            return no_partial_eval(function)
        compiled = self.running == "compiled"
        return PartialEval(function, compiled=compiled, arranged=self.arranges)
