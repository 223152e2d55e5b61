"""As configuration: an object of Python's as a class path and arguments, where those say all of it.

They do of dataclasses whose fields are plain values or such objects again, of classes, and of
`functools.partial`s of classes; and only where any process finds the class by its path.
"""

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from maml_dist.config.aliases import short_name
from maml_dist.config.trust import Names
from maml_dist.config.user_code import OwnCodeError

NO_CONFIG = object()  # in the place of what cannot be written


def as_config(value: Any) -> Any:
    """An object as a class path and its arguments; `NO_CONFIG` where it cannot be written so."""
    if is_plain(value):
        return value
    if isinstance(value, tuple | list):
        parts = [as_config(part) for part in value]
        return NO_CONFIG if NO_CONFIG in parts else parts
    if isinstance(value, Mapping):
        named = {key: as_config(part) for key, part in value.items()}
        if isinstance(value.get("class_path"), type) and named["class_path"] is not NO_CONFIG:
            named["class_path"] = named["class_path"]["class_path"]
        return NO_CONFIG if NO_CONFIG in named.values() else named
    if isinstance(value, type):
        return _class(value, {})
    if isinstance(value, functools.partial) and isinstance(value.func, type):
        try:
            bound = inspect.signature(value.func).bind_partial(*value.args, **value.keywords)
        except (TypeError, ValueError):
            return NO_CONFIG
        rest = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        if any(bound.signature.parameters[name].kind in rest for name in bound.arguments):
            return NO_CONFIG
        return _class(value.func, bound.arguments)
    if dataclasses.is_dataclass(value) and not isinstance(value, nn.Module):
        fields = dataclasses.fields(value)
        kept = {one.name for one in fields}
        cached = {
            name
            for name in getattr(value, "__dict__", {})
            if isinstance(
                inspect.getattr_static(type(value), name, None), functools.cached_property
            )
        }
        if {*getattr(value, "__dict__", {})} - kept - cached:
            return NO_CONFIG  # it was made something else since
        if not all(one.init for one in fields):
            return NO_CONFIG
        return _class(type(value), {one.name: getattr(value, one.name) for one in fields})
    return NO_CONFIG


def _class(kind: type, arguments: Mapping[str, Any]) -> Any:
    path = _path_if_found(kind)
    found = {name: as_config(value) for name, value in arguments.items()}
    if path is None or any(value is NO_CONFIG for value in found.values()):
        return NO_CONFIG
    return {"class_path": path, "init_args": found} if found else {"class_path": path}


def _path_if_found(kind: type) -> str | None:
    """The path by which any process finds a class; None where none does."""
    path = path_of(kind)
    if kind.__module__ == "__main__" or kind.__qualname__ != kind.__name__:
        return None
    if short_name(path) != path or kind.__module__.startswith("maml_dist."):
        return short_name(path)
    try:
        module = Names((), typed=(path,)).module(kind.__module__)
    except (OwnCodeError, ModuleNotFoundError, ValueError):
        return None
    files = [getattr(each, "__file__", None) for each in (module, sys.modules[kind.__module__])]
    same = files[0] is not None and files[0] == files[1]
    return path if same and hasattr(module, kind.__name__) else None


def path_of(kind: type) -> str:
    """The module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_plain(value: Any) -> bool:
    """Whether it is plain data, as YAML holds it, all through."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return not math.isnan(value)
    return value is None or isinstance(value, str | int | Path)
