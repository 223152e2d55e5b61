"""jsonargparse's nested messages in one line: where, what, what is allowed."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from inspect import getmro, isabstract, isclass
from typing import Any, get_type_hints

import jsonargparse._typehints as jsonargparse_typehints
import jsonargparse._util as jsonargparse_util
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse._common import denying_import_path_entry
from torch import nn

from maml_dist.config.aliases import CLASSES, REMOVED
from maml_dist.config.names import PUBLIC, ROOMS
from maml_dist.config.recipe import nearest
from maml_dist.config.trust import Names, NotTrusted
from maml_dist.config.user_code import OwnCodeError, folder_of, spelled
from maml_dist.core.process_lock import EXCLUSIVE

_by_imports = jsonargparse_typehints.resolve_class_path_by_name

_names: ContextVar[Names | None] = ContextVar("names", default=None)
_refused: ContextVar[list[OwnCodeError]] = ContextVar("refused")


@contextmanager
def config_errors(root: type, names: Names) -> Iterator[None]:
    """Inside, jsonargparse finds classes by `names`; what it says of `root` is a ValueError.

    Its settings are the process's, as the generator is that `build` seeds: one thread at a time.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    with EXCLUSIVE:
        outermost = _names.get() is None
        set_parsing_settings(unset_sentinel=True)  # null is checked, it is no value left out
        tokens = _names.set(names), _refused.set([])
        try:
            yield
            raise_refused()
        except ArgumentError as error:
            raise_refused()
            raise ValueError(spelled(_one_line(error.message, root))) from None
        except ValueError as error:
            if spelled(str(error)) == str(error):
                raise
            raise ValueError(spelled(str(error))) from error
        finally:
            _names.reset(tokens[0])
            _refused.reset(tokens[1])
            if outermost:
                set_parsing_settings(unset_sentinel=False)


def raise_refused() -> None:
    """Inside `config_errors`: raise what was refused, which jsonargparse may have passed over."""
    for error in _refused.get():
        raise error from error.__cause__


@contextmanager
def noted() -> Iterator[None]:
    """Inside `config_errors`: what is refused is kept, for jsonargparse may try something else."""
    try:
        yield
    except OwnCodeError as error:
        _refused.get().append(error)
        raise


def _imported(
    name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
) -> Any:
    """`__import__` for jsonargparse, which calls it for all that a value names."""
    names = _names.get()
    if names is None:
        return __import__(name, globals, locals, fromlist, level)
    with noted():
        module = names.module(name)
        for attribute in fromlist:
            for path in jsonargparse_util.canonical_import_paths(getattr(module, attribute, None)):
                if denying_import_path_entry(path):
                    raise NotTrusted(f"{name}.{attribute} is refused: a recipe may not name it")
    return module


assert "__import__" in jsonargparse_util.import_object.__code__.co_names
jsonargparse_util.__import__ = _imported  # type: ignore[attr-defined]  # it has no setting for it


def _full_path(cls: Any, name: str) -> str:
    """The path of the `cls` that has this short name, or had this path; else the name.

    It is the package's, else torch.nn's: jsonargparse would look through all classes that are
    imported, whosever they are.
    """
    if _names.get() is None:
        full: str = _by_imports(cls, name)
        return full
    if name in CLASSES:
        return PUBLIC[CLASSES[name]]
    if name in REMOVED:
        return _last(name)  # there is no such class
    meant = [path for path in PUBLIC.values() if path.startswith(ROOMS) and _last(path) == name]
    if _fits(cls, nn.Module) and _fits(getattr(nn, name, None), cls):
        meant.append(f"torch.nn.{name}")
    return next((path for path in meant if _fits(_public(path), cls)), name)


def _fits(named: Any, kind: Any) -> bool:
    return isclass(named) and isinstance(kind, type) and issubclass(named, kind)


def _public(path: str) -> Any:
    return getattr(import_module(path.rpartition(".")[0]), _last(path))


def _last(path: str) -> str:
    return path.rpartition(".")[2]


assert _by_imports.__name__ in jsonargparse_typehints.adapt_typehints.__code__.co_names
jsonargparse_typehints.resolve_class_path_by_name = _full_path  # it has no setting for it either


