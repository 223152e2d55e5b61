"""Greedy policies on random knapsacks: tasks whose loss has no gradient.

    value of an item = weight * exp(taste . attributes),    taste ~ N(1/2, I), hidden: the task
    policy: pack items by falling score of the model, until one does not fit
    loss = -(value packed) / (value of the fractional relaxation), mean over instances

The loss depends on the order of the scores alone: it is piecewise constant in the parameters.
Legend: item = all items of all instances, one instance after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.episode import Batch, Episode, supervised
from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource
from maml_dist.core.validation import check_minimum, check_share, check_size


class Items(NamedTuple):
    """One task: what is to be packed, and by which taste it is valued."""

    taste: np.ndarray  # [attributes]
    attributes: np.ndarray  # [item, attributes], standard normal
    weight: np.ndarray  # [item], U[0.1, 1]


@dataclass(frozen=True)
class Knapsack(TaskSource):
    """Knapsacks: x [task, item, attributes + 1] (the last is the weight) -> a score an item.

    y [task, item, 2]: value, as a share of the bound of its instance, and weight.
    """

    metric = "value"  # share of the bound
    maximize = True

    items: int = 16  # of one instance
    attributes: int = 4  # of an item
    capacity: float = 0.3  # share of the weight of all items
    shots: int = 10  # support instances a task
    query: int = 10  # query instances a task

    def __post_init__(self) -> None:
        sizes = ("items", "attributes", "shots", "query")
        check_minimum(self, "task", **dict.fromkeys(sizes, 1))
        numbers = self.items * (self.shots + self.query) * (self.attributes + 3)
        check_size(self, "task", *sizes, numbers=numbers)
        check_share(self, "task", "capacity")

    def sample(self, key: TaskKey) -> Items:
        """The taste, and the items of all instances."""
        rng, count = key.rng(), self.items * (self.shots + self.query)
        taste = 0.5 + rng.standard_normal(self.attributes)
        attributes = rng.standard_normal((count, self.attributes))
        return Items(taste, attributes, 0.1 + 0.9 * rng.random(count))

    def collect(self, tasks: Sequence[Items], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """The instances of each task, the first `shots` of them for support."""
        taste, attributes, weight = (np.stack(drawn) for drawn in zip(*tasks, strict=True))
        value = weight * np.exp((attributes * taste[:, None]).sum(-1))
        instances = (*value.shape[:1], -1, self.items)
        share = self._share(value.reshape(instances), weight.reshape(instances))
        x = np.concatenate([attributes, weight[..., None]], -1)
        y = np.stack([share.reshape(value.shape), weight], -1)
        cut = self.items * self.shots
        support, query = (
            Batch(torch.from_numpy(x[:, part]).float(), torch.from_numpy(y[:, part]).float())
            for part in (slice(cut), slice(cut, None))
        )
        return supervised(support, query, steps=steps)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Minus the share of the bound that is packed."""
        share, weight = batch.y.reshape(-1, self.items, 2).unbind(-1)  # [instance, items]
        room = self.capacity * weight.sum(-1, keepdim=True)
        order = output.reshape(-1, self.items).argsort(dim=-1, descending=True, stable=True)
        fits = weight.gather(-1, order).cumsum(-1) <= room
        packed: Tensor = (share.gather(-1, order) * fits).sum(-1).mean()
        return -packed

    def score(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The share of the bound that is packed."""
        return {self.metric: -self.loss(output, batch)}

    def _share(self, value: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Values [..., items] over their instance's bound.

        The bound (Dantzig, 1957): packed by value per weight, the last item cut to fit.
        """
        room = self.capacity * weight.sum(-1, keepdims=True)
        order = (-value / weight).argsort(-1)
        worth, size = (np.take_along_axis(part, order, -1) for part in (value, weight))
        part = ((room - size.cumsum(-1) + size) / size).clip(0, 1)
        shares: np.ndarray = value / (worth * part).sum(-1, keepdims=True)
        return shares
