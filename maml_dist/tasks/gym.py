"""Any Gymnasium environment that hands out tasks, as published meta-RL environments do.

    env.sample_tasks(n) -> [task, …]   (or env.sample_task() -> task),   env.set_task(task)

and benchmarks that list tasks, as Meta-World's. A task is whatever the environment says. Purity is
the environment's share: what it draws must come from `np_random`, seeded by `reset(seed=…)`, or
from numpy's and Python's own generators at reset.
"""

import importlib
import inspect
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from maml_dist.core.data.simulator import Simulator
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.own_code import is_own
from maml_dist.core.validation import check_positive, check_size
from maml_dist.tasks.episode_scores import check_scores
from maml_dist.tasks.gym_simulator import (
    Environments,
    IdleEnvironments,
    SingleEpisode,
    global_generators_seeded,
)
from maml_dist.tasks.gym_spaces import IMAGE_SCALE
from maml_dist.tasks.gym_worlds import SEEDS, World, checked, is_benchmark, world
from maml_dist.tasks.rollout import Goal, Rollouts, whose

OTHER_GYMS = ("GymV21Environment-v0", "GymV26Environment-v0")


@dataclass(frozen=True)
class GymTasks(Rollouts):
    """Tasks of environments: observations are flattened, actions numbers or choices."""

    # A registered id, module:id; a gymnasium.Env, a benchmark, or of one's own code whatever makes
    # either, as module:name or module.name; or, in Python, itself.
    env: str | Callable[..., Any] = ""
    settings: dict[str, Any] = field(default_factory=dict, hash=False)  # its arguments
    scores: tuple[str, ...] = ()  # type: ignore[misc]  # of info: NAME, or NAME:last (min, mean …)
    image_scale: float = IMAGE_SCALE  # that pixels, 0 to 255, are divided by

    goal_dim = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oracle:
            raise ValueError("task.oracle=True: must be False, for these tasks may be no numbers")
        check_scores(self.scores, "task.scores")
        check_positive(self, "task", "image_scale")
        numbers = self.horizon * self.episodes * self.state_dim
        check_size(self, "task", "horizon", "episodes", "env", numbers=numbers)

    @classmethod
    def with_modules(
        cls, arguments: Mapping[str, Any], path: Callable[[str], str]
    ) -> dict[str, Any]:
        """Arguments whose environment is named by the module that `path` gives for its own."""
        env = arguments.get("env", "")
        module, between, name = _split(env) if isinstance(env, str) else ("", "", "")
        if not module:
            return dict(arguments)
        try:
            return {**arguments, "env": f"{path(module)}{between}{name}"}
        except ModuleNotFoundError as error:
            raise ValueError(f"task.env={arguments['env']}: {_no_module(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}  # no environments

    @property
    def state_dim(self) -> int:
        """Numbers of a flattened observation."""
        return self._one.form.observed

    @property
    def action_dim(self) -> int:
        """Numbers of a flattened action; how many different ones, added up over the choices."""
        return self._one.form.acts.size

    @property
    def discrete(self) -> bool:
        """Whether an action is one of a few, or some such choices."""
        return self._one.form.acts.discrete

    @property
    def choices(self) -> tuple[int, ...]:
        """Of an action that is several discrete choices: how many ways each has; else none."""
        return self._one.form.acts.choices

    def sample(self, key: TaskKey) -> Goal:
        """What the environment draws when it is seeded by the key, or a task of a benchmark's.

        Raises:
            ValueError: it raised, or there is none.
        """
        try:
            drawn = self._world.draw(key, self._one.env)
        except (Exception, SystemExit) as error:  # whatever the user's environment raises
            said = f"the environment raised as it drew the task, {type(error).__name__}: {error}"
            if isinstance(error, ValueError) and _is_ours(error):
                said = str(error)
            raise ValueError(f"{whose([Goal(key, ())], None)}: {said}") from error
        return Goal(key, (drawn,))

    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """An environment an episode, one after the other; they are kept for the next time."""
        values = [task.value[0] for task in tasks]
        kinds = [self._world.kind_of(value) for value in values for _ in range(self.episodes)]
        envs = [self._idle.taken(kind) or self._make(kind) for kind in kinds]
        seeds = [rng.integers(SEEDS, size=self.episodes) for rng in self.resets(tasks, stage)]
        names = dict.fromkeys(entry.partition(":")[0] for entry in self.scores)
        simulator = Environments(envs, values, np.stack(seeds), [*names])
        kept = [*zip(kinds, envs, strict=True)]
        weakref.finalize(simulator, self._idle.keep, kept).atexit = False
        return simulator

    @cached_property
    def _made(self) -> tuple[World, SingleEpisode]:
        with self._located():
            found, env = world(_maker(self.env, self.settings))
            return found, SingleEpisode(env, image_scale=self.image_scale)

    @property
    def _world(self) -> World:
        """What makes environments and draws tasks."""
        return self._made[0]

    @property
    def _one(self) -> SingleEpisode:
        """To ask for its spaces, and to draw tasks."""
        return self._made[1]

    @cached_property
    def _idle(self) -> IdleEnvironments:
        """Environments that no simulator uses."""
        return IdleEnvironments(spare=len(self._world.kinds) > 1)

    def _make(self, kind: str) -> SingleEpisode:
        with self._located():
            made = SingleEpisode(checked(self._world.make(kind)), image_scale=self.image_scale)
            if made.form != self._one.form:
                raise ValueError(
                    f"{kind} has {made.form.told}, {self._world.kinds[0]} has "
                    f"{self._one.form.told}: one policy acts in all"
                )
            return made

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Inside, what is wrong with the environment is a ValueError of one line."""
        name = self.env
        if not isinstance(name, str):
            name = getattr(name, "__name__", repr(name))
        try:
            with global_generators_seeded(0):  # what its constructor draws is the same everywhere
                yield
        except (Exception, SystemExit) as error:  # whatever the user's environment raises
            said = _no_module(error) if isinstance(error, ImportError) else str(error)
            if not (_is_ours(error) or isinstance(error, gymnasium.error.Error | ImportError)):
                last = traceback.extract_tb(error.__traceback__)[-1]
                said = (
                    f"cannot be made, {type(error).__name__}: {error} "
                    f"({last.filename}, line {last.lineno})"
                )
            raise ValueError(f"task.env={name}: {said}") from error


def _split(env: str) -> tuple[str, str, str]:
    """Module, what is between, and name; a registered id has no module."""
    if env in OTHER_GYMS:
        raise ValueError(f"task.env={env}: makes environments of whatever module it is told to")
    if env in gymnasium.registry:
        return "", "", env
    return env.rpartition(":" if ":" in env else ".")


def _maker(env: str | Callable[..., Any], settings: Mapping[str, Any]) -> Callable[[], Any]:
    """What makes environments, or a benchmark of them; nothing else is ever called."""
    if not isinstance(env, str):
        if not callable(env):
            raise ValueError(
                f"{type(env).__name__} must be a name, or a class or function that makes "
                "environments: each episode has one of its own"
            )
        return partial(env, **_with_seed(env, settings))
    module, between, name = _split(env)
    if not module:
        return partial(gymnasium.make, env, disable_env_checker=True, **settings)
    holds = importlib.import_module(module)
    named = getattr(holds, name, None)
    kind = isinstance(named, type) and (issubclass(named, gymnasium.Env) or is_benchmark(named))
    if kind or (callable(named) and is_own(module)):
        assert named is not None
        return partial(named, **_with_seed(named, settings))
    if named is not None or between == ".":
        close = [] if named is not None else get_close_matches(name, vars(holds), 1)
        raise TypeError(
            f"{name} is no gymnasium.Env of {module}"
            + (f"; did you mean {close[0]}? (" if close else ", nor a benchmark (")
            + "what makes one by other means is named by the id that the module registers it "
            "under, module:id, or called by a function in a file of your own)"
        )
    spec = gymnasium.spec(name)
    if isinstance(spec.entry_point, str):  # found as that module's own imports are
        owner, _, attribute = spec.entry_point.partition(":")
        imports = vars(holds)["__builtins__"]["__import__"]
        spec = replace(spec, entry_point=getattr(imports(owner, fromlist=[attribute]), attribute))
    return partial(gymnasium.make, spec, disable_env_checker=True, **settings)


def _with_seed(make: Callable[..., Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings; a benchmark that takes a seed has 0 if none is given: one list everywhere."""
    if not is_benchmark(make) or "seed" not in inspect.signature(make).parameters:
        return settings
    return {"seed": 0, **settings}


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised here, and not by what was called from here."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).parent == Path(__file__).parent


def _no_module(error: ImportError) -> str:
    """What is said of a module that is not there, and how to come by it."""
    hint = ": pip install 'maml_dist[metaworld]'" if error.name == "metaworld" else ""
    return f"{error}{hint}"
