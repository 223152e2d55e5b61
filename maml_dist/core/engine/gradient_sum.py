"""What a batch of tasks gives to one meta-update."""

from collections.abc import Sequence
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


def add_sums(parts: Sequence[GradientSum]) -> GradientSum:
    """The sum of several batches, one or more, with the tasks of one after those of another."""
    if len(parts) == 1:
        return parts[0]
    gradient = parts[0].gradient
    for part in parts[1:]:
        gradient = gradient + part.gradient
    metrics = {name: torch.cat([part.metrics[name] for part in parts]) for name in parts[0].metrics}
    return GradientSum(gradient, torch.cat([part.finite for part in parts]), metrics)
