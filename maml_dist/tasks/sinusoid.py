"""Sinusoid regression (arXiv 1703.03400, section 5.1): y = amplitude * sin(x - phase).

Amplitude U[0.1, 5], phase U[0, pi], x U[-5, 5]; mean squared error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from maml_dist.core.episode import Batch, Episode, supervised
from maml_dist.core.source import Adapt, TaskKey, TaskSource


class Wave(NamedTuple):
    """One task: its curve, and where it is looked at, as it was drawn."""

    unit: np.ndarray  # uniform in [0, 1): amplitude, phase and [shots + query] inputs

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
        """The inputs [shots + query], in [-5, 5]."""
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
        if self.shots < 1 or self.query < 1:
            raise ValueError(
                f"task.shots={self.shots}, task.query={self.query}: both must be 1 or more"
            )

    def sample(self, key: TaskKey) -> Wave:
        """Amplitude, phase and the inputs."""
        return Wave(key.rng().random(2 + self.shots + self.query))

    def collect(self, tasks: Sequence[Wave], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """The points of each wave, the first `shots` of them for support."""
        unit = np.stack([task.unit for task in tasks])
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
