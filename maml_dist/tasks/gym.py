"""Any Gymnasium environment that hands out tasks, as published meta-RL environments do.

    env.sample_tasks(n) -> [task, …]   (or env.sample_task() -> task),   env.set_task(task)

A task is whatever the environment says. Purity is the environment's share: what it draws must come
from `np_random`, seeded by `reset(seed=…)`, or from numpy's and Python's own generators at reset.
"""

import importlib
import random
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, flatten
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation

from maml_dist.core.data.simulator import EnvironmentFault, Simulator, StepResult
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.process_lock import EXCLUSIVE
from maml_dist.tasks.rollout import Goal, Rollouts, whose

Env = gymnasium.Env[Any, Any]
SEEDS = 2**31
OTHER_GYMS = ("GymV21Environment-v0", "GymV26Environment-v0")
SAMPLE = ("sample_tasks", "sample_task")


@dataclass(frozen=True)
class GymTasks(Rollouts):
    """Tasks of an environment: observations are flattened, actions Box ([-1, 1]) or Discrete."""

    env: str = ""  # a registered id, module:id, or a gymnasium.Env as module:Class, module.Class
    settings: dict[str, Any] = field(default_factory=dict, hash=False)  # of the environment

    goal_dim = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oracle:
            raise ValueError("task.oracle=True: must be False, for these tasks may be no numbers")
        if not isinstance(self._one.action_space, Box | Discrete):
            raise ValueError(
                f"task.env={self.env}: its actions are {self._one.action_space}; "
                "must be Box or Discrete"
            )
        if None in (outermost(self._one, "set_task"), outermost(self._one, *SAMPLE)):
            raise ValueError(
                f"task.env={self.env}: must have set_task, and sample_tasks or sample_task"
            )

    @classmethod
    def with_modules(
        cls, arguments: Mapping[str, Any], path: Callable[[str], str]
    ) -> dict[str, Any]:
        """Arguments whose environment is named by the module that `path` gives for its own."""
        module, between, name = _split(str(arguments.get("env", "")))
        if not module:
            return dict(arguments)
        try:
            return {**arguments, "env": f"{path(module)}{between}{name}"}
        except ModuleNotFoundError as error:
            raise ValueError(f"task.env={arguments['env']}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}  # no environments

    @property
    def state_dim(self) -> int:
        """Numbers of a flattened observation."""
        return int(np.prod(self._one.observation_space.shape or ()))

    @property
    def action_dim(self) -> int:
        """Numbers of a flattened action, or how many different ones there are."""
        space = self._one.action_space
        return int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape or ()))

    @property
    def discrete(self) -> bool:
        """Whether an action is one of a few."""
        return isinstance(self._one.action_space, Discrete)

    def sample(self, key: TaskKey) -> Goal:
        """What the environment draws when it is seeded by the key.

        Raises:
            ValueError: it raised.
        """
        env = outermost(self._one, *SAMPLE)
        with _seeded(self._one, int(key.rng().integers(SEEDS))):
            try:
                drawn = (
                    env.sample_tasks(1)[0] if hasattr(env, "sample_tasks") else env.sample_task()
                )
            except (Exception, SystemExit) as error:  # whatever the user's environment raises
                raise ValueError(
                    f"{whose([Goal(key, ())], None)}: the environment raised as it drew the task, "
                    f"{type(error).__name__}: {error}"
                ) from error
        return Goal(key, (drawn,))

    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """An environment an episode, one after the other; they are kept for the next time."""
        count = len(tasks) * self.episodes
        kept = [vector for vector in self._idle if vector.num_envs == count]
        vector = kept[0] if kept else SyncVectorEnv(
            [self._make] * count, autoreset_mode=AutoresetMode.NEXT_STEP
        )  # fmt: skip
        self._idle[:] = [other for other in self._idle if other is not vector]
        for place, env in enumerate(vector.envs):
            assert isinstance(env, SingleEpisode)
            env.place, env.task = place // self.episodes, tasks[place // self.episodes].value[0]
        seeds = [rng.integers(SEEDS, size=self.episodes) for rng in self.resets(tasks, stage)]
        simulator = Environments(vector, np.stack(seeds))
        weakref.finalize(simulator, _keep, self._idle, vector).atexit = False
        return simulator

    @cached_property
    def _one(self) -> Env:
        """To sample from, and to ask for its spaces."""
        return self._make()

    @cached_property
    def _idle(self) -> list[SyncVectorEnv]:
        """Environments that no simulator uses, at most one set."""
        return []

    def _make(self) -> Env:
        try:
            return SingleEpisode(_maker(self.env)(**self.settings))
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ValueError(f"task.env={self.env}: {error}") from error
        except (Exception, SystemExit) as error:  # whatever the user's environment raises
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(
                f"task.env={self.env}: cannot be made, {type(error).__name__}: {error} "
                f"({last.filename}, line {last.lineno})"
            ) from error


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
        with self._blamed("raised at its start"), _seeded(self, seed):
            self.tasked.set_task(self.task)
            self.last = self._checked(self.env.reset(seed=seed, options=options)[0])
        return self.last, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of the environment, if its episode still runs."""
        if self.over:
            return self.last, 0.0, False, False, {}
        with self._blamed("raised"):
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
    def _blamed(self, what: str) -> Iterator[None]:
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


def _split(env: str) -> tuple[str, str, str]:
    """Module, what is between, and name; a registered id has no module."""
    if env in OTHER_GYMS:
        raise ValueError(f"task.env={env}: makes environments of whatever module it is told to")
    if env in gymnasium.registry:
        return "", "", env
    return env.rpartition(":" if ":" in env else ".")


def _maker(env: str) -> Callable[..., Env]:
    """What makes an environment of this name; nothing else is ever called."""
    module, between, name = _split(env)
    if not module:
        return partial(gymnasium.make, env, disable_env_checker=True)
    holds = importlib.import_module(module)
    made = getattr(holds, name, None)
    if isinstance(made, type) and issubclass(made, gymnasium.Env):
        return made
    if made is not None or between == ".":
        raise TypeError(
            f"{name} is no gymnasium.Env of {module} (what makes one by other means is named by "
            "the id that the module registers it under, module:id)"
        )
    spec = gymnasium.spec(name)
    if isinstance(spec.entry_point, str):  # found as that module's own imports are
        owner, _, attribute = spec.entry_point.partition(":")
        imports = vars(holds)["__builtins__"]["__import__"]
        spec = replace(spec, entry_point=getattr(imports(owner, fromlist=[attribute]), attribute))
    return partial(gymnasium.make, spec, disable_env_checker=True)


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
def _seeded(env: Env, seed: int) -> Iterator[None]:
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


def _keep(idle: list[SyncVectorEnv], vector: SyncVectorEnv) -> None:
    """Keep these environments for the next simulator, and none else."""
    for other in idle:
        other.close()
    idle[:] = [vector]
