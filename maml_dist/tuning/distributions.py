"""Distributions: what a searched key may be, by name: its arguments, draws, and values to try.

Draws are Optuna's, which knows numbers and choices; a normal one is drawn by its quantile.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from maml_dist.config.recipe import nearest
from maml_dist.core.validation import LARGEST

WHEN = "when"  # beside a distribution: the values of other keys with which it is drawn at all
_INSIDE = 0.382  # a share of the way that is no round number
LOGARITHM = 700  # of a number that there is, at the most
_TAIL = 3  # standard deviations that are tried of a normal distribution
_FARTHEST = 6  # those beyond which none is drawn


@dataclass(frozen=True)
class _Kind:
    takes: str
    check: Callable[[list[Any]], str]  # what is wrong with the arguments; "" where nothing is
    suggest: Callable[[Any, str, list[Any]], Any]  # optuna.Trial, name, arguments -> the value
    tried: Callable[[list[Any]], list[Any]]  # the ends, and a value inside
    gives: Callable[[Any, list[Any]], bool]  # whether a value may be drawn, or perturbed to be


def check(key: str, distribution: Mapping[str, Any]) -> None:
    """Raise ValueError where a distribution is none, or its arguments are not what it takes."""
    named = [name for name in distribution if name != WHEN]
    if len(named) != 1:
        raise ValueError(f"search.{key}: takes one distribution, not {len(named)}")
    name, arguments = named[0], distribution[named[0]]
    if name not in DISTRIBUTIONS:
        guess = nearest(name, list(DISTRIBUTIONS))
        allowed = ", ".join(DISTRIBUTIONS)
        raise ValueError(f"search.{key}: no distribution {name!r}{guess} (there are {allowed})")
    kind = DISTRIBUTIONS[name]
    said = f"search.{key}: {name} takes {kind.takes}, not {arguments}"
    if not isinstance(arguments, list):
        raise ValueError(said)
    if wrong := kind.check(arguments):
        raise ValueError(f"{said} ({wrong})")


def suggest(trial: Any, key: str, distribution: Mapping[str, Any]) -> Any:
    """The value that an `optuna.Trial` draws of a key."""
    name, arguments = _named(distribution)
    return DISTRIBUTIONS[name].suggest(trial, key, arguments)


def gives(distribution: Mapping[str, Any], value: Any) -> bool:
    """Whether a distribution can give a value, of plain JSON."""
    name, arguments = _named(distribution)
    return DISTRIBUTIONS[name].gives(value, arguments)


def same(value: Any, other: Any) -> bool:
    """Whether two values of a distribution are one, but for what is rounded."""
    if type(value) is float and type(other) is float:
        return math.isclose(value, other)
    return _is_listed(value, [other])


def tried(distribution: Mapping[str, Any]) -> list[Any]:
    """Values that a distribution can give: its ends and one inside, or all of its choices."""
    name, arguments = _named(distribution)
    return DISTRIBUTIONS[name].tried(arguments)


def choices(distribution: Mapping[str, Any]) -> list[Any] | None:
    """All values, where they are listed; else None."""
    name, arguments = _named(distribution)
    return arguments if name in ("choice", "grid") else None


def finite(distribution: Mapping[str, Any]) -> dict[Any, Any] | None:
    """All that there is, by what Optuna keeps of it; None where that is without end."""
    name, arguments = _named(distribution)
    if name in ("choice", "grid"):
        return labels(arguments)
    if name in ("randint", "lograndint"):
        return {number: number for number in range(*arguments)}
    return None


def perturbed(distribution: Mapping[str, Any], value: Any, factor: float) -> Any:
    """`value` times `factor`, as near as the distribution has it, its ends included.

    Where its values are stepped the next one at least; where they are listed the next one. A normal
    one ends where it was tried.
    """
    name, arguments = _named(distribution)
    if name in ("choice", "grid"):
        same = [each == value and type(each) is type(value) for each in arguments]
        place = same.index(True) + (1 if factor > 1 else -1)
        return arguments[min(max(place, 0), len(arguments) - 1)]
    moved = value * factor
    if name in ("normal", "lognormal"):
        low, high, _ = tried(distribution)
        return float(min(max(moved, low), high))
    ahead = 1 if (moved - value or factor - 1) > 0 else -1
    if name in ("randint", "lograndint"):
        low, beyond = arguments
        near = round(moved) if round(moved) != value else value + ahead
        return min(max(near, low), beyond - 1)
    if name in ("quniform", "qloguniform"):
        near = _stepped(moved, *arguments)
        return near if near != value else _stepped(value + ahead * arguments[2], *arguments)
    return float(min(max(moved, arguments[0]), arguments[1]))


def is_log(distribution: Mapping[str, Any]) -> bool:
    """Whether what counts is the logarithm of the value."""
    return "log" in _named(distribution)[0]


def grid(distribution: Mapping[str, Any]) -> list[Any] | None:
    """All values, where each is to be tried with each of the other grids; else None."""
    name, arguments = _named(distribution)
    return arguments if name == "grid" else None


def labels(listed: list[Any]) -> dict[str | int | float | bool | None, Any]:
    """What Optuna keeps of choices -> the choices: JSON where they are lists, or hard to tell."""
    plain = all(value is None or isinstance(value, str | int | float) for value in listed)
    if plain and len(set(listed)) == len(listed):  # True is 1
        return {value: value for value in listed}
    return {json.dumps(value, sort_keys=True): value for value in listed}


def _named(distribution: Mapping[str, Any]) -> tuple[str, list[Any]]:
    ((name, arguments),) = [each for each in distribution.items() if each[0] != WHEN]
    return name, arguments


def _bounds(*, count: int = 2, log: bool = False, whole: bool = False) -> Callable[..., str]:
    kinds: tuple[type, ...] = (int,) if whole else (int, float)

    def wrong(arguments: list[Any]) -> str:
        if len(arguments) != count or not all(type(each) in kinds for each in arguments):
            return "whole numbers" if whole else "numbers"
        low, high, *quantum = arguments
        if whole and max(abs(low), abs(high)) > LARGEST:
            return f"whole numbers up to {LARGEST}"
        if not -math.inf < low < high < math.inf or (log and low <= 0) or high - low == math.inf:
            return f"{'0 < ' if log else ''}low < high"
        if quantum and not 0 < quantum[0] <= high - low:
            return "0 < step ≤ high - low"
        return ""

    return wrong


def _spread(arguments: list[Any], *, log: bool = False) -> str:
    if len(arguments) != 2 or not all(type(each) in (int, float) for each in arguments):
        return "numbers"
    mean, deviation = arguments
    if not 0 < deviation < math.inf or not math.isfinite(mean):
        return "0 < deviation"
    return "" if abs(mean) + 10 * deviation < (LOGARITHM if log else math.inf) else "too large"


def _listed(arguments: list[Any]) -> str:
    if not arguments:
        return "one at least"
    texts = [json.dumps(each, sort_keys=True) for each in arguments]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    return f"{twice} is there twice" if twice else ""


def _between(low: float, high: float) -> list[float]:
    return [float(low), float(high), low + _INSIDE * (high - low)]


def _between_logs(low: float, high: float) -> list[float]:
    return [float(low), float(high), low * (high / low) ** _INSIDE]


def _whole_between(low: int, high: int) -> list[int]:
    """Of whole numbers up to, and without, `high`."""
    return list(dict.fromkeys([low, high - 1, (low + high - 1) // 2]))


def _stepped(value: float, low: float, high: float, step: float) -> float:
    """The nearest of low, low + step, … that is not above `high`."""
    last = math.floor((high - low) / step * (1 + 1e-12))
    number = min(max(round((value - low) / step), 0), last)
    # By the decimals that were given, not 0.30000000000000004.
    return float(f"{low + number * step:.12g}")


def _stepped_all(values: list[float], arguments: list[Any]) -> list[float]:
    return list(dict.fromkeys(_stepped(value, *arguments) for value in values))


def _normal(trial: Any, key: str, mean: float, deviation: float) -> float:
    share = trial.suggest_float(key, 1e-9, 1 - 1e-9)
    return NormalDist(mean, deviation).inv_cdf(share)


def _tails(mean: float, deviation: float) -> list[float]:
    return [float(mean + share * deviation) for share in (-_TAIL, _TAIL, _INSIDE)]


def _within(value: Any, low: float, high: float) -> bool:
    """Whether it is a number between these, but for what is rounded."""
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        return False
    ends = (math.isclose(value, end) for end in (low, high))
    return low <= value <= high or any(ends)


def _is_normal(value: Any, mean: float, deviation: float) -> bool:
    return _within(value, mean - _FARTHEST * deviation, mean + _FARTHEST * deviation)


def _is_lognormal(value: Any, mean: float, deviation: float) -> bool:
    positive = _within(value, sys.float_info.min, sys.float_info.max)
    return positive and _is_normal(math.log(value), mean, deviation)


def _is_stepped(value: Any, low: float, high: float, step: float) -> bool:
    return _within(value, low, high) and math.isclose(value, _stepped(value, low, high, step))


def _is_whole(value: Any, low: int, beyond: int) -> bool:
    return type(value) is int and low <= value < beyond


def _is_listed(value: Any, listed: list[Any]) -> bool:
    text = json.dumps(value, sort_keys=True)
    return any(json.dumps(each, sort_keys=True) == text for each in listed)


def _chosen(trial: Any, key: str, listed: list[Any]) -> Any:
    by_label = labels(listed)
    return by_label[trial.suggest_categorical(key, list(by_label))]


DISTRIBUTIONS = {
    "uniform": _Kind(
        "[low, high]",
        _bounds(),
        lambda trial, key, at: trial.suggest_float(key, *at),
        lambda at: _between(*at),
        lambda value, at: _within(value, *at),
    ),
    "quniform": _Kind(
        "[low, high, step]",
        _bounds(count=3),
        lambda trial, key, at: _stepped(trial.suggest_float(key, *at[:2], step=at[2]), *at),
        lambda at: _stepped_all(_between(*at[:2]), at),
        lambda value, at: _is_stepped(value, *at),
    ),
    "loguniform": _Kind(
        "[low, high]",
        _bounds(log=True),
        lambda trial, key, at: trial.suggest_float(key, *at, log=True),
        lambda at: _between_logs(*at),
        lambda value, at: _within(value, *at),
    ),
    "qloguniform": _Kind(
        "[low, high, step]",
        _bounds(count=3, log=True),
        lambda trial, key, at: _stepped(trial.suggest_float(key, *at[:2], log=True), *at),
        lambda at: _stepped_all(_between_logs(*at[:2]), at),
        lambda value, at: _is_stepped(value, *at),
    ),
    "normal": _Kind(
        "[mean, deviation]",
        _spread,
        lambda trial, key, at: _normal(trial, key, *at),
        lambda at: _tails(*at),
        lambda value, at: _is_normal(value, *at),
    ),
    "lognormal": _Kind(
        "[mean, deviation] of the logarithm",
        lambda at: _spread(at, log=True),
        lambda trial, key, at: math.exp(_normal(trial, key, *at)),
        lambda at: [math.exp(each) for each in _tails(*at)],
        lambda value, at: _is_lognormal(value, *at),
    ),
    "randint": _Kind(
        "[low, high]",
        _bounds(whole=True),
        lambda trial, key, at: trial.suggest_int(key, at[0], at[1] - 1),
        lambda at: _whole_between(*at),
        lambda value, at: _is_whole(value, *at),
    ),
    "lograndint": _Kind(
        "[low, high]",
        _bounds(whole=True, log=True),
        lambda trial, key, at: trial.suggest_int(key, at[0], at[1] - 1, log=True),
        lambda at: _whole_between(*at),
        lambda value, at: _is_whole(value, *at),
    ),
    "choice": _Kind("[value, …]", _listed, _chosen, list, _is_listed),
    "grid": _Kind("[value, …]", _listed, _chosen, list, _is_listed),
}
