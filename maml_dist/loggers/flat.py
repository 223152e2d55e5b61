"""Flat: a recipe as trackers want it, one name and value for each of its leaves."""

from typing import Any


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, without `init_args` and `class_path`; lists as texts."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix if key in ("init_args", "class_path") else f"{prefix}.{key}".strip(".")
        if isinstance(value, dict):
            found |= flat(value, name)
        elif value is None or isinstance(value, bool | int | float | str):
            found[name] = value
        else:
            found[name] = str(value)
    return found
