"""Ratings: users who rate items, x the ids of items. A table of items is what is meta-learned.

    rating = taste . attributes(item) / sqrt(attributes) + noise

A task is a user: of the taste nothing is known, an adapted model has to find it in a few ratings.
Attributes are a pure function of the item's id, so that there may be any number of items. Those of
low ids are rated most: P(id) is about 1 / (id + 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from maml_dist.core.data.episode import Batch, Episode, supervised
from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource, keys_of
from maml_dist.core.random import fold, uniform
from maml_dist.core.validation import check_minimum, check_range, check_size

_USER = 1 << 32  # the stream of a task's key that draws it; lower ones are the learner's
_UNIT = 12**0.5  # times a uniform number in (-1/2, 1/2): of variance 1


class User(NamedTuple):
    """One task; drawn when it is collected, many at once."""

    key: TaskKey


@dataclass(frozen=True)
class Ratings(TaskSource):
    """Users and items: x [task, n, 1] ids of items, int64 -> y [task, n, 1] ratings."""

    metric = "mse"

    items: int = 10_000  # ids from 0
    attributes: int = 4  # numbers that an item has, of which nothing is told
    noise: float = 0.1  # standard deviation of a rating about what taste and attributes say
    shots: int = 10  # ratings of a user that are adapted to
    query: int = 10  # ratings to be predicted

    def __post_init__(self) -> None:
        check_minimum(self, "task", attributes=1, noise=0, shots=1, query=1)
        check_range(self, "task", items=(1, 1 << 40))
        numbers = 2 * (self.shots + self.query) + self.attributes
        check_size(self, "task", "shots", "query", numbers=numbers)

    def sample(self, key: TaskKey) -> User:
        """The user of this key."""
        return User(key)

    def collect(self, tasks: Sequence[User], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """The ratings of each user, the first `shots` of them for support."""
        points = self.shots + self.query
        draw = partial(uniform, shape=(2 * points + self.attributes,), dtype=torch.float64)
        unit = torch.vmap(draw)(fold(keys_of([user.key for user in tasks]), _USER)).numpy()
        ids = ((self.items + 1) ** unit[:, :points]).astype(np.int64) - 1
        noise = _UNIT * (unit[:, points : 2 * points] - 0.5)
        taste = _UNIT * (unit[:, 2 * points :] - 0.5)
        found = (self.attributes_of(ids) * taste[:, None]).sum(-1) / self.attributes**0.5
        x = torch.from_numpy(ids.clip(0, self.items - 1)).unsqueeze(-1)
        y = torch.from_numpy((found + self.noise * noise).astype(np.float32)).unsqueeze(-1)
        cut = self.shots
        support = Batch(x[:, :cut].contiguous(), y[:, :cut].contiguous())
        query = Batch(x[:, cut:].contiguous(), y[:, cut:].contiguous())
        return supervised(support, query, steps=steps)

    def attributes_of(self, ids: np.ndarray) -> np.ndarray:
        """Of items [...]: numbers [..., attributes] of variance 1, always the same."""
        numbers = ids[..., None].astype(np.uint64) * np.uint64(self.attributes)
        return _UNIT * (_hashed(numbers + np.arange(self.attributes, dtype=np.uint64)) - 0.5)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared error."""
        return mse_loss(output, batch.y)


def _hashed(numbers: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), by the finaliser of SplitMix64."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: np.ndarray = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return found
