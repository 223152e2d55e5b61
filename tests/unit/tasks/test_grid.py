"""The grid world, cell by cell."""

import numpy as np
import pytest

from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.grid import Grid, Walkers

STAY, DOWN, UP, RIGHT, LEFT = range(5)


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.setattr(Grid, "__abstractmethods__", frozenset())  # rolling is all it is here
    return Grid(size=3, cost=0.25)


def test_goals_are_all_cells_but_the_middle(grid):
    goals = {grid.sample(TaskKey(0, "train", 0, index)).value for index in range(200)}
    assert goals == {(row, column) for row in range(3) for column in range(3)} - {(1, 1)}


def test_a_walk(grid):
    walkers = Walkers(np.array([[0.0, 2.0]]), 1, grid)
    assert walkers.reset().argmax() == 4
    for action, cell, reward, ended in [
        (STAY, 4, -0.25, False),
        (RIGHT, 5, -0.25, False),
        (RIGHT, 5, -0.25, False),  # a wall
        (DOWN, 8, -0.25, False),
        (LEFT, 7, -0.25, False),
        (UP, 4, -0.25, False),
        (UP, 1, -0.25, False),
        (RIGHT, 2, 1, True),
    ]:
        stepped = walkers.step(np.array([[action]]))
        assert stepped.observations.tolist() == [[np.eye(9)[cell].tolist()]]
        assert stepped.rewards.tolist() == [[reward]] and stepped.ended.tolist() == [[ended]]


def test_one_cell_is_no_grid(monkeypatch):
    monkeypatch.setattr(Grid, "__abstractmethods__", frozenset())
    with pytest.raises(ValueError, match="task.size=1: must be 2 or more"):
        Grid(size=1)
