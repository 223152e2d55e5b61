"""The inner loop of a loaded model, and its predictions, as functions of one task's tensors.

They compute with modules of their own, so that threads wait for nobody: a copy of the model's that
shares its parameters, of which none is written. What a vmap makes of them is of many tasks.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.episode import Batch
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import Params


def own_modules(model: nn.Module, statistics: Params) -> nn.Module:
    """A copy of a model that shares its parameters, with these running statistics."""
    modules = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for name, value in statistics.items():
        owner, _, key = name.rpartition(".")
        modules.get_submodule(owner)._buffers[key] = value.clone()
    modules.train(model.training)
    return modules


class InnerLoop:
    """How a model adapts to one task."""

    def __init__(
        self, modules: nn.Module, learner: Learner, source: TaskSource, meta: Params, it: Tensor
    ) -> None:
        """Adapts from `meta` by the loss of `source`, as at meta-iteration `it`."""
        self._loss = Objective(modules, source, strict=True).loss
        self._learner, self._meta, self._it = learner, meta, it
        self._key = torch.zeros((), dtype=torch.int64, device=it.device)

    def weights(self, support: tuple[Batch, ...]) -> Params:
        """The model's parameters after a step on each support batch."""
        return self._learner.adapt(self._loss, self._meta, support, self._it, self._key)

    def changed(self, support: tuple[Batch, ...]) -> Params:
        """Those of them that are not the meta-parameters themselves."""
        weights = self.weights(support)
        return {name: v for name, v in weights.items() if v is not self._meta.get(name)}


class Predictor:
    """A model's outputs by given parameters, its parts in the modes that they are in.

    Nothing is dropped out. What its forward pass leaves in the modules is taken back.
    """

    def __init__(self, modules: nn.Module, source: TaskSource) -> None:
        self._objective = Objective(modules, source, as_it_is=True)

    def __call__(self, weights: Params, x: Any) -> Any:
        """At x [n, …]; parameters that are not given are the model's own."""
        return self._objective.output(weights, x)
