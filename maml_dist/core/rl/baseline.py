"""Baselines: the return that was to be expected at an observation and a time.

    Linear    w = (F^T F + ridge I)^-1 F^T R,   V = F w,   F = [o, o^2, t, t^2, t^3, 1]
              (o clipped at ±10, t in hundreds of steps; arXiv 1604.06778, and the released code)

A baseline is fitted to the returns of the batch that it then predicts: one task's, with no task
axis. It is pure: the same batch, the same values. Legend: episode, time = control steps, obs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from maml_dist.core.validation import check_positive


@dataclass(frozen=True)
class Baseline(ABC):
    """What returns one task's observations lead to."""

    @abstractmethod
    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """The expected returns [episode, time]; what it says where masked counts nowhere.

        Args:
            observations: [episode, time, obs], before the action.
            returns: [episode, time], to go.
            mask: [episode, time], 1 where the episode still runs.
        """


@dataclass(frozen=True)
class Linear(Baseline):
    """Least squares on features of the observation and the time."""

    ridge: float = 1e-5  # added to the diagonal of F^T F

    def __post_init__(self) -> None:
        check_positive(self, "baseline", "ridge")

    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """The fit, solved in float64.

        The released code raises the ridge until the fit in its precision is finite. Here the
        features are first scaled to F^T F's unit diagonal (the same fit, better conditioned):
        then this ridge is enough, for observations that are finite. Of others the values are not.
        """
        clipped = observations.double().clamp(-10, 10)
        time = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float64) / 100
        time = time.expand(mask.shape).unsqueeze(-1)
        powers = [clipped, clipped**2, time, time**2, time**3, torch.ones_like(time)]
        features = torch.cat(powers, -1).flatten(0, 1)
        kept = torch.where(mask.reshape(-1, 1) > 0, features, 0)
        normal = kept.T @ kept
        normal = normal + self.ridge * torch.eye(len(normal), device=mask.device).double()
        scale = normal.diagonal().rsqrt()
        factor = torch.linalg.cholesky_ex(normal * scale * scale.unsqueeze(-1)).L
        right = (kept.T @ torch.where(mask > 0, returns, 0).double().reshape(-1)) * scale
        weights = torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1) * scale
        return (features @ weights).reshape(mask.shape).to(returns.dtype)
