"""The engine: how a batch of tasks is differentiated, whatever the learner and the domain.

Small models are bound by dispatch, not by arithmetic: there all tasks go through one `vmap`.
Convolutions on a CPU run fastest one task at a time. Either way the function is traced once for
each shape and the trace replayed, which skips autograd and the Python of the model.

Legend: task = stacked tasks, size = elements of the flat meta-parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from maml_dist.core.episode import Episode
from maml_dist.core.learner import Learner
from maml_dist.core.objective import Objective
from maml_dist.core.params import Layout, flatten, unflatten

Function = Callable[..., Any]


@dataclass(frozen=True)
class Engine:
    """How tasks are batched and run."""

    batching: Literal["auto", "task", "vmap"] = "auto"  # one task at a time, or all in one vmap
    traced: bool = True  # trace once for each shape and replay; false: eager, to debug

    def resolve(self, model: nn.Module, device: str) -> "Engine":
        """This engine with `auto` decided: per task for convolutions on a CPU, else vmap."""
        if self.batching != "auto":
            return self
        convolves = any(isinstance(part, nn.modules.conv._ConvNd) for part in model.modules())
        return replace(self, batching="task" if convolves and device == "cpu" else "vmap")

    def over_tasks(self, function: Function) -> Function:
        """`function(shared, one_task)` of one task made one of many: (shared, stacked tasks).

        Its results (a tree of tensors) come back stacked along a leading task axis.
        """
        if self.batching == "vmap":
            return self._runs(vmap(function, in_dims=(None, 0)))
        one = self._runs(function)

        def each(shared: Any, tasks: Any) -> Any:
            leaves, spec = pytree.tree_flatten(tasks)
            results = [
                one(shared, pytree.tree_unflatten(list(task), spec))
                for task in zip(*(leaf.unbind() for leaf in leaves), strict=True)
            ]
            return pytree.tree_map(lambda *values: torch.stack(values), *results)

        return each

    def _runs(self, function: Function) -> Function:
        return Replay(function) if self.traced else function


class Replay:
    """A function traced once for each shape of its arguments, then replayed.

    The trace holds plain tensor operations: no autograd, no Python of the model. Values that the
    function reads as numbers are baked in, so what changes between calls must be a tensor.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._traces: dict[Any, tuple[Function, Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        leaves, spec = pytree.tree_flatten(arguments)
        leaves = [leaf.contiguous() for leaf in leaves]  # a trace holds for one memory layout
        key = (spec, *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
        if key not in self._traces:
            self._traces[key] = self._trace(leaves, spec)
        replay, out_spec = self._traces[key]
        with torch.no_grad():
            return pytree.tree_unflatten(replay(*leaves), out_spec)

    def _trace(self, leaves: list[Tensor], spec: Any) -> tuple[Function, Any]:
        out_spec = None

        def flat(*leaves: Tensor) -> list[Tensor]:
            nonlocal out_spec
            results = self._function(*pytree.tree_unflatten(list(leaves), spec))
            outputs, out_spec = pytree.tree_flatten(results)
            return outputs

        # Cloned: the tracer takes one tensor object in two places for one input, silently.
        traced = make_fx(functionalize(flat))(*(leaf.clone() for leaf in leaves))
        _refuse_random(traced.graph)
        _simplify(traced.graph)
        traced.recompile()
        return traced, out_spec


def _refuse_random(graph: torch.fx.Graph) -> None:
    for node in graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(
                f"model, loss or learner draw random numbers ({node.target}), unseeded"
            )


def _simplify(graph: torch.fx.Graph) -> None:
    """Drop what a replay pays for and does not need: operations that change nothing or repeat."""
    seen: dict[Any, torch.fx.Node] = {}
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        same = _unchanged(node)
        if same is None:
            same = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _unchanged(node: torch.fx.Node) -> Any:
    """The earlier node whose value `node` only hands on, if it does no more than that."""
    aten = torch.ops.aten
    source: Any = node.args[0] if node.args else None
    rest = list(node.args[1:])
    if node.target in (aten.detach.default, aten.alias.default):  # a replay has no autograd
        return source
    reshapes = (aten.view.default, aten._unsafe_view.default, aten.expand.default)
    if node.target in reshapes and _form(node) == _form(source):
        return source
    swaps = (aten.t.default, aten.transpose.int)
    if node.target in swaps and source.target == node.target and source.args[1:] == node.args[1:]:
        return source.args[0]  # swapped back
    if node.target == aten.mul.Scalar and rest == [1] and _form(node) == _form(source):
        return source
    return None


def _form(node: Any) -> Any:
    """Shape and dtype; for what is not computed (a constant), something equal to nothing else."""
    meta = node.meta.get("tensor_meta") if isinstance(node, torch.fx.Node) else None
    return (meta.shape, meta.dtype) if meta else object()


class MetaGradient:
    """The summed meta-gradient of a batch of tasks: what one shard computes."""

    def __init__(
        self, engine: Engine, learner: Learner, objective: Objective, *, into: Layout
    ) -> None:
        def one_task(shared: tuple[Tensor, Tensor], episode: Episode) -> tuple[Tensor, Any]:
            vector, it = shared
            gradient, metrics = learner.gradient(
                objective.loss, objective.query_loss, unflatten(vector, into), episode, it
            )
            return flatten(gradient), metrics

        self._tasks = engine.over_tasks(one_task)

    def __call__(
        self, meta: Tensor, episodes: Episode, it: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient summed over tasks [size], and each metric of each task [task]."""
        gradients, metrics = self._tasks((meta, it), episodes)
        return gradients.sum(0), metrics


class PathScores:
    """The scores of a batch of tasks after 0, 1, … adaptation steps: an evaluation."""

    def __init__(
        self,
        engine: Engine,
        learner: Learner,
        objective: Objective,
        *,
        into: Layout,
        inductive: bool = False,
    ) -> None:
        def one_task(shared: tuple[Tensor, Tensor], episode: Episode) -> dict[str, Tensor]:
            vector, it = shared
            path = learner.path(objective.loss, unflatten(vector, into), episode.support, it)
            scores = [objective.scores(phi, episode, inductive=inductive) for phi in path]
            return {name: torch.stack([score[name] for score in scores]) for name in scores[0]}

        self._tasks = replace(engine, traced=False).over_tasks(one_task)

    def __call__(self, meta: Tensor, episodes: Episode, it: Tensor) -> dict[str, Tensor]:
        """Each score of each task after each step [task, step]."""
        with torch.no_grad():
            scores: dict[str, Tensor] = self._tasks((meta, it), episodes)
        return scores
