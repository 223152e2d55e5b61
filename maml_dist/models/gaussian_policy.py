"""Gaussian policy: the paper's for continuous actions, an MLP of 100-100 with ReLU.

Its standard deviation does not depend on the observation; its logarithm is a parameter and adapts
like the others. Weights: Glorot uniform, biases zero.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GaussianPolicy(nn.Module):
    """obs […, observations] -> […, 2 actions]: the mean, then the log standard deviation."""

    def __init__(
        self,
        observations: int = 2,
        actions: int = 2,
        *,
        hidden: Sequence[int] = (100, 100),
        log_std: float = 0.0,  # at the start
        least_std: float = 1e-6,  # a smaller one counts as this
    ) -> None:
        super().__init__()
        if not 0 < least_std < math.inf:
            raise ValueError(f"model.least_std={least_std}: must be positive")
        self.body = body(observations, hidden)
        self.mean = linear(hidden[-1] if hidden else observations, actions)
        self.log_std = nn.Parameter(torch.full((actions,), log_std))
        self._least = math.log(least_std)

    def forward(self, obs: Tensor) -> Tensor:
        """obs […, observations] -> […, 2 actions]."""
        mean = self.mean(self.body(obs))
        return torch.cat([mean, self.log_std.clamp(min=self._least).expand_as(mean)], -1)


def body(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Hidden layers with ReLU."""
    layers: list[nn.Module] = []
    for wide, width in zip((inputs, *hidden), hidden, strict=False):
        layers += [linear(wide, width), nn.ReLU()]
    return nn.Sequential(*layers)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer with Glorot's uniform weights and zero biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
