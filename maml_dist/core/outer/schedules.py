"""Schedules of the outer rate: the update after `count` others steps by beta * factor(count).

    rise(count) = min(1, (count + 1) / warm_up)                       so that no update is lost
    gone(count) = (count - warm_up) / (until - warm_up), in [0, 1]
    Constant:  rise      Linear:  rise * (1 - (1 - end) * gone)
    Cosine:    rise * (end + (1 - end) * (1 + cos(pi * gone)) / 2)    arXiv 1608.03983, no restarts

A meta-iteration is one update, or the optimizer's `epochs`; none where all tasks are left out.
On Python numbers: a handful of tensor operations would cost more than the update of a small model.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from maml_dist.core.validation import check_minimum


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """How the outer rate changes over the updates."""

    warm_up: int = 0  # updates over which the rate rises to beta

    def __post_init__(self) -> None:
        check_minimum(self, "outer.schedule", warm_up=0)

    @abstractmethod
    def factor(self, count: float) -> float:
        """The share of beta that the update after `count` others takes."""

    def _rise(self, count: float) -> float:
        return min(1.0, (count + 1) / self.warm_up) if self.warm_up else 1.0


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """beta, after the warm-up."""

    def factor(self, count: float) -> float:
        """The share of beta that the update after `count` others takes."""
        return self._rise(count)


@dataclass(frozen=True, kw_only=True)
class _Falling(Schedule):
    """From beta to `end` of it."""

    until: int  # updates after which the rate stays at its end
    end: float = 0.0  # the final share of beta

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, "outer.schedule", end=0, until=1)
        if self.until <= self.warm_up:
            raise ValueError(
                f"outer.schedule.until={self.until}: must be more than warm_up={self.warm_up}"
            )

    def _gone(self, count: float) -> float:
        """The part of the way from the end of the warm-up to `until`."""
        return min(1.0, max(0.0, (count - self.warm_up) / (self.until - self.warm_up)))


@dataclass(frozen=True, kw_only=True)
class Linear(_Falling):
    """From beta to `end` of it in a straight line."""

    def factor(self, count: float) -> float:
        """The share of beta that the update after `count` others takes."""
        gone = self._gone(count)
        return self._rise(count) * (1 - (1 - self.end) * gone)


@dataclass(frozen=True, kw_only=True)
class Cosine(_Falling):
    """From beta to `end` of it along half a cosine."""

    def factor(self, count: float) -> float:
        """The share of beta that the update after `count` others takes."""
        gone = self._gone(count)
        left = (1 + math.cos(math.pi * gone)) / 2
        return self._rise(count) * (self.end + (1 - self.end) * left)
