"""Simulators: the environments of many tasks, all their episodes stepped together.

Legend: task = of a batch, episode = of a task and stage, obs, act = numbers of one environment.
All arrays are numpy's. A simulator is made for given tasks and given random draws, and used once.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np


class StepResult(NamedTuple):
    """What the environments answer to one action each."""

    observations: np.ndarray  # [task, episode, obs] float64, after the action
    rewards: np.ndarray  # [task, episode]
    ended: np.ndarray  # [task, episode] bool: this step was the episode's last
    scores: Mapping[str, np.ndarray] | None = None  # [task, episode] each; NaN where none is given


class EnvironmentFault(Exception):
    """An environment cannot go on, for this reason: of the task at this place in the batch.

    None where it is not known whose it is.
    """

    def __init__(self, task: int | None, reason: str) -> None:
        super().__init__(task, reason)
        self.task, self.reason = task, reason


class Simulator(ABC):
    """Environments [task, episode]; what one does after its end has no meaning."""

    named: Collection[str] = ()  # the scores that its steps could give, as far as is known

    @abstractmethod
    def reset(self) -> np.ndarray:
        """The first observations [task, episode, obs] float64.

        Raises:
            EnvironmentFault: an environment raised.
        """

    @abstractmethod
    def step(self, actions: np.ndarray) -> StepResult:
        """One control step: actions [task, episode, act], meant for [-1, 1], not clipped yet.

        Discrete actions are [task, episode] whole numbers from 0.

        Raises:
            EnvironmentFault: an environment raised.
        """
