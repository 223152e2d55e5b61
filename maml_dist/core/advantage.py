"""Returns, baselines and advantages of trajectories (GAE, arXiv 1506.02438).

    return_t    = Σ_k gamma^k r_{t+k}
    delta_t     = r_t + gamma V_{t+1} - V_t
    advantage_t = Σ_k (gamma lambda)^k delta_{t+k}       then mean 0 and std 1 for each task

An episode's value is zero from its end on, whether it ended or was cut by the horizon. A baseline
V is fitted for each task to the returns of the very batch that it then predicts. A task's numbers
do not depend on the others of the batch. Legend: task, episode, time, obs, feature.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

CLIPPED = 10.0  # observations, for the features
TIME = 100.0  # steps that are 1 as a feature


def discounted(values: Tensor, rate: float) -> Tensor:
    """Σ_k rate^k values_{t+k}, along the last axis (time)."""
    after, total = values.numpy(), np.empty(values.shape, values.numpy().dtype)
    ahead = np.zeros(values.shape[:-1], total.dtype)
    for t in range(values.shape[-1] - 1, -1, -1):
        ahead = after[..., t] + rate * ahead
        total[..., t] = ahead
    return torch.from_numpy(total)


def advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, decay: float
) -> Tensor:
    """Generalised advantages [task, episode, time], zero after the end; `decay` is lambda."""
    values = values * mask
    ahead = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    return discounted((rewards + gamma * ahead - values) * mask, gamma * decay) * mask


def normalised(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over each task's steps [task, episode, time]."""
    dims = tuple(range(1, values.dim()))
    count = mask.sum(dims, keepdim=True).clamp(min=1)
    centred = (values - (values * mask).sum(dims, keepdim=True) / count) * mask
    std = ((centred * centred).sum(dims, keepdim=True) / count).sqrt()
    return centred / (std + 1e-8)


def explained(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """The share of the returns' variance that a baseline explains [task]; 1 is all of it."""
    dims = tuple(range(1, values.dim()))
    count = mask.sum(dims, keepdim=True).clamp(min=1)

    def variance(x: Tensor) -> Tensor:
        centred = (x - (x * mask).sum(dims, keepdim=True) / count) * mask
        return (centred * centred).sum(dims)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)


@dataclass(frozen=True)
class Baseline(ABC):
    """What returns are to be expected."""

    @abstractmethod
    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """V [task, episode, time], fitted to returns on observations [task, episode, time, obs]."""


@dataclass(frozen=True)
class Nothing(Baseline):
    """Zero."""

    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(returns)


@dataclass(frozen=True)
class Linear(Baseline):
    """Ridge regression on [o, o², t, t², t³, 1] (arXiv 1604.06778)."""

    ridge: float = 1e-5  # added to the diagonal; ten times as much where that is singular

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"task.baseline.ridge={self.ridge}: must be positive")

    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """The regression's predictions, one task after the other."""
        fitted = [
            self._one(*task)
            for task in zip(observations.numpy(), returns.numpy(), mask.numpy(), strict=True)
        ]
        return torch.from_numpy(np.stack(fitted))

    def _one(self, observations: np.ndarray, returns: np.ndarray, mask: np.ndarray) -> np.ndarray:
        episodes, times, size = observations.shape
        features = np.empty((episodes, times, 2 * size + 4), np.float64)
        seen = np.clip(observations, -CLIPPED, CLIPPED)
        time = np.arange(times) / TIME
        features[..., :size], features[..., size:-4] = seen, np.square(seen, dtype=np.float64)
        features[..., -4:] = np.stack([time, time**2, time**3, np.ones(times)], -1)
        rows = features.reshape(-1, features.shape[-1])
        kept = rows * mask.reshape(-1, 1)
        square, right = kept.T @ kept, kept.T @ returns.reshape(-1).astype(np.float64)
        ridge = self.ridge
        for _ in range(5):
            try:
                weights = np.linalg.solve(square + ridge * np.eye(len(square)), right)
            except np.linalg.LinAlgError:
                weights = np.full(len(square), np.nan)
            if np.isfinite(weights).all():
                return (rows @ weights).reshape(returns.shape).astype(returns.dtype)
            ridge *= 10
        return np.zeros_like(returns)


@dataclass(frozen=True)
class Network(Baseline):
    """A learned value function: one hidden layer, fitted anew by Adam from fixed weights."""

    hidden: int = 32  # units
    steps: int = 50  # of Adam, each on the whole batch
    rate: float = 0.01  # of Adam

    def __post_init__(self) -> None:
        for name in ("hidden", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.baseline.{name}={getattr(self, name)}: must be 1 or more")
        if not self.rate > 0:
            raise ValueError(f"task.baseline.rate={self.rate}: must be positive")

    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """The network's predictions, one task after the other, so that none sees another."""
        tasks = zip(observations, returns, mask, strict=True)
        return torch.stack([self._one(*task) for task in tasks])

    def _one(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        time = torch.arange(observations.shape[1], dtype=observations.dtype) / TIME
        time = time.expand(observations.shape[:2]).unsqueeze(-1)
        inputs = torch.cat([observations.clamp(-CLIPPED, CLIPPED), time], -1)
        drawn = torch.Generator().manual_seed(0)
        weights = [
            torch.randn(*shape, generator=drawn, dtype=inputs.dtype) / shape[0] ** 0.5
            for shape in ((inputs.shape[-1], self.hidden), (self.hidden, 1))
        ]
        weights += [inputs.new_zeros(self.hidden), inputs.new_zeros(1)]
        count = mask.sum().clamp(min=1)
        mean = (returns * mask).sum() / count
        spread = ((((returns - mean) * mask) ** 2).sum() / count).sqrt() + 1e-8

        def predict(weights: list[Tensor]) -> Tensor:
            first, last, shift, end = weights
            hidden: Tensor = torch.tanh(inputs @ first + shift)
            return (hidden @ last + end).squeeze(-1)

        def loss(weights: list[Tensor]) -> Tensor:
            return (((predict(weights) - (returns - mean) / spread) * mask) ** 2).sum() / count

        slope = grad(loss)
        moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
        for step in range(1, self.steps + 1):
            for i, g in enumerate(slope(weights)):
                first, second = moments[i]
                moments[i] = first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
                root = (second / (1 - 0.999**step)).sqrt() + 1e-8
                weights[i] = weights[i] - self.rate * first / (1 - 0.9**step) / root
        return predict(weights) * spread + mean
