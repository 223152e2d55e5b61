"""2-D navigation (arXiv 1703.03400, section 5.3): a point walks to a goal it cannot see.

    s' = s + 0.1 clip(a, -1, 1),   reward = -|s' - goal|_2,   goal U[-0.5, 0.5]^2

An episode starts at the origin and ends within 0.01 of the goal on both axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maml_dist.core.data.simulator import Simulator, StepResult
from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.rollout import Goal, Rollouts

SPEED = 0.1  # of a full action
NEAR = 0.01  # of the goal, on each axis


@dataclass(frozen=True)
class Navigation(Rollouts):
    """Goals in the plane: observations are the position, actions the move."""

    state_dim = 2
    goal_dim = 2
    action_dim = 2

    def sample(self, key: TaskKey) -> Goal:
        """Where the goal lies."""
        return Goal(key, tuple(key.rng().uniform(-0.5, 0.5, 2).tolist()))

    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """Points at the origin: nothing is drawn."""
        return Points(np.array([task.value for task in tasks]), self.episodes)


class Points(Simulator):
    """Points in the plane and their goals [task, 2]."""

    def __init__(self, goals: np.ndarray, episodes: int) -> None:
        self.goals = goals[:, None]
        self.position = np.zeros((len(goals), episodes, 2))

    def reset(self) -> np.ndarray:
        """The origin."""
        return self.position

    def step(self, actions: np.ndarray) -> StepResult:
        """Move; then look how far it is."""
        self.position = self.position + SPEED * np.clip(actions, -1, 1, dtype=np.float64)
        away = self.position - self.goals
        ended = (np.abs(away) < NEAR).all(-1)
        return StepResult(self.position, -np.sqrt(np.square(away).sum(-1)), ended)
