"""Given: objects from Python in the place of class paths.

What can be written as configuration is: dataclasses of plain values, classes, and
`functools.partial`s of classes. All else (modules with their weights, closures, classes of a
notebook) is given by value: this process holds it, a run's recipe says what it was, and another
process must be given it again. It is never written to a file, for reading it would execute it.
"""

import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from torch import nn

from maml_dist.config.as_config import NO_CONFIG, as_config, is_plain, path_of
from maml_dist.config.plain_yaml import short
from maml_dist.config.recipe import nearest
from maml_dist.config.user_code import OwnCodeError
from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.model.copying import copied
from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.users_line import is_installed

KINDS: dict[str, type] = {
    "task": TaskSource,
    "model": nn.Module,
    "learner": Learner,
    "outer": OuterOptimizer,
}
_held: dict[str, Callable[[], Any]] = {}  # by their ids, what makes the objects
_modules: set[str] = set()  # of one's own, whose classes travel by value


class _Given:
    """Stands in a recipe for an object of Python's; made, it is that object."""

    def __new__(cls, what: str, id: str) -> Any:
        """The object of this `id`; `what` it is is for the reader.

        Raises:
            OwnCodeError: this process was not given it.
        """
        if id not in _held:
            key = next(key for key, kind in PLACEHOLDERS.items() if kind is cls)
            raise OwnCodeError(
                f"{key} was an object given from Python, {what}, which no file holds: give it "
                f"again, as in maml_dist.load(run, {key}=…) or meta_train(resume=run, {key}=…)"
            )
        return _held[id]()

    def __init__(self, what: str, id: str) -> None:  # where the configuration's arguments are read
        raise AssertionError("another object is made in its place")


class GivenTask(_Given, TaskSource):
    """A task source that was given from Python."""


class GivenModel(_Given, nn.Module):
    """A model that was given from Python."""


class GivenLearner(_Given, Learner):
    """A learner that was given from Python."""


class GivenOuter(_Given, OuterOptimizer):
    """An outer optimizer that was given from Python."""


PLACEHOLDERS: dict[str, type] = {
    "task": GivenTask,
    "model": GivenModel,
    "learner": GivenLearner,
    "outer": GivenOuter,
}
for _kind in PLACEHOLDERS.values():
    _kind.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]  # another is made of it


def written(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as plain data: objects among them as configuration, or as what stands for them.

    Raises:
        ValueError: an object is none of its key's kind, or cannot be given there.
    """
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        plain = _written(key, value)
        if key == "engine" and isinstance(plain, Mapping):
            found |= {f"engine.{name}": own for name, own in plain.items()}
        else:
            found[key] = plain
    return found


def again(config: Mapping[str, Any], objects: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run whose objects are given again, which this process lacks.

    Raises:
        ValueError: the run names that object itself, or it was another one.
    """
    config = dict(config)
    for key, value in objects.items():
        if key not in KINDS:
            raise ValueError(
                f"{key}: cannot be given{nearest(key, list(KINDS))} ({', '.join(KINDS)})"
            )
        there = config[key]
        if not isinstance(there, Mapping) or there["class_path"] != path_of(PLACEHOLDERS[key]):
            raise ValueError(f"{key}={_shown(value)}: the run has its own, leave it out")
        was, given = there["init_args"]["what"], _by_value(key, value)
        now = given["init_args"]["what"]
        if (
            was.rpartition(".")[2] != now.rpartition(".")[2]
        ):  # its module may be another: a notebook
            raise ValueError(f"{key}: it was {was} that the run was given, not {now}")
        config[key] = given
    return config


def holds(config: Mapping[str, Any]) -> list[str]:
    """The keys of a configuration that stand for objects given by value."""
    return [
        key
        for key, kind in PLACEHOLDERS.items()
        if isinstance(config.get(key), Mapping) and config[key].get("class_path") == path_of(kind)
    ]


def modules_by_value() -> Iterator[ModuleType]:
    """The modules of one's own whose classes were given by value, and those beside them."""
    folders = {
        Path(file).resolve().parent
        for name in _modules
        if (file := getattr(sys.modules.get(name), "__file__", None))
    }
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name == "__main__" or name.startswith("maml_dist."):
            continue
        if folders & {*Path(file).resolve().parents} and not is_installed(file):
            yield module


def _written(key: str, value: Any) -> Any:
    kind = KINDS.get(key)
    if is_plain(value) or (kind is None and not dataclasses.is_dataclass(value)):
        return value  # which the recipe's own checks will see
    if kind is not None:
        _check_kind(key, value, kind)
    found = as_config(value)
    if found is not NO_CONFIG:
        if kind is None and isinstance(value, type):
            return found["class_path"]
        return found["init_args"] if key == "engine" else found
    if kind is None:
        raise ValueError(
            f"{key}={_shown(value)}: cannot be written as configuration; give the whole "
            f"{' or '.join(KINDS)} that has it"
        )
    return _by_value(key, value)


def _check_kind(key: str, value: Any, kind: type) -> None:
    """Raise ValueError where an object is none that can be given for this key."""
    made = value.func if isinstance(value, functools.partial) else value
    if isinstance(made, type):
        fits = issubclass(made, kind)
    else:
        others = not isinstance(value, tuple(KINDS.values()))
        fits = isinstance(value, kind | Mapping) or (callable(value) and others)
    if not fits:
        raise ValueError(
            f"{key}={_shown(value)}: must be a {kind.__name__}, a class of such or what makes "
            "one, or a class path"
        )


def _by_value(key: str, value: Any) -> dict[str, Any]:
    """What stands in a recipe for an object, which this process holds from now on."""
    _check_kind(key, value, KINDS[key])
    if isinstance(value, Mapping):
        raise ValueError(
            f"{key}={_shown(value)}: cannot be written as configuration; give the object itself"
        )
    _note(value)
    make: Callable[[], Any]
    if isinstance(value, nn.Module):
        make = functools.partial(_copy_of, copied(value, {}))
    elif isinstance(value, KINDS[key]):
        make = functools.partial(_itself, value)
    else:
        make = functools.partial(_made, key, value)
        make = make if key == "model" else functools.cache(make)
    id = uuid4().hex
    _held[id] = make
    return {"class_path": path_of(PLACEHOLDERS[key]), "init_args": {"what": _name(value), "id": id}}


def _shown(value: Any) -> str:
    return short(" ".join(repr(value).split()))


def _copy_of(model: nn.Module) -> nn.Module:
    return copied(model, {})


def _itself(value: Any) -> Any:
    return value


def _made(key: str, factory: Callable[[], Any]) -> Any:
    made = factory()
    if not isinstance(made, KINDS[key]):
        raise OwnCodeError(
            f"{key}={_name(factory)}: must make a {KINDS[key].__name__}, not {_shown(made)}"
        )
    return made


def _name(value: Any) -> str:
    """What a reader calls it: the name of the function or class, with its module."""
    value = value.func if isinstance(value, functools.partial) else value
    named = value if hasattr(value, "__qualname__") else type(value)
    return re.sub(r"^__main__\.", "", f"{named.__module__}.{named.__qualname__}")


def _note(value: Any) -> None:
    """Note the modules that what is given by value is of."""
    parts = list(value.modules()) if isinstance(value, nn.Module) else [value]
    parts = [part.func if isinstance(part, functools.partial) else part for part in parts]
    for part in parts:
        named = part if isinstance(part, type) or inspect.isfunction(part) else type(part)
        kinds = inspect.getmro(named) if isinstance(named, type) else (named,)
        _modules.update(str(each.__module__) for each in kinds)
