"""Plain data: the only reader of YAML, and what may stand in a key, a value and a path.

Keys, text, numbers, true and false, null, lists; nothing is ever executed. Refused, with its line:
a key twice, a tag, an anchor within itself or copied without end, what is nested too deep, a number
that is another one than it looks (010 is 8, 1:30 is 90), control characters.
"""

import math
import os
import re
import stat
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

BYTES = 1 << 18  # of a file
DEPTH = 64  # of lists and keys in each other
NODES = 100_000  # keys and values, those of aliases counted where they are used
LARGEST = 2**64  # whole number
WORD = 60  # characters of a value that an error shows

_TAG = "tag:yaml.org,2002:"
_READ = ("int", "float", "bool", "null")  # off a word without quotes
_OTHER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's own, of which a date is a word, and that stops at what is nested too deep."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in each if tag != f"{_TAG}timestamp"]
        for first, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEPTH:
            line = self.peek_event().start_mark.line + 1
            raise Endless(f"line {line}: nested more than {DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_RESOLVER = _Loader("")


class Broken(ValueError):
    """Text that is no YAML."""


class Endless(ValueError):
    """YAML that is nested, or copied by aliases, without end."""


def read(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ValueError: the file is missing, no file, too large, or not plain YAML; says the line.
    """
    check_path(path, "the file")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    except FileNotFoundError:
        raise ValueError(f"no such file: {short(path)}") from None
    except OSError as error:
        raise ValueError(f"{short(path)} cannot be read: {error.strerror}") from None
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        content = os.read(descriptor, BYTES + 1) if regular else b""
    finally:
        os.close(descriptor)
    try:
        if not regular:
            raise ValueError("it is a folder or a device")
        if len(content) > BYTES:
            raise ValueError(f"it is over {BYTES >> 10:,} KiB")
        found = parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{short(path)} is not a plain YAML file: byte {error.start} is not UTF-8 text"
        ) from None
    except ValueError as error:
        raise ValueError(f"{short(path)} is not a plain YAML file: {error}") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{short(path)} must hold keys and values, not {short(repr(found))}")
    return found


def parse(text: str) -> Any:
    """YAML as plain data.

    Raises:
        ValueError: it is none (`Broken`), or not plain; says the line.
    """
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise Broken(f"{where}{error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise Broken(f"it holds the character #x{error.character:04x}") from None
    finally:
        if loader is not None:
            loader.dispose()


def check(value: Any, key: str, *, depth: int = 0) -> None:
    """Raise ValueError where a value of the recipe's `key` is no plain data, or not a number."""
    if depth > DEPTH:
        raise ValueError(f"{key}: nested more than {DEPTH} deep")
    if isinstance(value, Mapping):
        for name, own in value.items():
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise ValueError(f"{key}: {name!r} is no key: must be a word or a whole number")
            _check_text(str(name), key)
            check(own, f"{key}.{name}" if key else str(name), depth=depth + 1)
    elif isinstance(value, list | tuple):
        for own in value:
            check(own, key, depth=depth + 1)
    elif isinstance(value, str):
        _check_text(value, key)
        try:
            _refuse_endless(value)
        except Endless as error:
            raise ValueError(f"{key}: {error}") from None
    elif isinstance(value, float):
        if math.isnan(value):
            raise ValueError(f"{key}={value}: must be a number")
    elif isinstance(value, int):
        if abs(value) >= LARGEST:
            raise ValueError(f"{key}: {_digits(value)}: whole numbers are below 2^64")
    elif value is not None:
        kind = type(value).__name__
        raise ValueError(f"{key}: must be plain data (text, numbers, lists, keys), not {kind}")


def check_path(path: object, what: str) -> None:
    """Raise ValueError where `what` is not the name of a file or folder, before it is used."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{what} must be a path, not {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise ValueError(f"{what} must be a path as text, not bytes")
    if not text.strip():
        raise ValueError(f"{what} is empty: give a path, or leave it out")
    _check_text(text, what)


def short(text: object) -> str:
    """What an error shows of a value that may be very long."""
    shown = str(text)
    return shown if len(shown) <= 3 * WORD else f"{shown[:WORD]} … {shown[-WORD:]}"


def _check_text(text: str, key: str) -> None:
    for letter in text:
        kind = unicodedata.category(letter)
        if kind == "Cs" or (kind == "Cc" and letter not in "\n\t"):
            raise ValueError(f"{key} holds the character #x{ord(letter):04x}: leave it out")


def _check(node: yaml.Node, sizes: dict[int, int], *, typed: bool = True) -> int:
    """How many nodes there are when aliases are copied; ValueError where one is not plain.

    Not `typed`, only what is endless is refused.
    """
    line = node.start_mark.line + 1
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise Endless(f"line {line}: holds itself, by an alias")
        return sizes[id(node)]
    sizes[id(node)] = 0
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.ScalarNode):
        if typed:
            _check_scalar(node, kind, line)
        _refuse_endless(node.value)
        count = 1
    else:
        if typed and kind != ("map" if isinstance(node, yaml.MappingNode) else "seq"):
            raise _no_tag(node)
        parts = [part for each in node.value for part in (each if type(each) is tuple else [each])]
        count = 1 + sum(_check(part, sizes, typed=typed) for part in parts)
        if typed and isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
    if count > NODES:
        raise Endless(f"line {line}: aliases make more than {NODES:,} values of this")
    sizes[id(node)] = count
    return count


def _check_scalar(node: yaml.ScalarNode, kind: str, line: int) -> None:
    if kind in _READ:
        if _RESOLVER.resolve(yaml.ScalarNode, node.value, (True, False)) != node.tag:
            raise _no_tag(node)
    elif kind not in ("str", "merge"):
        raise _no_tag(node)
    if kind in ("int", "float") and _OTHER.fullmatch(node.value):
        raise ValueError(
            f"line {line}: {short(node.value)} would be read as another number: write it without "
            "leading zeros and colons, or in quotes as text"
        )
    if kind == "int" and len(node.value) > 70:
        raise ValueError(f"line {line}: {short(node.value)}: whole numbers are below 2^64")
    _check_text(node.value, f"line {line}")


def _refuse_endless(text: str) -> None:
    """Raise where text, which jsonargparse reads once more as YAML, would never be read."""
    if len(text) <= DEPTH and "&" not in text:
        return
    with suppress(yaml.YAMLError):
        node = yaml.compose(text, _Loader)
        if node is not None and node.value != text:  # a word, which is itself
            _check(node, {}, typed=False)


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Raise ValueError where a key stands twice, or is neither a word nor a whole number."""
    seen: dict[str | int, int] = {}
    for key, _ in node.value:
        line, kind = key.start_mark.line + 1, key.tag.removeprefix(_TAG)
        if kind not in ("str", "int", "merge"):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or keys"
            raise ValueError(f"line {line}: {shown} is no key: must be a word (or in quotes)")
        name = int(key.value.replace("_", ""), 0) if kind == "int" else key.value
        if name in seen:
            raise ValueError(
                f"line {line}: the key {short(name)} stands there twice (first in line "
                f"{seen[name]})"
            )
        seen[name] = line


def _no_tag(node: yaml.Node) -> ValueError:
    tag = node.tag.replace(_TAG, "!!")
    return ValueError(
        f"line {node.start_mark.line + 1}: {short(tag)} cannot be used: there are text, numbers, "
        "true, false, null, lists and keys"
    )


def _digits(value: int) -> str:
    return f"a number of {value.bit_length()} bits" if value.bit_length() > 200 else str(value)
