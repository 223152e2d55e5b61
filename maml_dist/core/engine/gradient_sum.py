"""What a batch of tasks gives to one meta-update."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class GradientSum(NamedTuple):
    """The sum over the finite tasks of a batch, and what is told of each task."""

    gradient: Tensor  # [size], summed over the finite tasks; for what is kept, its new values
    finite: Tensor  # [task]: the task's loss and gradient are finite
    metrics: dict[str, Tensor]  # each [task]


def sum_gradients(gradients: Tensor, metrics: dict[str, Tensor]) -> GradientSum:
    """The sum of gradients [task, size]; `loss/after` is the loss that must be finite."""
    finite = gradients.isfinite().all(1) & metrics["loss/after"].isfinite()
    gradient = torch.where(finite.unsqueeze(1), gradients, 0).sum(0)
    return GradientSum(gradient, finite, metrics)


def add_sums(parts: Iterable[GradientSum]) -> GradientSum:
    """The sum of several batches, one or more, with the tasks of one after those of another.

    Each is added where it is, as it comes: not all of their gradients are held at once.
    """
    gradient: Tensor | None = None
    finite, metrics = [], []
    for part in parts:
        gradient = part.gradient if gradient is None else gradient + part.gradient
        finite.append(part.finite)
        metrics.append(part.metrics)
    assert gradient is not None
    if len(finite) == 1:
        return GradientSum(gradient, finite[0], metrics[0])
    joined = {name: torch.cat([told[name] for told in metrics]) for name in metrics[0]}
    return GradientSum(gradient, torch.cat(finite), joined)
