"""The paper's policy for continuous actions: a mean for each state, one log_std for all."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maml_dist.core.validation import check_layers, check_positive
from maml_dist.models.glorot import perceptron


class GaussianPolicy(nn.Module):
    """Observations [..., obs_dim] -> (mean, log_std) [..., 2 * action_dim]."""

    def __init__(
        self,
        obs_dim: int = 2,
        action_dim: int = 2,
        *,
        hidden: Sequence[int] = (100, 100),
        log_std: float = 0.0,  # of each action at the start; it is learned and adapts
        min_std: float = 1e-6,  # what is below counts as this, and has no gradient
    ) -> None:
        super().__init__()
        check_layers("model", obs_dim=obs_dim, hidden=hidden, action_dim=action_dim)
        self.min_std = min_std
        check_positive(self, "model", "min_std")
        if not math.isfinite(log_std):
            raise ValueError(f"model.log_std={log_std}: must be a finite number")
        self.mean = perceptron(obs_dim, hidden, action_dim)
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std)))
        self.min_log_std = math.log(min_std)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., obs_dim] -> [..., 2 * action_dim]: the mean, then log_std."""
        mean: Tensor = self.mean(x)
        log_std = self.log_std.clamp(min=self.min_log_std)
        return torch.cat([mean, log_std.expand_as(mean)], -1)
