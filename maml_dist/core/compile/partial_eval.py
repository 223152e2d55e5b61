"""A function of (tensor, *fixed), prepared at the fixed ones for many values of the tensor.

Its trace is cut in two: what depends on the fixed tensors alone is computed once and held; what
the tensor reaches is replayed for each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from maml_dist.core.compile.tracing import Function, TracedFunction, plain, ready, trace

# (*fixed, like=, room=) -> the function of the tensor, and the bytes that it holds
PartialEvaluator = Callable[..., tuple[Callable[[Tensor], Any], int]]


class PartialEval:
    """Prepares `function`, traced once for each shape of its arguments."""

    def __init__(
        self, function: Function, *, compiled: bool = False, arranged: bool = True
    ) -> None:
        self._function = function
        self._compiled = compiled
        self._arranged = arranged
        self._cuts: dict[Any, _Cut] = {}
        self._whole = TracedFunction(
            function, compiled=compiled, arranged=arranged
        )  # nothing is held

    def __call__(
        self, *fixed: Tensor, like: Tensor, room: float
    ) -> tuple[Callable[[Tensor], Any], int]:
        """The function of a tensor that is like `like`; holds nothing that takes over `room` bytes.

        Returns:
            The function, and the bytes that it holds besides its arguments.
        """
        inputs, key = plain((like, *fixed))
        if key not in self._cuts:
            self._cuts[key] = _Cut(
                self._function, inputs, compiled=self._compiled, arranged=self._arranged
            )
        halves = self._cuts[key]
        if halves.held > room:
            return lambda tensor: self._whole(tensor, *fixed), 0
        kept = halves.first(inputs[1:])
        return lambda tensor: halves.second(tensor, inputs[1:], kept), halves.held


def no_partial_eval(function: Function) -> PartialEvaluator:
    """Holds nothing: computes all of it for each tensor."""

    def at(*fixed: Tensor, like: Tensor, room: float) -> tuple[Callable[[Tensor], Any], int]:
        return lambda tensor: function(tensor, *fixed), 0

    return at


class _Cut:
    """The trace of a function of (tensor, *fixed), in two halves."""

    def __init__(
        self, function: Function, inputs: list[Tensor], *, compiled: bool, arranged: bool
    ) -> None:
        traced, self._spec = trace(function, inputs)
        first, second = cut(traced)
        self._dense = compiled  # compiled code is made for one memory layout
        self._first = ready(first, inputs[1:], compiled=compiled, arranged=arranged)
        kept = self.first(inputs[1:])
        self.held = _bytes(kept, besides=inputs)
        self._second = ready(second, [*inputs, *kept], compiled=compiled, arranged=arranged)

    def first(self, fixed: list[Tensor]) -> list[Tensor]:
        """What is held."""
        with torch.no_grad():
            kept = self._first(*fixed)
            return [tensor.contiguous() for tensor in kept] if self._dense else list(kept)

    def second(self, tensor: Tensor, fixed: list[Tensor], kept: list[Tensor]) -> Any:
        """The function's result, by what is held."""
        with torch.no_grad():
            results = self._second(tensor.contiguous(), *fixed, *kept)
        return pytree.tree_unflatten(results, self._spec)


def cut(traced: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """What its first argument does not reach, of the others; and the rest, of all and of that."""
    arguments = [node for node in traced.graph.nodes if node.op == "placeholder"]
    reached = {arguments[0]}
    for node in traced.graph.nodes:
        if node.op == "output" or any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    kept = [
        node
        for node in traced.graph.nodes
        if node.op not in ("placeholder", "output")
        and node not in reached
        and any(user in reached for user in node.users)
    ]
    first, second = fx.Graph(), fx.Graph()
    of_first: dict[fx.Node, fx.Node] = {}
    of_second: dict[fx.Node, fx.Node] = {}
    for graph, own, given in (
        (first, of_first, arguments[1:]),
        (second, of_second, arguments + kept),
    ):
        for node in given:
            own[node] = graph.placeholder(node.name)
            own[node].meta = node.meta
    for node in traced.graph.nodes:
        graph, own = (second, of_second) if node in reached else (first, of_first)
        if node.op == "output":
            second.output([of_second[result] for result in node.args[0]])
        elif node not in own:
            own[node] = graph.node_copy(node, own.__getitem__)
    first.output([of_first[node] for node in kept])
    first.eliminate_dead_code()
    return fx.GraphModule(traced, first), fx.GraphModule(traced, second)


def _bytes(tensors: list[Tensor], *, besides: list[Tensor]) -> int:
    """What their storages take, shared ones once, but not those of `besides`."""
    others = {tensor.untyped_storage().data_ptr() for tensor in besides}
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(
        tensor.untyped_storage().nbytes()
        for place, tensor in storages.items()
        if place not in others
    )
