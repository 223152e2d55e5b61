"""jsonargparse's nested messages in one line: where, what, what is allowed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import isabstract
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from maml_dist.recipe import nearest


@contextmanager
def explained(root: type) -> Iterator[None]:
    """Inside, what jsonargparse says of arguments of `root` is raised as a ValueError."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    set_parsing_settings(unset_sentinel=True)  # null is a value to be checked, not one left out
    try:
        yield
    except ArgumentError as error:
        raise ValueError(_one_line(error.message, root)) from None
    finally:
        set_parsing_settings(unset_sentinel=False)


def unknown_name(error: ArgumentError) -> str | None:
    """The name without a module that is none of the classes imported so far."""
    name = re.search(r"Expected a dot import path string: (\S+)", error.message)
    return name and name.group(1)


def _one_line(message: str, root: type) -> str:
    where = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))
    within = re.findall(r"given class_path '([^']+)'", message)
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if unknown:
        key = unknown.group(1)
        names = _arguments(_class(within[-1]) if within else root)
        full = f"{where}.{key}" if where else key
        return f"unknown key {full!r}{nearest(key, names)} ({_there_are(names)})"
    required = re.search(r"the following arguments are required: (.+)", message)
    if required and where:
        needed = ", ".join(f"{where}.{name}" for name in required.group(1).split(", "))
        return f"{where}: its class requires {needed}"
    union = re.search(r"Subtypes: \[(.+)\]\n(?:.*\n)*.*Given value: (.+)", message)
    if union:
        kinds = re.sub(r"<class '(\w+)'>", r"\1", union.group(1)).replace("NoneType", "null")
        return f"{where}: Expected one of {kinds}. Got value: {union.group(2)}"
    null = re.search(r"Not a valid subclass of (\w+)\. Got value: None", message)
    if null:
        return f"{where}: Expected a {null.group(1)}. Got value: None"
    no_class = re.search(r"Not a valid subclass of (\w+)\. Got value: (.*)", message)
    if no_class:
        kind, value = no_class.groups()
        return f"{where}: Expected a {kind}: a class path, or class_path and init_args. Got {value}"
    name = unknown_name(ArgumentError(None, message))
    if name:
        names = _names(_class(within[-1]) if within else root, where.rpartition(".")[2])
        return (
            f"{where}: there is no class {name!r}{nearest(name, names)} "
            "(a class of your own is named module.Class)"
        )
    lines = [line.strip() for line in message.splitlines()]
    said = [line for line in lines if not re.match(r"[Pp]arser key|Problem with given", line)]
    text = " ".join(said).replace("<class '", "").replace("'>", "").replace("typing.", "")
    if absent := re.search(r"module '([^']+)' has no attribute '([^']+)'", text):
        text += nearest(absent.group(2), list(vars(import_module(absent.group(1)))))
    return f"{where}: {text}" if where else text


def _there_are(names: list[str]) -> str:
    return f"there are {', '.join(names)}" if names else "it takes none"


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _arguments(kind: type) -> list[str]:
    parser = ArgumentParser(exit_on_error=False)
    return sorted(parser.add_class_arguments(kind, fail_untyped=False))


def _names(owner: Any, argument: str) -> list[str]:
    """The names of the imported classes that an argument can be."""
    kind = get_type_hints(owner.__init__).get(argument)
    kinds = [kind] if isinstance(kind, type) else []
    for each in kinds:
        kinds += each.__subclasses__()
    return sorted({each.__name__ for each in kinds if not isabstract(each)})
