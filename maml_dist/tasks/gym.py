"""Any Gymnasium environment that hands out tasks, as published meta-RL environments do.

    env.sample_tasks(n) -> [task, …]   (or env.sample_task() -> task),   env.set_task(task)

A task is whatever the environment says. Purity is the environment's share: what it draws must come
from `np_random`, seeded by `reset(seed=…)`, or from numpy's and Python's own generators at reset.
"""

import importlib
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from maml_dist.core.data.simulator import Simulator
from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.gym_simulator import Env, Environments, SingleEpisode, outermost, seeded
from maml_dist.tasks.rollout import Goal, Rollouts, whose

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
        with seeded(self._one, int(key.rng().integers(SEEDS))):
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


def _keep(idle: list[SyncVectorEnv], vector: SyncVectorEnv) -> None:
    """Keep these environments for the next simulator, and none else."""
    for other in idle:
        other.close()
    idle[:] = [vector]
