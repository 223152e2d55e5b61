"""Worlds: what makes Gymnasium environments and draws their tasks, whatever stands behind.

    TaskedEnv    one kind of environment, which draws its own tasks: sample_task, sample_tasks
    Benchmark    several kinds, and lists of tasks for training and test, as Meta-World's
                 (arXiv 1910.10897): train_classes, train_tasks, test_classes, test_tasks

Which of the two it is, what is made says itself.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium

from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.gym_simulator import Env, outermost, seeded

SEEDS = 2**31
SAMPLE = ("sample_tasks", "sample_task")
LISTS = ("train_classes", "train_tasks", "test_classes", "test_tasks")


class World(ABC):
    """Environments, of one kind or several, and their tasks."""

    kinds: tuple[str, ...] = ("",)

    @abstractmethod
    def make(self, kind: str) -> Any:
        """A new environment of this kind."""

    @abstractmethod
    def draw(self, key: TaskKey, env: Env) -> Any:
        """The task of a key; `env`, one of the environments, may be asked.

        Raises:
            ValueError: there is none of such a split.
        """

    def kind_of(self, task: Any) -> str:
        """The kind of environment that a task is for."""
        return ""


class TaskedEnv(World):
    """Environments of one kind, which draw tasks themselves."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def make(self, kind: str) -> Any:
        """A new environment."""
        return self._make()

    def draw(self, key: TaskKey, env: Env) -> Any:
        """What the environment draws when it is seeded by the key; told the split, if it asks."""
        owner = outermost(env, *SAMPLE)
        with seeded(env, int(key.rng().integers(SEEDS))):
            if hasattr(owner, "sample_tasks"):
                return owner.sample_tasks(1, **_split_of(owner.sample_tasks, key))[0]
            return owner.sample_task(**_split_of(owner.sample_task, key))


class Benchmark(World):
    """Kinds of environments and their tasks, in lists for training and for test.

    A training task is drawn: a kind, then one of its tasks. Held-out tasks go round, kind after
    kind and through the tasks of each, so that as many as there are are all of them, once.
    Validation is on the training tasks: those of the test choose no checkpoint.
    """

    def __init__(self, lists: Any) -> None:
        """`lists`: what has the four.

        Raises:
            ValueError: they do not fit together.
        """
        self._classes: dict[str, Any] = {}
        self._tasks: dict[str, list[Sequence[Any]]] = {}
        for split in ("train", "test"):
            classes, tasks = (getattr(lists, f"{split}_{what}") for what in ("classes", "tasks"))
            by_kind: dict[str, list[Any]] = {}
            for task in tasks:
                name = getattr(task, "env_name", None)
                if not isinstance(classes, Mapping) or name not in classes:
                    raise ValueError(
                        f"a task of {split}_tasks has env_name={name!r}; {split}_classes has "
                        f"{', '.join(map(str, classes)) or 'none'}"
                    )
                by_kind.setdefault(str(name), []).append(task)
            self._tasks[split] = [*by_kind.values()]
            for name in by_kind:
                if self._classes.setdefault(name, classes[name]) is not classes[name]:
                    raise ValueError(
                        f"{name} is another class in test_classes than in train_classes"
                    )
        if not self._tasks["train"]:
            raise ValueError("train_tasks is empty")
        self.kinds = tuple(self._classes)

    def make(self, kind: str) -> Any:
        """A new environment of the class of this name."""
        return self._classes[kind]()

    def draw(self, key: TaskKey, env: Env) -> Any:
        """A task of the lists."""
        kinds = self._tasks["test" if key.split == "test" else "train"]
        if not kinds:
            raise ValueError("test_tasks is empty: there are tasks for training alone")
        if key.split != "train":
            turn, kind = divmod(key.index, len(kinds))
            return kinds[kind][turn % len(kinds[kind])]
        rng = key.rng()
        tasks = kinds[int(rng.integers(len(kinds)))]
        return tasks[int(rng.integers(len(tasks)))]

    def kind_of(self, task: Any) -> str:
        """The name of its class."""
        return str(task.env_name)


def is_benchmark(named: Any) -> bool:
    """Whether a class or an object has the four lists of a benchmark."""
    return all(hasattr(named, name) for name in LISTS)


def world(make: Callable[[], Any]) -> tuple[World, Any]:
    """What `make` makes environments of, and the first that it made, of whatever kind.

    Raises:
        ValueError: what it makes is neither an environment with tasks nor a benchmark.
    """
    made = make()
    if isinstance(made, gymnasium.Env):
        checked(made, own=True)
        return TaskedEnv(make), made
    if is_benchmark(made) and not isinstance(made, type):
        found = Benchmark(made)
        return found, checked(found.make(found.kinds[0]))
    raise ValueError(_no_env(made))


def checked(made: Any, *, own: bool = False) -> Env:
    """An environment that takes tasks, and with `own` draws them.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(made, gymnasium.Env):
        raise ValueError(_no_env(made))
    lacks = outermost(made, "set_task") is None, own and outermost(made, *SAMPLE) is None
    if any(lacks):
        must = "set_task, and sample_tasks or sample_task" if own else "set_task"
        raise ValueError(f"{type(made.unwrapped).__name__} must have {must}")
    return made


def _no_env(made: Any) -> str:
    if isinstance(made, type):
        return f"gives the class {made.__name__}: must give an environment, {made.__name__}()"
    kind = "None" if made is None else f"a {type(made).__module__}.{type(made).__name__}"
    return f"gives {kind}: must give a gymnasium.Env, or a benchmark with {', '.join(LISTS)}"


def _split_of(sample: Callable[..., Any], key: TaskKey) -> dict[str, str]:
    """The split for a method that has a parameter of this name."""
    try:
        names = inspect.signature(sample).parameters
    except (TypeError, ValueError):  # of some that are not written in Python
        return {}
    return {"split": key.split} if "split" in names else {}
