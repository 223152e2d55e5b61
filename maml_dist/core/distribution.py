"""Distributions of actions, by a policy's output.

    Gaussian      output = (mean, log std), independent in each action number
    Categorical   output = logits

Legend: act = numbers of an action, n = different ones; … any shape before.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distribution(ABC):
    """How a policy's output is read."""

    @abstractmethod
    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """The action that the noise picks."""

    @abstractmethod
    def mode(self, output: Tensor) -> Tensor:
        """The most likely action."""

    @abstractmethod
    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """The log-probability (density) of an action […]."""

    @abstractmethod
    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        """KL(old || new) […], in nats."""

    @abstractmethod
    def entropy(self, output: Tensor) -> Tensor:
        """The entropy […], in nats."""


@dataclass(frozen=True)
class Gaussian(Distribution):
    """Output […, 2 act] = (mean, log std); action and standard normal noise […, act]."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """mean + std * noise."""
        mean, log_std = output.chunk(2, -1)
        return mean + log_std.exp() * noise

    def mode(self, output: Tensor) -> Tensor:
        """The mean."""
        return output.chunk(2, -1)[0]

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """-½ Σ ((a - mean) / std)² - Σ log std - ½ act log 2π."""
        mean, log_std = output.chunk(2, -1)
        off = (action - mean) * (-log_std).exp()
        constant = 0.5 * action.shape[-1] * math.log(2 * math.pi)
        return -0.5 * (off * off).sum(-1) - log_std.sum(-1) - constant

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        """Σ log(σ'/σ) + (σ² + (μ - μ')²) / 2σ'² - ½."""
        (mean, log_std), (mean2, log_std2) = old.chunk(2, -1), new.chunk(2, -1)
        narrow = (-2 * log_std2).exp()
        spread = (2 * log_std).exp() + (mean - mean2) ** 2
        return (log_std2 - log_std + 0.5 * spread * narrow - 0.5).sum(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """Σ log std + ½ act (1 + log 2π)."""
        log_std = output.chunk(2, -1)[1]
        return log_std.sum(-1) + 0.5 * log_std.shape[-1] * (1 + math.log(2 * math.pi))


@dataclass(frozen=True)
class Categorical(Distribution):
    """Output […, n] = logits; action […] from 0, int64; noise […] uniform in [0, 1)."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """The k with cdf(k - 1) <= noise < cdf(k)."""
        return (output.softmax(-1).cumsum(-1)[..., :-1] <= noise[..., None]).sum(-1)

    def mode(self, output: Tensor) -> Tensor:
        """The likeliest; of equal ones the first."""
        return output.argmax(-1)

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """The action's logit, normalised."""
        return output.log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        """Σ p (log p - log q)."""
        before, after = old.log_softmax(-1), new.log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """-Σ p log p."""
        logs = output.log_softmax(-1)
        return -(logs.exp() * logs).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` over the steps of episodes that still ran: a scalar."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def log_ratio(distribution: Distribution, output: Tensor, before: Tensor, action: Tensor) -> Tensor:
    """log of new over old probability of an action […]."""
    return distribution.log_prob(output, action) - distribution.log_prob(before, action)


def detached_ratio(log_prob: Tensor) -> Tensor:
    """exp(log_prob - itself as a constant): one, with the gradient of log_prob."""
    return torch.exp(log_prob - log_prob.detach())
