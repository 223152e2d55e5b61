"""Gymnasium environments as a simulator: an episode for each seed; all that passes is flat."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.utils.seeding import np_random

from maml_dist.core.data.simulator import EnvironmentFault, Simulator, StepResult
from maml_dist.core.process_lock import EXCLUSIVE
from maml_dist.tasks.gym_spaces import (
    ActionForm,
    action_form,
    flatten_observation,
    observation_size,
    scale_action,
    shown,
)

Env = gymnasium.Env[Any, Any]


class Form(NamedTuple):
    """What a policy is given of an environment, and how it acts there."""

    observed: int  # numbers
    acts: ActionForm

    @property
    def told(self) -> str:
        """In words."""
        ways = f" in {list(self.acts.choices)} choices" if self.acts.choices else ""
        kind = "ways" if self.acts.discrete else "numbers"
        return f"{self.observed} numbers to observe and {self.acts.size} {kind} to act by{ways}"


class SingleEpisode:
    """An environment that lives one episode for each start: after its end nothing happens."""

    def __init__(self, env: Env, *, image_scale: float) -> None:
        """`image_scale` is what pixels are divided by.

        Raises:
            ValueError: its spaces are none that a policy can be given.
        """
        self.env, self.image_scale = env, image_scale
        self.tasked = outermost(env, "set_task")
        self.form = self._form()
        self.over, self.last = True, np.zeros(self.form.observed)

    def start(self, task: Any, seed: int) -> np.ndarray:
        """Begin the episode of this seed in this task: the first observation.

        Raises:
            ValueError: the environment raised, or gives what it must not.
        """
        self.over = False
        with seeded(self.env, seed), raised_by("the environment raised at its start"):
            self.tasked.set_task(task)
            began = self.env.reset(seed=seed)
        self.last = self._seen(first_observation(began))
        if (now := self._form()) != self.form:
            raise ValueError(
                f"the environment has {now.told} in this task, and {self.form.told} in others: one "
                "policy acts in all"
            )
        return self.last

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, Mapping[str, Any]]:
        """One step of an episode that still runs: observation, reward, whether it ended, info.

        Raises as `start` does.
        """
        chosen = scale_action(action, self.env.action_space)
        with raised_by("the environment raised"):
            given = self.env.step(chosen)
        seen, reward, ended, info = step_results(given)
        self.last, self.over = self._seen(seen), ended
        return self.last, reward, ended, info

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _seen(self, observation: Any) -> np.ndarray:
        return flatten_observation(
            observation, self.env.observation_space, image_scale=self.image_scale
        )

    def _form(self) -> Form:
        return Form(
            observation_size(self.env.observation_space), action_form(self.env.action_space)
        )


class IdleEnvironments:
    """Environments that no simulator uses, for the next: of each kind, those that lived last."""

    def __init__(self, *, spare: bool) -> None:
        """`spare`: twice as many as a simulator has, for the next may have more of other kinds."""
        self._envs: list[tuple[str, SingleEpisode]] = []
        self._times, self._most = 1 + spare, 0

    def taken(self, kind: str) -> SingleEpisode | None:
        """One of a kind, which is no longer here; None where there is none."""
        for place, (own, env) in enumerate(self._envs):
            if own == kind:
                del self._envs[place]
                return env
        return None

    def keep(self, envs: Sequence[tuple[str, SingleEpisode]]) -> None:
        """Keep these, by their kinds, and close what is too many."""
        self._most = max(self._most, len(envs))
        self._envs += envs
        while len(self._envs) > self._times * self._most:
            self._envs.pop(0)[1].close()


class Environments(Simulator):
    """Environments of the tasks, one for each of the seeds [task, episode]."""

    def __init__(
        self,
        envs: Sequence[SingleEpisode],
        tasks: Sequence[Any],
        seeds: np.ndarray,
        scores: Sequence[str] = (),
    ) -> None:
        """`scores` are names of numbers in info that are told with each step."""
        self.envs, self.tasks, self.seeds, self.scores = envs, tasks, seeds, scores
        self.named: set[str] = set()

    def reset(self) -> np.ndarray:
        """The first observations."""
        found = []
        for place, (env, seed) in enumerate(zip(self.envs, self.seeds.ravel(), strict=True)):
            with self._located(place):
                found.append(env.start(self.tasks[place // self.seeds.shape[1]], int(seed)))
        return np.stack(found).reshape(*self.seeds.shape, -1)

    def step(self, actions: np.ndarray) -> StepResult:
        """One step; an episode also ends at the environment's own time limit."""
        count = self.seeds.size
        seen, paid, ended = (
            np.zeros((count, self.envs[0].form.observed)),
            np.zeros(count),
            np.ones(count),
        )
        scores = {name: np.full(count, np.nan) for name in self.scores}
        for place, (env, action) in enumerate(
            zip(self.envs, actions.reshape(count, *actions.shape[2:]), strict=True)
        ):
            if env.over:
                seen[place] = env.last
                continue
            with self._located(place):
                seen[place], paid[place], ended[place], info = env.step(action)
                for name, values in scores.items():
                    if name in info:
                        values[place] = number(info[name], f"info[{name!r}]")
            if self.scores:
                self.named |= {str(name) for name in info}
        shape = self.seeds.shape
        told = {name: values.reshape(shape) for name, values in scores.items()}
        return StepResult(
            seen.reshape(*shape, -1), paid.reshape(shape), ended.astype(bool).reshape(shape), told
        )

    @contextmanager
    def _located(self, place: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            cause = error.__cause__ or error
            raise EnvironmentFault(place // self.seeds.shape[1], str(error)) from cause


@contextmanager
def raised_by(what: str) -> Iterator[None]:
    """Inside, whatever a user's environment raises is a ValueError that begins with `what`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} {type(error).__name__}: {error}") from error


def first_observation(given: Any) -> Any:
    """The observation of what `reset` gives.

    Raises:
        ValueError: it is not (observation, info).
    """
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)):
        raise ValueError(
            f"reset gives {_kind(given)}: must be the two values observation, info, as Gymnasium's "
            "do (older gym's gave the observation alone)"
        )
    return given[0]


def step_results(given: Any) -> tuple[Any, float, bool, Mapping[str, Any]]:
    """Observation, reward, whether the episode ended, and info, of what `step` gives.

    Raises:
        ValueError: it is not (observation, reward, terminated, truncated, info).
    """
    if not (isinstance(given, tuple) and len(given) == 5 and isinstance(given[4], Mapping)):
        raise ValueError(
            f"step gives {_kind(given)}: must be the five values observation, reward, terminated, "
            "truncated, info, as Gymnasium's do (older gym's had one done in place of two)"
        )
    seen, reward, terminated, truncated, info = given
    ends = [
        _flag(value, name) for value, name in ((terminated, "terminated"), (truncated, "truncated"))
    ]
    return seen, number(reward, "the reward", finite=False), any(ends), info


def number(value: Any, what: str, *, finite: bool = True) -> float:
    """What an environment gives as a number.

    Raises:
        ValueError: it is none, or not finite.
    """
    try:
        array = np.asarray(value)
        if array.size != 1 or not (array.dtype.kind in "biuf" or isinstance(value, Real)):
            raise TypeError
        found = float(array.reshape(()))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what} is {shown(value)}: must be a number") from None
    if finite and not math.isfinite(found):
        raise ValueError(f"{what} is {found}: must be finite")
    return found


def _flag(value: Any, what: str) -> bool:
    if np.size(value) != 1 or isinstance(value, str | Mapping):
        raise ValueError(f"{what} is {shown(value)}: must be true or false")
    return bool(value)


def _kind(given: Any) -> str:
    return (
        f"{len(given)} values" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
    )


def outermost(env: Env, *names: str) -> Any:
    """An environment, or the first that it wraps, that has one of these attributes; or None."""
    level = env
    while not any(hasattr(level, name) for name in names):
        if not isinstance(level, gymnasium.Wrapper):
            return None
        level = level.env
    return level


@contextmanager
def seeded(env: Env, seed: int) -> Iterator[None]:
    """Seed the environment, and for a while numpy's and Python's own generators."""
    env.unwrapped.np_random = np_random(seed)[0]
    with global_generators_seeded(seed):
        yield


@contextmanager
def global_generators_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's and Python's own generators for a while."""
    with EXCLUSIVE:
        states = np.random.get_state(), random.getstate()
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])
