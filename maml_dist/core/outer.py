"""The beta update: meta <- meta - beta * direction(gradient), on one flat vector.

A rule's state is a dict of tensors, so that it can be saved without pickling.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Outer(ABC):
    """An outer optimiser: a pure rule on the flat meta-parameters [size]."""

    beta: float = 0.001  # outer rate
    clip: float | None = None  # each element of the meta-gradient is clipped at ± this

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"outer.beta={self.beta}: must be a positive number")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"outer.clip={self.clip}: must be positive, or null")

    @abstractmethod
    def init(self, meta: Tensor) -> State:
        """The rule's state before the first update."""

    @abstractmethod
    def direction(self, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """What to step along (before beta), and the next state."""

    def update(self, meta: Tensor, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """One update; returns new tensors and changes none."""
        if self.clip is not None:
            gradient = gradient.clamp(-self.clip, self.clip)
        direction, state = self.direction(gradient, state)
        return meta - self.beta * direction, state


@dataclass(frozen=True)
class SGD(Outer):
    """Gradient descent."""

    def init(self, meta: Tensor) -> State:
        """No state."""
        return {}

    def direction(self, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """The gradient itself."""
        return gradient, state


@dataclass(frozen=True)
class Adam(Outer):
    """Adam (arXiv 1412.6980, algorithm 1)."""

    decays: tuple[float, float] = (0.9, 0.999)  # of the first and second moment
    eps: float = 1e-8  # added to the root of the second moment

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= decay < 1 for decay in self.decays):
            raise ValueError(f"outer.decays={self.decays}: both must be in [0, 1)")
        if not self.eps > 0:
            raise ValueError(f"outer.eps={self.eps}: must be positive")

    def init(self, meta: Tensor) -> State:
        """Both moments and the count of updates, at zero."""
        zero = torch.zeros_like(meta)
        return {
            "first": zero,
            "second": zero.clone(),
            "count": zero.new_zeros((), dtype=torch.float64),
        }

    def direction(self, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """The bias-corrected first moment over the root of the second."""
        decay1, decay2 = self.decays
        count = state["count"] + 1
        first = torch.lerp(state["first"], gradient, 1 - decay1)
        second = decay2 * state["second"] + (1 - decay2) * gradient * gradient
        scale1, scale2 = 1 - decay1**count, 1 - decay2**count
        direction = (first / scale1) / ((second / scale2).sqrt() + self.eps)
        return direction, {"first": first, "second": second, "count": count}
