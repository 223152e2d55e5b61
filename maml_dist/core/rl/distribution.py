"""What a policy's output says of its actions, and the KL divergence between two policies.

    Gaussian      output = (mean, log_std),  a = mean + exp(log_std) * noise      (diagonal)
    Categorical   output = logits,           P(a) = softmax(logits)_a
    Categoricals  output = (logits of each choice),  P(a) = product of softmax(logits_i)_{a_i}

Every function works on the last axis and leaves the others: output [..., out], action [..., act]
or, one discrete choice, [...]. Randomness enters as an argument.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distribution(ABC):
    """A family of distributions over actions; a policy's output names one of them."""

    @abstractmethod
    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """The action that `noise` chooses."""

    @abstractmethod
    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """log of the density, or of the probability, of an action [...]."""

    @abstractmethod
    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """KL(old || new) of two outputs [...], in nats."""

    @abstractmethod
    def entropy(self, output: Tensor) -> Tensor:
        """The entropy [...], in nats."""

    @abstractmethod
    def mode(self, output: Tensor) -> Tensor:
        """The likeliest action."""


@dataclass(frozen=True)
class Gaussian(Distribution):
    """Independent normal actions [..., act]; the output is (mean, log_std) [..., 2 * act]."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """mean + std * noise; noise is standard normal [..., act]."""
        mean, log_std = output.chunk(2, -1)
        return mean + log_std.contiguous().exp() * noise  # strided, exp is five times slower

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """The log-density of an action [..., act]."""
        mean, log_std = output.chunk(2, -1)
        off = (action - mean) * (-log_std).exp()
        return -(off * off / 2 + log_std + math.log(2 * math.pi) / 2).sum(-1)

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """With r = log(std_old / std_new): the sum of (e^2r - 1 + (distance / std_new)^2) / 2 - r.

        e^2r - 1 in one piece: for policies as close as a trust region's, float32 keeps digits.
        """
        mean_old, log_old = old.chunk(2, -1)
        mean_new, log_new = new.chunk(2, -1)
        off = (mean_old - mean_new) * (-log_new).exp()
        wider = log_old - log_new
        return ((torch.expm1(2 * wider) + off * off) / 2 - wider).sum(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """The differential entropy: it can be negative."""
        return (output.chunk(2, -1)[1] + math.log(2 * math.pi * math.e) / 2).sum(-1)

    def mode(self, output: Tensor) -> Tensor:
        """The mean [..., act]."""
        return output.chunk(2, -1)[0]


@dataclass(frozen=True)
class Categorical(Distribution):
    """One of n actions [...] int64; the output is their logits [..., n]."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """By the inverse of the distribution function; noise is uniform in [0, 1) [...].

        Whatever the rounding, the action is one of the n, and none of probability zero.
        """
        reached = output.softmax(-1).cumsum(-1)
        reached = reached / reached[..., -1:]
        return (noise.unsqueeze(-1) >= reached[..., :-1]).sum(-1)

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """The log-probability of an action [...]."""
        return output.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """The sum of p_old (log p_old - log p_new)."""
        log_old = old.log_softmax(-1)
        return (log_old.exp() * (log_old - new.log_softmax(-1))).sum(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """Between 0 and log n."""
        log_prob = output.log_softmax(-1)
        return -(log_prob.exp() * log_prob).sum(-1)

    def mode(self, output: Tensor) -> Tensor:
        """The action of the largest logit, the first of equals."""
        return output.argmax(-1)


@dataclass(frozen=True)
class Categoricals(Distribution):
    """Several independent choices [..., choice] int64; the output is their logits, in a row."""

    choices: tuple[int, ...]  # how many ways each has

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """Each as `Categorical` does; noise is uniform in [0, 1) [..., choice]."""
        drawn = zip(self._each(output), noise.unbind(-1), strict=True)
        return torch.stack([_ONE.sample(logits, own) for logits, own in drawn], -1)

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """The log-probability of all choices [..., choice] together."""
        made = zip(self._each(output), action.unbind(-1), strict=True)
        return torch.stack([_ONE.log_prob(logits, own) for logits, own in made]).sum(0)

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """The sum over the choices."""
        both = zip(self._each(old), self._each(new), strict=True)
        return torch.stack([_ONE.kl(one, other) for one, other in both]).sum(0)

    def entropy(self, output: Tensor) -> Tensor:
        """The sum over the choices."""
        return torch.stack([_ONE.entropy(logits) for logits in self._each(output)]).sum(0)

    def mode(self, output: Tensor) -> Tensor:
        """The likeliest way of each choice [..., choice]."""
        return torch.stack([_ONE.mode(logits) for logits in self._each(output)], -1)

    def _each(self, output: Tensor) -> tuple[Tensor, ...]:
        """The logits of each choice."""
        each: tuple[Tensor, ...] = output.split(self.choices, -1)
        return each


_ONE = Categorical()
