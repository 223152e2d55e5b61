"""Objective: a model and a task source joined into functions of the parameters.

Batch norm always normalises with the current batch, at test too (transductive, as the paper does);
the inductive alternative normalises the queries with the statistics of the support set.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from maml_dist.core.episode import Batch, Episode
from maml_dist.core.params import Params
from maml_dist.core.source import TaskSource


def prepare(model: nn.Module) -> nn.Module:
    """Put a model in the state in which it is meta-learned: batch norm on the current batch.

    Raises:
        ValueError: the model draws random numbers (dropout), which tasks do not seed.
    """
    model.train()
    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = None
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise ValueError(
                f"model.{name} is dropout with p={part.p}: set it to 0, it is not seeded"
            )
    return model


def normalises(model: nn.Module) -> bool:
    """Whether a prediction depends on the other examples of its batch, through batch norm."""
    return any(isinstance(part, _BatchNorm) for part in model.modules())


class Objective:
    """The losses and scores of one task as functions of (parameters, data)."""

    def __init__(self, model: nn.Module, source: TaskSource) -> None:
        self._model = prepare(model)
        self._source = source

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The inner loss, a scalar."""
        return self._source.loss(self.output(params, batch.x), batch)

    def query_loss(self, params: Params, batch: Batch) -> Tensor:
        """The outer loss, a scalar."""
        return self._source.query_loss(self.output(params, batch.x), batch)

    def scores(self, params: Params, episode: Episode, *, inductive: bool) -> dict[str, Tensor]:
        """The scalars to report of the query set; inductive needs a support set."""
        if not inductive:
            return self._source.score(self.output(params, episode.query.x), episode.query)
        support = episode.support[0].x
        with _normalised_by_first(self._model, len(support)):
            output = self.output(params, torch.cat([support, episode.query.x]))
        return self._source.score(output[len(support) :], episode.query)

    def output(self, params: Params, x: Tensor) -> Tensor:
        """The model's output [n, …] at x [n, …]."""
        output: Tensor = functional_call(self._model, params, (x,))
        return output


@contextmanager
def broadcasting_refused() -> Iterator[None]:
    """Inside, a loss whose arguments differ in shape raises a UserWarning and computes nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Using a target size")
        yield


@contextmanager
def _normalised_by_first(model: nn.Module, n: int) -> Iterator[None]:
    """Inside, batch norm takes mean and variance from the first `n` examples of a batch alone."""

    def normalise(part: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        over = [dim for dim in range(x.dim()) if dim != 1]
        var, mean = torch.var_mean(x[:n], over, correction=0)
        return batch_norm(x, mean, var, part.weight, part.bias, training=False, eps=part.eps)

    hooks = [
        part.register_forward_hook(normalise)
        for part in model.modules()
        if isinstance(part, _BatchNorm)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
