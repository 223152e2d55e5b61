"""Sinusoid regression (arXiv 1703.03400, section 5.1): y = amplitude * sin(x - phase).

Amplitude U[0.1, 5], phase U[0, pi], x U[-5, 5]; mean squared error.
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
from maml_dist.core.validation import check_minimum, check_size

_WAVE = 1 << 32  # the stream of a task's key that draws it; lower ones are the learner's


class Wave(NamedTuple):
    """One task: its curve, and where it is looked at; drawn when it is asked for, many at once."""

    key: TaskKey
    points: int  # shots + query

    @property
    def unit(self) -> np.ndarray:
        """What is drawn, uniform in (0, 1): amplitude, phase and [points] inputs."""
        drawn: np.ndarray = _drawn([self])[0]
        return drawn

    @property
    def amplitude(self) -> float:
        """In [0.1, 5]."""
        return 0.1 + 4.9 * float(self.unit[0])

    @property
    def phase(self) -> float:
        """In [0, pi] radians."""
        return np.pi * float(self.unit[1])

    @property
    def x(self) -> np.ndarray:
        """The inputs [points], in [-5, 5]."""
        return 10 * self.unit[2:] - 5

    def y(self, x: np.ndarray) -> np.ndarray:
        """The curve's values at x, any shape."""
        return self.amplitude * np.sin(x - self.phase)


@dataclass(frozen=True)
class Sinusoid(TaskSource):
    """Sine waves of random amplitude and phase: x [task, n, 1] -> y [task, n, 1]."""

    metric = "mse"

    shots: int = 10  # support points a task
    query: int = 10  # query points a task
    oracle: bool = False  # also give amplitude and phase as inputs: x [task, n, 3]

    def __post_init__(self) -> None:
        check_minimum(self, "task", shots=1, query=1)
        check_size(self, "task", "shots", "query", numbers=4 * (self.shots + self.query))

    def sample(self, key: TaskKey) -> Wave:
        """The wave of this key."""
        return Wave(key, self.shots + self.query)

    def collect(self, tasks: Sequence[Wave], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """The points of each wave, the first `shots` of them for support."""
        return self.episode(_drawn(tasks), steps=steps)

    def episode(self, unit: np.ndarray, *, steps: int) -> Episode:
        """The points of waves as they were drawn, [task, 2 + shots + any number of queries]."""
        amplitude, phase, x = 0.1 + 4.9 * unit[:, :1], np.pi * unit[:, 1:2], 10 * unit[:, 2:] - 5
        y = amplitude * np.sin(x - phase)
        inputs = [x, *np.broadcast_arrays(amplitude, phase, x)[:2]] if self.oracle else [x]
        points = torch.from_numpy(np.stack(inputs, -1).astype(np.float32))
        values = torch.from_numpy(y[..., None].astype(np.float32))
        cut = self.shots
        support = Batch(points[:, :cut].contiguous(), values[:, :cut].contiguous())
        return supervised(
            support, Batch(points[:, cut:].contiguous(), values[:, cut:].contiguous()), steps=steps
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared error."""
        return mse_loss(output, batch.y)


def _drawn(waves: Sequence[Wave]) -> np.ndarray:
    """Uniform numbers [task, 2 + points], those of a wave a pure function of its key."""
    draw = partial(uniform, shape=(2 + waves[0].points,), dtype=torch.float64)
    return torch.vmap(draw)(fold(keys_of([wave.key for wave in waves]), _WAVE)).numpy()
