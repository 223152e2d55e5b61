"""Gymnasium environments as a simulator: an episode for each seed; all that passes is flat."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, flatten
from gymnasium.utils.seeding import np_random
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FlattenObservation

from maml_dist.core.data.simulator import EnvironmentFault, Simulator, StepResult
from maml_dist.core.process_lock import EXCLUSIVE

Env = gymnasium.Env[Any, Any]


class SingleEpisode(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One episode for each seed: after its end nothing happens; errors tell whose they are."""

    def __init__(self, env: Env) -> None:
        super().__init__(env if _is_flat(env.observation_space) else FlattenObservation(env))
        self.place, self.over = 0, False
        self.tasked = outermost(env, "set_task")
        self.task: Any = None
        self.last: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the task's episode of this seed; without one, stay where it ended."""
        if seed is None:
            return self.last, {}
        self.over = False
        with self._located("raised at its start"), seeded(self, seed):
            self.tasked.set_task(self.task)
            self.last = self._checked(self.env.reset(seed=seed, options=options)[0])
        return self.last, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of the environment, if its episode still runs."""
        if self.over:
            return self.last, 0.0, False, False, {}
        with self._located("raised"):
            seen, reward, terminated, truncated, _ = self.env.step(action)
            self.last, paid = self._checked(seen), float(reward)
        self.over = bool(terminated or truncated)
        return self.last, paid, bool(terminated), bool(truncated), {}

    def _checked(self, seen: Any) -> np.ndarray:
        observation, shape = np.asarray(seen), self.observation_space.shape
        if observation.shape != shape:
            raise EnvironmentFault(
                self.place, f"an observation's shape is {observation.shape}, not {shape}"
            )
        return observation

    @contextmanager
    def _located(self, what: str) -> Iterator[None]:
        try:
            yield
        except EnvironmentFault:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's environment raises
            reason = f"the environment {what} {type(error).__name__}: {error}"
            raise EnvironmentFault(self.place, reason) from error


class Environments(Simulator):
    """Gymnasium's environments, one for each of the seeds [task, episode]."""

    def __init__(self, vector: SyncVectorEnv, seeds: np.ndarray) -> None:
        self.vector, self.seeds = vector, seeds

    def reset(self) -> np.ndarray:
        """The first observations."""
        observations, _ = self.vector.reset(seed=self.seeds.ravel().tolist())
        return self._stacked(observations)

    def step(self, actions: np.ndarray) -> StepResult:
        """One step; an episode also ends at the environment's own time limit."""
        chosen = scale_action(actions, self.vector.single_action_space, self.vector.num_envs)
        observations, rewards, terminated, truncated, _ = self.vector.step(chosen)
        paid = rewards.reshape(self.seeds.shape)
        return StepResult(
            self._stacked(observations), paid, (terminated | truncated).reshape(paid.shape)
        )

    def _stacked(self, observations: np.ndarray) -> np.ndarray:
        return observations.astype(np.float64).reshape(*self.seeds.shape, -1)


def outermost(env: Env, *names: str) -> Any:
    """An environment, or the first that it wraps, that has one of these attributes; or None."""
    level = env
    while not any(hasattr(level, name) for name in names):
        if not isinstance(level, gymnasium.Wrapper):
            return None
        level = level.env
    return level


def flatten_observation(observation: Any, space: gymnasium.Space[Any]) -> np.ndarray:
    """An environment's observation as a policy takes it: flattened, if it is not flat."""
    return np.asarray(observation if _is_flat(space) else flatten(space, observation))


def _is_flat(space: gymnasium.Space[Any]) -> bool:
    return isinstance(space, Box) and len(space.shape) == 1


def scale_action(actions: np.ndarray, space: gymnasium.Space[Any], *envs: int) -> np.ndarray:
    """A policy's actions as environments take them, shaped [*envs, …].

    Discrete ones count from the space's start. Those for [-1, 1] are scaled to the bounds of the
    space, and are as they are where a bound is infinite.
    """
    if isinstance(space, Discrete):
        chosen: np.ndarray = actions.reshape(envs) + space.start
        return chosen
    assert isinstance(space, Box)
    actions = actions.reshape((*envs, *space.shape))
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)
    scaled = (low + high) / 2 + (high - low) / 2 * actions
    clipped: np.ndarray = np.clip(scaled, space.low, space.high).astype(space.dtype)
    return clipped


@contextmanager
def seeded(env: Env, seed: int) -> Iterator[None]:
    """Seed the environment, and for a while numpy's and Python's own generators."""
    env.unwrapped.np_random = np_random(seed)[0]
    with EXCLUSIVE:
        states = np.random.get_state(), random.getstate()
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])
