"""Dotted keys: `learner.alpha` in a configuration, where its endings may stand for it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from maml_dist.config.recipe import Config, nearest


def candidates(key: str, known: Iterable[str]) -> list[str]:
    """The keys that `key` can stand for: itself, or those that end in it."""
    return [key] if key in known else [name for name in known if name.endswith(f".{key}")]


def full_key(key: str, known: Sequence[str]) -> str:
    """The key of `known` that `key` stands for.

    Raises:
        ValueError: there is none, or there are several; names them, or the nearest.
    """
    meant = candidates(key, known)
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ValueError(f"key {key!r} could be any of {', '.join(meant)}")
    within = [name for name in known if name.startswith(f"{key}.")]
    if within:
        raise ValueError(f"key {key!r} is set by its parts: {', '.join(within)}")
    guess = nearest(key, [*known, *(name.rpartition(".")[2] for name in known)])
    raise ValueError(f"unknown key {key!r}{guess} (--print-config shows them all)")


def flatten_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values, `init_args` left out of the keys; a class's is its `class_path`."""
    return dict(_walk(config, prefix))


def _walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and key != "paper":
            yield from _walk(value, name)
        else:
            yield name, value


def set_key(config: Config, dotted: str, value: Any) -> None:
    """Put a value in its place in a configuration, under `init_args` where there is a class."""
    *path, last = dotted.split(".")
    node = config
    for key in path:
        if isinstance(node.get(key), str):
            node[key] = {"class_path": node[key]}
        node = node.setdefault(key, {})
        if "class_path" in node:
            node = node.setdefault("init_args", {})
    node[last] = value
