"""Pickling: how values travel to Ray's actors, and what in one cannot."""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# What pickling raises of what cannot be pickled; a `__getstate__` of the user's raises what it may.
_FAILURES = (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError, OSError)


@contextmanager
def by_value(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Inside, classes and functions of these modules travel whole: no actor needs to find them."""
    import ray

    mine = [each for each in modules if each.__name__ not in _registered()]
    for module in mine:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in mine:
            if module.__name__ in _registered():
                ray.cloudpickle.unregister_pickle_by_value(module)


def _registered() -> set[str]:
    import ray

    names: set[str] = ray.cloudpickle.list_registry_pickle_by_value()
    return names


def unpicklable(value: Any) -> tuple[str, str] | None:
    """Where in `value` something cannot be pickled (".data.file"), and why; None where nowhere."""
    return _within(value, set())


def _within(value: Any, seen: set[int]) -> tuple[str, str] | None:
    """The deepest place that cannot be pickled by itself."""
    import ray

    try:
        ray.cloudpickle.dumps(value, protocol=5, buffer_callback=lambda large: None)
        return None
    except _FAILURES as error:
        said = " ".join(str(error).split()) or type(error).__name__
    seen.add(id(value))
    for name, part in _parts(value):
        if id(part) not in seen and (found := _within(part, seen)):
            return f"{name}{found[0]}", found[1]
    return "", f"{type(value).__module__}.{type(value).__qualname__}: {said:.150}"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r:.40}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set):
        yield from ((f"[{place}]", part) for place, part in enumerate(value))
    elif not isinstance(value, type):
        state = getattr(value, "__dict__", {})
        yield from ((f".{name}", part) for name, part in list(state.items()))