class Parser(ArgumentParser):
    """A parser that calls, itself or as one of what is nested, only what a recipe may name."""

    def add_class_arguments(self, theclass: type, *rest: Any, **options: Any) -> list[str]:
        """As jsonargparse does, which is before it makes an object of the class."""
        with noted():
            _check_kind(theclass)
        added: list[str] = super().add_class_arguments(theclass, *rest, **options)
        return added

    def add_function_arguments(self, function: Any, *rest: Any, **options: Any) -> list[str]:
        """As jsonargparse does, which is before it calls the function."""
        with noted():
            _check_kind(function)
        added: list[str] = super().add_function_arguments(function, *rest, **options)
        return added


def _check_kind(named: Any) -> None:
    """Refuse to call what is of no kind that a recipe may name.

    Raises:
        OwnCodeError: in one line.
    """
    module = str(getattr(named, "__module__", None))
    kinds = getmro(named) if isclass(named) else ()
    if folder_of(module) or any(
        kind is nn.Module or f"{kind.__module__}.".startswith(ROOMS) for kind in kinds
    ):
        return
    raise NotTrusted(
        f"{module}.{getattr(named, '__qualname__', named)} is refused: of what is installed a "
        "recipe may name torch.nn.Modules and what derives from classes of maml_dist (derive from "
        "it or wrap it in a module of your own)"
    )


def _one_line(message: str, root: type) -> str:
    where = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))
    within = re.findall(r"given class_path '([^']+)'", message)
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if unknown:
        key = unknown.group(1)
        known = _arguments(class_named(within[-1]) if within else root)
        full = f"{where}.{key}" if where else key
        return f"unknown key {full!r}{nearest(key, known)} ({_there_are(known)})"
    required = re.search(r"the following arguments are required: (.+)", message)
    if required and where:
        needed = ", ".join(f"{where}.{name}" for name in required.group(1).split(", "))
        return f"{where}: its class requires {needed}"
    union = re.search(r"Subtypes: \[(.+)\]\n(?:.*\n)*.*Given value: (.+)", message)
    if union:
        plain = re.sub(r"<class '(\w+)'>|typing\.", r"\1", union.group(1))
        kinds = plain.replace("NoneType", "null")
        return f"{where}: Expected one of {kinds}. Got value: {union.group(2)}"
    null = re.search(r"Not a valid subclass of (\w+)\. Got value: None", message)
    if null:
        return f"{where}: Expected a {null.group(1)}. Got value: None"
    no_class = re.search(r"Not a valid subclass of (\w+)\. Got value: (.*)", message)
    if no_class:
        kind, value = no_class.groups()
        return f"{where}: Expected a {kind}: a class path, or class_path and init_args. Got {value}"
    no_name = re.search(r"Expected a dot import path string: (\S+)", message)
    if no_name:
        name = no_name.group(1)
        owner = class_named(within[-1]) if within else root
        known = _classes(owner, where)
        return (
            f"{where}: there is no class {name!r}{nearest(name, known)} "
            "(a class of your own is named module.Class)"
        )
    lines = [line.strip() for line in message.splitlines()]
    said = [line for line in lines if not re.match(r"[Pp]arser key|Problem with given", line)]
    text = " ".join(said).replace("<class '", "").replace("'>", "").replace("typing.", "")
    absent = re.search(r"module '([^']+)' has no attribute '([^']+)'", text)
    if absent and absent.group(1) in sys.modules:
        text += nearest(absent.group(2), list(vars(sys.modules[absent.group(1)])))
    return f"{where}: {text}" if where else text


def _there_are(names: list[str]) -> str:
    return f"there are {', '.join(names)}" if names else "it takes none"


def class_named(path: str) -> Any:
    """What a class path names, inside `explained`."""
    return jsonargparse_util.import_object(path)


def _arguments(kind: type) -> list[str]:
    parser = Parser(exit_on_error=False)
    return sorted(parser.add_class_arguments(kind, fail_untyped=False))


def _classes(owner: Any, where: str) -> list[str]:
    """The short names of the package's classes, and torch.nn's, that an argument can be.

    It is an argument of the class `owner`, or of one that stands there without a class path.
    """
    kind = owner
    for part in where.split("."):
        kind = get_type_hints(kind.__init__).get(part, kind) if isclass(kind) else None
    if kind is owner:
        return []
    found = [_public(path) for path in PUBLIC.values() if path.startswith(ROOMS)]
    found += vars(nn).values() if _fits(kind, nn.Module) else ()
    return sorted({each.__name__ for each in found if _fits(each, kind) and not isabstract(each)})
