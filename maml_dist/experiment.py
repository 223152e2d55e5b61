"""Experiment: recipe + overrides -> objects.

A recipe is YAML, read by jsonargparse, which knows typed dataclasses and class paths: an object's
own constructor is its configuration, so a user's class needs no registration. (OmegaConf would
want a second, structured copy of every constructor.)
"""

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

import numpy as np
import yaml
from jsonargparse import ArgumentError
from torch import nn

from maml_dist import learners, models, plain, tasks
from maml_dist.core.bounds import STEPS, check_least, check_range
from maml_dist.core.engine import Engine
from maml_dist.core.generators import global_generators
from maml_dist.core.learner import Learner
from maml_dist.core.outer import Outer
from maml_dist.core.params import cast
from maml_dist.core.source import TaskSource
from maml_dist.explained import (
    Parser,
    class_named,
    explained,
    noted,
    raise_refused,
    unknown_name,
)
from maml_dist.recipe import Config, nearest, read_recipe
from maml_dist.runtime.launch import Asked
from maml_dist.trust import Names
from maml_dist.user_code import raised_told, spelled

_NAME = re.compile(r"([^/\\.\n][^/\\\n]{0,99})?")
TASKS = 1_000_000  # that an iteration, a validation or an evaluation may take
ACTORS = 10_000  # that a run may have; cores and GPUs of one


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run. Its fields are the keys of a recipe."""

    task: TaskSource  # the distribution over tasks
    model: nn.Module  # what is meta-learned
    learner: Learner  # how it adapts; holds alpha
    outer: Outer  # how the meta-parameters are updated; holds beta
    name: str = ""  # the recipe's
    description: str = ""  # one line, for --list
    paper: dict[int, float] = field(
        default_factory=dict
    )  # adaptation steps -> score to compare with
    iterations: int = 60000  # meta-iterations (0 writes the untrained weights)
    meta_batch: int = 32  # tasks a meta-iteration
    seed: int = 0  # of the initial weights and of every task
    init: str | None = None  # a run whose weights to start from
    shards: int | None = None  # task shards; null: one a GPU, or one a core
    cpus_per_shard: float = 1  # cores that a shard reserves; its threads
    gpus_per_shard: float | None = None  # GPUs that a shard reserves; null: 1 where there are GPUs
    rollout_workers: int = 0  # that act in environments for a shard; 0: the shard itself does
    cpus_per_worker: float = 1  # cores that a rollout worker reserves
    environments: int | None = None  # that a worker simulates at once; null: of all its tasks
    engine: Engine = field(default_factory=Engine)  # how tasks are differentiated
    diverged: Literal["stop", "skip"] = "stop"  # a task whose loss or gradient is not finite
    test_steps: int = 10  # inner steps at validation and test
    validation_tasks: int = 200  # held-out tasks a validation
    test_tasks: int = 600  # held-out tasks of the final evaluation
    checkpoint_every: int = 1000  # meta-iterations between validations, each with a checkpoint
    keep: int = 3  # last checkpoints kept, beside the best
    checkpoints: str | None = None  # folder or pyarrow.fs URI for them; null: in the run folder
    log_every: int = 100  # meta-iterations averaged into one line of metrics
    ahead: int = 8  # meta-iterations submitted before their metrics are read
    code: tuple[str, ...] = ()  # folders of the user's own modules, beside the recipe's own

    def __post_init__(self) -> None:
        check_least(self, "", iterations=0, seed=0, checkpoint_every=1, keep=1, log_every=1)
        check_least(self, "", environments=1)
        check_range(self, "", meta_batch=(1, TASKS), validation_tasks=(1, TASKS))
        check_range(self, "", test_tasks=(2, TASKS), test_steps=(0, STEPS), ahead=(1, 10_000))
        check_range(self, "", shards=(1, ACTORS), rollout_workers=(0, ACTORS))
        check_range(self, "", cpus_per_shard=(0, ACTORS), cpus_per_worker=(0, ACTORS))
        check_range(self, "", gpus_per_shard=(0, ACTORS))
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name={plain.short(repr(self.name))}: must be a word for a folder, without "
                "/ and not over 100 characters"
            )
        for steps, score in self.paper.items():
            if steps < 0 or not math.isfinite(score):
                raise ValueError(f"paper={self.paper}: must be steps -> score, finite numbers")
        if self.shards is not None and self.shards > self.meta_batch:
            raise ValueError(
                f"shards={self.shards}: more than the {self.meta_batch} tasks of a meta-batch"
            )

    @property
    def published(self) -> dict[int, float]:
        """The paper's scores to compare with; the untrained weights have none."""
        return self.paper if self.iterations or self.init else {}

    @property
    def asks(self) -> bool:
        """Whether an update asks the tasks back: for its step, or how far it led the policies."""
        led = type(self.task).divergence is not TaskSource.divergence
        return self.outer.asks or (led and not self.learner.by_scores)

    @property
    def asked(self) -> Asked:
        """What each shard is to have."""
        return Asked(
            self.cpus_per_shard, self.gpus_per_shard, self.rollout_workers, self.cpus_per_worker
        )


