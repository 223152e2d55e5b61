"""Compose: recipe + overrides -> configuration -> objects.

A recipe is YAML, read by jsonargparse, which knows typed dataclasses and class paths: an object's
own constructor is its configuration, so a user's class needs no registration. (OmegaConf would
want a second, structured copy of every constructor.)
"""

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maml_dist.config import plain_yaml
from maml_dist.config.aliases import updated
from maml_dist.config.dotted_keys import candidates, flatten_keys, full_key, set_key
from maml_dist.config.errors import (
    Parser,
    class_named,
    config_errors,
    noted,
    raise_refused,
)
from maml_dist.config.experiment import Experiment
from maml_dist.config.given import KINDS, written
from maml_dist.config.recipe import Config, read_recipe
from maml_dist.config.trust import Names
from maml_dist.config.user_code import raised_told, spelled
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.global_random import global_generators
from maml_dist.core.params import cast


def compose(recipe: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The whole configuration: a recipe's name or YAML file, overrides, all defaults.

    Without a recipe the overrides are one: task, model, learner and outer, objects or class paths.

    A key is dotted (`learner.alpha=0.1`); an ending that occurs once stands for it (`alpha=0.1`).
    A class is exchanged by its path, or by the name of one of the package (`learner.inner=Adam`);
    the package's stand there by their names, so that no file of it is named in a run.
    A class path among the overrides may lead to the working directory, or wherever Python would
    import it from: the caller typed it.

    Raises:
        ValueError: in one line, the key, the value, what is allowed and the nearest valid name.
    """
    overrides = written(overrides or {})
    if recipe is None:
        content: Config = {key: overrides[key] for key in KINDS if key in overrides}
        content["name"] = _name_of(content.get("task"))
    else:
        content = read_recipe(recipe)
        content = {"name": Path(recipe).stem, **content}
    plain_yaml.check(content, "")
    return override(content, overrides)


def _name_of(task: Any) -> str:
    """The name of a run without a recipe: its task's class."""
    arguments = task.get("init_args", {}) if isinstance(task, Mapping) else {}
    path = arguments.get("what", task["class_path"]) if isinstance(task, Mapping) else task
    return re.sub(r"\W", "", str(path).rpartition(".")[2]).lower()[:100]


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with some keys changed, and all defaults filled in; raises as `compose` does."""
    config = copy.deepcopy(config)
    values = {
        str(key).replace(".init_args.", ".").removesuffix(".class_path"): _plain(value)
        for key, value in overrides.items()
    }
    for key, value in values.items():
        plain_yaml.check(value, key)
    typed = list(_texts(values))
    while values:
        given = flatten_keys(config)
        leaves = given if values.keys() <= given.keys() else flatten_keys(_resolve(config, typed))
        known = {key.removesuffix(".class_path"): key for key in leaves}
        meant = {key: candidates(key, known) for key in values}
        # Classes come first, they decide which keys there are: the outer ones before the inner.
        classes = [
            (names[0], key)
            for key, names in meant.items()
            if len(names) == 1
            and (names[0] != known[names[0]] or any(own.startswith(f"{key}.") for own in values))
        ]
        if not classes:
            for key, value in values.items():
                set_key(config, full_key(key, list(known)), value)
            break
        path, key = min(classes, key=lambda each: len(each[0]))
        set_key(config, path, values.pop(key))
        for own in sorted(values):  # with it what is its own, some of which it requires
            for prefix in (f"{path}.", f"{key}."):
                if own.startswith(prefix) and own in values:
                    set_key(config, f"{path}.{own.removeprefix(prefix)}", values.pop(own))
    return _resolve(config, typed)


def build(config: Config) -> Experiment:
    """The objects of a configuration, the model with its initial weights (seeded).

    Raises:
        ValueError: a key, type or value is wrong, or a class is not to be trusted.
    """
    return build_with(config)


def build_with(config: Config, task: Callable[[], TaskSource] | None = None) -> Experiment:
    """As `build`; with a `task` that is made so, whatever the configuration says of it."""
    _check_classes(config, "")
    names = Names(config["code"])
    with config_errors(Experiment, names), global_generators() as seed:
        without = set() if task is None else {"task"}
        made = _instantiated(Experiment, config, names, without=without, before=seed)
        if task is not None:
            made["task"] = task()
        experiment = Experiment(**made)
        cast(experiment.model, experiment.engine.dtype)
        return experiment


def arguments_of(
    kind: type, given: Config, code: Sequence[str], *, without: Collection[str]
) -> dict[str, Any]:
    """The arguments of a class of the package, but for some; of a configuration's plain ones.

    Raises:
        ValueError: as `build`.
    """
    names = Names(code)
    with config_errors(kind, names):
        return _instantiated(kind, given, names, without=without)


def _instantiated(
    kind: type,
    config: Config,
    names: Names,
    *,
    without: Collection[str] = (),
    before: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """A class's arguments as objects, but for some; `before` they are made it is given the seed."""
    parser = _parser(kind, without)
    namespace = parser.parse_object({k: v for k, v in config.items() if k not in without})
    raise_refused()
    if before is not None:
        before(namespace.seed)
    made = parser.instantiate(namespace, instantiators=[(_maker(names), object, True)])
    return dict(vars(made))


def _maker(names: Names) -> Callable[..., Any]:
    """Makes the objects; what one of them will import itself is looked up before."""

    def make(kind: type, /, *rest: Any, **arguments: Any) -> Any:
        with_modules = getattr(kind, "with_modules", None)
        with noted():
            arguments = with_modules(arguments, names.loaded) if with_modules else arguments
            with raised_told("the recipe's objects cannot be made: "):
                return kind(*rest, **arguments)

    return make


def _resolve(config: Config, typed: Sequence[str] = ()) -> Config:
    """All keys with their values, defaults included, as plain data; our classes by short names."""
    missing = [key for key in ("task", "model", "learner", "outer") if key not in config]
    if missing:
        raise ValueError(f"the recipe lacks {', '.join(missing)}")
    _check_classes(config, "")
    names = Names(config.get("code") or (), typed)
    with config_errors(Experiment, names):
        parser = _parser()
        resolved = parser.dump(parser.parse_object(config), skip_none=False)
        # An argument that may be null and has no default is null where it is left out.
        whole: Config = yaml.safe_load(spelled(re.sub(r"(?m)(?<=: )==UNSET==$", "null", resolved)))
        _find_environment(whole["task"], names)
        _find_loggers(whole["loggers"], names)
    return updated({**whole, "code": [*whole["code"], *names.found]})


def _find_environment(task: Config, names: Names) -> None:
    """Where the environment is that the caller typed: its folder is one of the recipe's then."""
    with_modules = getattr(class_named(task["class_path"]), "with_modules", None)
    if with_modules:
        with_modules(task.get("init_args", {}), names.path)


def _find_loggers(loggers: Sequence[str], names: Names) -> None:
    """Where loggers of one's own are."""
    for logger in loggers:
        module = logger.rpartition(".")[0]
        try:
            if module:
                names.path(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"loggers={logger}: {error}") from None


def _parser(kind: type = Experiment, without: Collection[str] = ()) -> Parser:
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False, skip={*without})
    return parser


def _check_classes(node: Mapping[str, Any], prefix: str) -> None:
    """Raise ValueError where a class is no text, or its arguments are no keys and values."""
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key == "class_path" and not isinstance(value, str):
            raise ValueError(
                f"{name}={plain_yaml.short(value)}: must be the path of a class, as text"
            )
        if key == "init_args" and not isinstance(value, Mapping):
            raise ValueError(f"{name}={plain_yaml.short(value)}: must be keys and values")
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
