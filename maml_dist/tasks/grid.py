"""A grid world: walk from the middle to a cell that only the rewards tell.

    reward = 1 at the goal, where the episode ends, and -cost for every other step

Actions 0 to 4: stay, and one cell along each axis; a wall stops the walk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maml_dist.core.data.simulator import Simulator, StepResult
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.validation import LARGEST, check_minimum, check_range, check_size
from maml_dist.tasks.rollout import Goal, Rollouts

MOVES = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])


@dataclass(frozen=True)
class Grid(Rollouts):
    """Goal cells of a square grid: observations are the cell, one-hot; five actions."""

    horizon: int = 15  # control steps
    size: int = 5  # cells a side
    cost: float = 0.05  # of a step that does not reach the goal

    goal_dim = 2
    action_dim = len(MOVES)
    discrete = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, "task", size=2)
        check_range(self, "task", cost=(-LARGEST, LARGEST))
        numbers = self.horizon * self.episodes * self.state_dim
        check_size(self, "task", "horizon", "episodes", "size", numbers=numbers)

    @property
    def state_dim(self) -> int:
        """One number a cell."""
        return self.size**2

    def sample(self, key: TaskKey) -> Goal:
        """Row and column of the goal: any cell but the one in the middle."""
        middle = self.size // 2 * (self.size + 1)
        cell = int(key.rng().integers(self.size**2 - 1))
        return Goal(key, tuple(map(float, divmod(cell + (cell >= middle), self.size))))

    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """Walkers in the middle: nothing is drawn."""
        return Walkers(np.array([task.value for task in tasks]), self.episodes, self)


class Walkers(Simulator):
    """Walkers on a grid and their goals [task, 2]."""

    def __init__(self, goals: np.ndarray, episodes: int, grid: Grid) -> None:
        self.goals, self.grid = goals[:, None], grid
        self.cells = np.eye(grid.state_dim)
        self.position = np.full((len(goals), episodes, 2), grid.size // 2)

    def reset(self) -> np.ndarray:
        """The middle."""
        return self._observations()

    def step(self, actions: np.ndarray) -> StepResult:
        """Walk; then look whether this is the goal."""
        self.position = (self.position + MOVES[actions]).clip(0, self.grid.size - 1)
        ended = (self.position == self.goals).all(-1)
        return StepResult(self._observations(), np.where(ended, 1.0, -self.grid.cost), ended)

    def _observations(self) -> np.ndarray:
        row, column = np.moveaxis(self.position, -1, 0)
        observations: np.ndarray = self.cells[self.grid.size * row + column]
        return observations