def compose(recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The whole configuration: a recipe's name or YAML file, overrides, all defaults.

    A key is dotted (`learner.alpha=0.1`); an ending that occurs once stands for it (`alpha=0.1`).
    A class is exchanged by its path, or by the name of one of the package (`learner.inner=Adam`).
    A class path among the overrides may lead to the working directory, or wherever Python would
    import it from: the caller typed it.

    Raises:
        ValueError: in one line, the key, the value, what is allowed and the nearest valid name.
    """
    content = read_recipe(recipe)
    plain.check(content, "")
    return override({"name": Path(recipe).stem, **content}, overrides or {})


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with some keys changed, and all defaults filled in; raises as `compose` does."""
    config = copy.deepcopy(config)
    values = {
        str(key).replace(".init_args.", ".").removesuffix(".class_path"): _plain(value)
        for key, value in overrides.items()
    }
    for key, value in values.items():
        plain.check(value, key)
    typed = list(_texts(values))
    while values:
        given = _leaves(config)
        leaves = given if values.keys() <= given.keys() else _leaves(_resolve(config, typed))
        known = {key.removesuffix(".class_path"): key for key in leaves}
        meant = {key: _meant(key, known) for key in values}
        # Classes come first, they decide which keys there are: the outer ones before the inner.
        classes = [
            (names[0], key)
            for key, names in meant.items()
            if len(names) == 1
            and (names[0] != known[names[0]] or any(own.startswith(f"{key}.") for own in values))
        ]
        if not classes:
            for key, value in values.items():
                _put(config, _full_key(key, list(known)), value)
            break
        path, key = min(classes, key=lambda each: len(each[0]))
        _put(config, path, values.pop(key))
        for own in sorted(values):  # with it what is its own, some of which it requires
            for prefix in (f"{path}.", f"{key}."):
                if own.startswith(prefix) and own in values:
                    _put(config, f"{path}.{own.removeprefix(prefix)}", values.pop(own))
    return _resolve(config, typed)


def build(config: Config) -> Experiment:
    """The objects of a configuration, the model with its initial weights (seeded).

    Raises:
        ValueError: a key, type or value is wrong, or a class is not to be trusted.
    """
    _check_classes(config, "")
    names = Names(config["code"])
    with explained(Experiment, names), global_generators() as seed:
        parser = _parser()
        namespace = parser.parse_object(config)
        raise_refused()
        seed(namespace.seed)
        made = parser.instantiate(namespace, instantiators=[(_maker(names), object, True)])
        experiment = Experiment(**vars(made))
        cast(experiment.model, experiment.engine.dtype)
        return experiment


def _maker(names: Names) -> Callable[..., Any]:
    """Makes the objects; what one of them will import itself is looked up before."""

    def make(kind: type, *rest: Any, **arguments: Any) -> Any:
        with_modules = getattr(kind, "with_modules", None)
        with noted():
            arguments = with_modules(arguments, names.loaded) if with_modules else arguments
            with raised_told("the recipe's objects cannot be made: "):
                return kind(*rest, **arguments)

    return make


def _resolve(config: Config, typed: Sequence[str] = ()) -> Config:
    """All keys with their values, defaults included, as plain data."""
    missing = [key for key in ("task", "model", "learner", "outer") if key not in config]
    if missing:
        raise ValueError(f"the recipe lacks {', '.join(missing)}")
    _check_classes(config, "")
    names = Names(config.get("code") or (), typed)
    with explained(Experiment, names):
        parser = _parser()
        try:
            namespace = parser.parse_object(config)
        except ArgumentError as error:
            if not unknown_name(error):
                raise
            _import_rooms()  # jsonargparse knows the classes by name that are imported
            namespace = parser.parse_object(config)
        resolved = parser.dump(namespace, skip_none=False)
        # An argument that may be null and has no default is null where it is left out.
        whole: Config = yaml.safe_load(spelled(re.sub(r"(?m)(?<=: )==UNSET==$", "null", resolved)))
        _find_environment(whole["task"], names)
    return {**whole, "code": [*whole["code"], *names.found]}


def _find_environment(task: Config, names: Names) -> None:
    """Where the environment is that the caller typed: its folder is one of the recipe's then."""
    with_modules = getattr(class_named(task["class_path"]), "with_modules", None)
    if with_modules:
        with_modules(task.get("init_args", {}), names.path)


def _import_rooms() -> None:
    for room in (learners, models, tasks):
        for module in iter_modules(room.__path__, f"{room.__name__}."):
            import_module(module.name)


def _parser() -> Parser:
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(Experiment, fail_untyped=False)
    return parser


def _check_classes(node: Mapping[str, Any], prefix: str) -> None:
    """Raise ValueError where a class is no text, or its arguments are no keys and values."""
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key == "class_path" and not isinstance(value, str):
            raise ValueError(f"{name}={plain.short(value)}: must be the path of a class, as text")
        if key == "init_args" and not isinstance(value, Mapping):
            raise ValueError(f"{name}={plain.short(value)}: must be keys and values")
        if isinstance(value, Mapping):
            _check_classes(value, name)


def _texts(value: Any) -> Iterator[str]:
    """The texts in plain data, an environment's `module:Class` written as class paths are."""
    if isinstance(value, str):
        yield value.replace(":", ".")
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _plain(value: Any) -> Any:
    """Numpy's scalars and paths as YAML knows them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    return str(value) if isinstance(value, Path) else value


def _meant(key: str, known: Iterable[str]) -> list[str]:
    """The keys that `key` can stand for: itself, or those that end in it."""
    return [key] if key in known else [name for name in known if name.endswith(f".{key}")]


def _full_key(key: str, known: Sequence[str]) -> str:
    meant = _meant(key, known)
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ValueError(f"key {key!r} could be any of {', '.join(meant)}")
    within = [name for name in known if name.startswith(f"{key}.")]
    if within:
        raise ValueError(f"key {key!r} is set by its parts: {', '.join(within)}")
    guess = nearest(key, [*known, *(name.rpartition(".")[2] for name in known)])
    raise ValueError(f"unknown key {key!r}{guess} (--print-config shows them all)")


def _leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values, `init_args` left out of the keys; a class's is its `class_path`."""
    return dict(_walk(config, prefix))


def _walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and key != "paper":
            yield from _walk(value, name)
        else:
            yield name, value


def _put(config: Config, dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    node = config
    for key in path:
        if isinstance(node.get(key), str):
            node[key] = {"class_path": node[key]}
        node = node.setdefault(key, {})
        if "class_path" in node:
            node = node.setdefault("init_args", {})
    node[last] = value
