"""Validation of hyperparameters: what is out of them is refused by the key under which it is set.

Every number is finite and no truth value; a whole one is below 2^31, a seed below 2^64. A task
holds at most 2^28 numbers and a model of the package 2^30 weights (1 and 4 GiB in float32): more
is a slip of the hand that would end in a machine without memory.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

LARGEST = 2**31 - 1  # whole number
SEEDS = 2**64 - 1  # what torch's generators take
STEPS = 100_000  # of adaptation to one task
NUMBERS = 2**28  # of one task
WEIGHTS = 2**30  # of a model of the package


def check_positive(owner: object, key: str, *names: str) -> None:
    """Raise ValueError where a field of `owner`, the recipe's `key`, is no positive number."""
    for name in names:
        value = _number(owner, key, name, "a positive number")
        if value is not None and value <= 0:
            raise _refused(owner, key, name, "a positive number")


def check_minimum(owner: object, key: str, **least: int) -> None:
    """Raise ValueError where a field of `owner`, the recipe's `key`, is less than given here."""
    for name, low in least.items():
        high = SEEDS if name == "seed" else LARGEST if _is_whole(owner, name) else math.inf
        check_range(owner, key, **{name: (low, high)})


def check_range(owner: object, key: str, **ranges: tuple[float, float]) -> None:
    """Raise ValueError where a field of `owner`, the recipe's `key`, is out of [low, high]."""
    for name, (low, high) in ranges.items():
        open_ended = high > 1 and not _exceeds(getattr(owner, name), high)
        allowed = f"{low} or more" if open_ended else f"{low} … {high}"
        value = _number(owner, key, name, allowed)
        if value is not None and not low <= value <= high:
            raise _refused(owner, key, name, allowed)


def check_share(
    owner: object, key: str, *names: str, zero: bool = False, most: float | None = None
) -> None:
    """Raise ValueError where a field of `owner`, the recipe's `key`, is out of (0, 1).

    With `zero` it may be 0 too; with `most` up to this, it included.
    """
    for name in names:
        allowed = f"in {'[' if zero else '('}0, {'1)' if most is None else f'{most}]'}"
        value = _number(owner, key, name, allowed)
        low = value is None or value > 0 or (zero and value == 0)
        if value is not None and not (low and (value < 1 if most is None else value <= most)):
            raise _refused(owner, key, name, allowed)


def check_decays(owner: object, key: str, name: str) -> None:
    """Raise ValueError where one of the two numbers of a field of `owner` is out of [0, 1)."""
    both = getattr(owner, name)
    if not all(_is_number(decay, Real) and 0 <= decay < 1 for decay in both):
        raise ValueError(f"{key}.{name}={both}: both must be in [0, 1)")


def check_choice(owner: object, key: str, *names: str) -> None:
    """Raise ValueError where a field of `owner` is none of the words of its Literal type."""
    kinds = get_type_hints(type(owner))
    for name in names:
        allowed = get_args(kinds[name])
        if getattr(owner, name) not in allowed:
            raise _refused(owner, key, name, " or ".join(allowed))


def check_whole(value: Any, name: str, low: int, high: int) -> int:
    """The argument `name` of a function, where it is a whole number in [low, high].

    Raises:
        ValueError: it is not.
    """
    if not _is_number(value, Integral) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: must be a whole number from {low} to {high}")
    return int(value)


def check_size(owner: object, key: str, *names: str, numbers: int) -> None:
    """Raise ValueError where fields of a task source make a task of too many numbers."""
    if numbers > NUMBERS:
        given = ", ".join(f"{key}.{name}={getattr(owner, name)}" for name in names)
        raise ValueError(
            f"{given}: a task would hold {numbers:,} numbers; at most {NUMBERS:,} (1 GiB in "
            "float32), so use fewer"
        )


def check_layers(key: str, *, weights: int = 0, **widths: int | Sequence[int]) -> None:
    """Raise ValueError where a width, or one of several, is no whole number above 0.

    So is a model refused that has too many weights: as many as given here, or by the widths of
    fully connected layers in order.
    """
    line: list[int] = []
    for name, given in widths.items():
        several = isinstance(given, Sequence) and not isinstance(given, str)
        each: Sequence[Any] = given if several else [given]  # type: ignore[assignment]
        if not all(_is_number(width, Integral) and 1 <= width <= LARGEST for width in each):
            must = f"{'each ' if several else ''}must be 1 or more"
            raise ValueError(f"{key}.{name}={given!r}: {must}")
        line += each
    count = weights or sum(one * other for one, other in pairwise(line))
    if count > WEIGHTS:
        said = ", ".join(f"{key}.{name}={given!r}" for name, given in widths.items())
        raise ValueError(f"{said}: {count:,} weights; at most {WEIGHTS:,} (4 GiB in float32)")


def _number(owner: object, key: str, name: str, allowed: str) -> Any:
    """The field's value where it is a finite number, or null where that is the default."""
    value = getattr(owner, name)
    if value is None and _null(owner, name):
        return None
    kind = Integral if _is_whole(owner, name) else Real
    if not _is_number(value, kind) or not abs(value) <= sys.float_info.max:
        raise _refused(owner, key, name, allowed)
    return value


def _exceeds(value: Any, high: float) -> bool:
    return isinstance(value, Real) and bool(value > high) and high < math.inf  # type: ignore[operator]


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_whole(owner: object, name: str) -> bool:
    """Whether a field is declared as a whole number."""
    if not is_dataclass(owner):
        return False
    kinds = {item.name: item.type for item in fields(owner)}
    return kinds.get(name) in (int, int | None, "int", "int | None")


def _refused(owner: object, key: str, name: str, allowed: str) -> ValueError:
    full = f"{key}.{name}" if key else name
    value = getattr(owner, name)
    shown = value if isinstance(value, Real | None) else repr(value)
    return ValueError(f"{full}={shown}: must be {allowed}{_null(owner, name)}")


def _null(owner: object, name: str) -> str:
    """What to say of null: nothing, unless it is the default."""
    return ", or null" if getattr(type(owner), name, 0) is None else ""
