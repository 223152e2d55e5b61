"""Absent: what stands in for a task source that is not there, where its model is served.

A source's class may be of a module that is gone, its data may be, or its simulator. A policy acts
and adapts in an environment of the caller's by what a run notes of its source (`Spaces`); for
other sources the caller gives the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypedDict

from torch import Tensor

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.data.simulator import Simulator
from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource
from maml_dist.tasks.rollout import Goal, Rollouts


class Spaces(TypedDict):
    """What policies see and do, of a source of rollouts."""

    state_dim: int
    goal_dim: int
    action_dim: int
    discrete: bool


@dataclass(frozen=True)
class AbsentTask(TaskSource):
    """A source of which nothing is known but why it is not there."""

    reason: str  # one line

    def sample(self, key: TaskKey) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"there is no task source to draw from: {self.reason}")

    def collect(self, tasks: Sequence[Any], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """Raises ValueError."""
        raise ValueError(f"there is no task source to draw from: {self.reason}")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Raises ValueError."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise ValueError: in one line, what to give instead."""
        raise ValueError(
            f"the task source, whose loss adapting goes by, is not there ({self.reason}): give a "
            "loss, adapt(x, y, loss=…), a function of (output, y)"
        )


@dataclass(frozen=True)
class AbsentRollouts(Rollouts):
    """Rollouts of an environment that is not there: what they teach a policy, and its spaces."""

    reason: str = ""  # one line
    state_dim: int = 0  # numbers of an observation
    goal_dim: int = 0  # numbers of a goal
    action_dim: int = 0  # numbers of an action, or how many different ones there are
    discrete: bool = False  # whether an action is one of a few

    def sample(self, key: TaskKey) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"there is no task source to draw from: {self.reason}")

    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """Raises ValueError."""
        raise ValueError(f"there is no simulator: {self.reason}")


def spaces_of(source: TaskSource) -> Spaces | None:
    """What is noted of a source with a run; None where it would not do in its place."""
    own = ("loss", "query_loss", "kl", "distribution", "penalty", "obs_dim")
    if not isinstance(source, Rollouts):
        return None
    if any(getattr(type(source), name) is not getattr(Rollouts, name) for name in own):
        return None
    return {
        "state_dim": source.state_dim,
        "goal_dim": source.goal_dim,
        "action_dim": source.action_dim,
        "discrete": source.discrete,
    }
