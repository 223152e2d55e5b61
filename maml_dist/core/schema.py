"""Schema: what is read back from a file has the form that a type says, or is refused in one line.

A form is made of str, int, float (finite), bool, None, unions, Literal, list, tuple[X, ...], dict,
TypedDict, and dataclasses, which are made of their objects. Nothing is converted but an int where a
float is wanted, and a list where a tuple is.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict


def from_json(text: str | bytes, form: Any, where: str) -> Any:
    """A JSON text as a value of `form`.

    Raises:
        ValueError: it is no JSON, or of another form; says `where`.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    return checked(value, form, where)


def checked(value: Any, form: Any, where: str) -> Any:
    """`value`, which is of `form`; dataclasses are made of their objects.

    Raises:
        ValueError: it is not; names the place below `where`, what was found and what is allowed.
    """
    origin, inner = get_origin(form), get_args(form)
    if form is Any:
        return value
    if origin in (Union, UnionType):
        for each in inner:
            if _fits(value, each):
                return checked(value, each, where)
        raise _wrong(value, form, where)
    if not _fits(value, form):
        raise _wrong(value, form, where)
    if origin in (list, tuple):
        parts = [checked(part, inner[0], f"{where}[{at}]") for at, part in enumerate(value)]
        return tuple(parts) if origin is tuple else parts
    if origin is dict:
        return {
            checked(key, inner[0], f"a key of {where}"): checked(part, inner[1], f"{where}.{key}")
            for key, part in value.items()
        }
    if is_dataclass(form) or is_typeddict(form):
        return _object(value, form, where)
    return float(value) if form is float else value


def _object(value: Mapping[str, Any], form: Any, where: str) -> Any:
    kinds = get_type_hints(form)
    needed = set(getattr(form, "__required_keys__", kinds))
    if is_dataclass(form):
        needed -= {
            each.name
            for each in fields(form)
            if each.default is not MISSING or each.default_factory is not MISSING
        }
    if lacking := sorted(needed - value.keys()):
        raise ValueError(f"{where} lacks {', '.join(lacking)}")
    if unknown := sorted(str(key) for key in value.keys() - kinds.keys()):
        raise ValueError(f"{where} has {_short(unknown[0])}; there are {', '.join(kinds)}")
    parts = {key: checked(part, kinds[key], f"{where}.{key}") for key, part in value.items()}
    try:
        return form(**parts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _fits(value: Any, form: Any) -> bool:
    """Whether the outermost type is the form's."""
    origin = get_origin(form) or form
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(form))
    if form is None or form is type(None):
        return value is None
    if form is float:
        return type(value) in (int, float) and abs(value) < 1e308 and math.isfinite(value)
    if origin in (list, tuple):
        return isinstance(value, list | tuple)
    if origin is dict or is_dataclass(form) or is_typeddict(form):
        return isinstance(value, Mapping)
    return type(value) is origin


def _wrong(value: Any, form: Any, where: str) -> ValueError:
    return ValueError(f"{where} must be {_words(form)}, not {_short(value)}")


def _words(form: Any) -> str:
    origin, inner = get_origin(form), get_args(form)
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in inner)
    if origin is Literal:
        return " or ".join(str(each) for each in inner)
    if form is None or form is type(None):
        return "null"
    if origin in (list, tuple):
        return f"a list of {_words(inner[0])}"
    if origin is dict or is_dataclass(form) or is_typeddict(form):
        return "keys and values"
    return {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}[
        form
    ]


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
