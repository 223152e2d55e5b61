"""Scores of an episode beside its return: what environments say of their steps, in one number.

    success         the largest value of any step: of a success, whether it was ever reached
    distance:last   the last value;  also :min, :max, :sum and :mean (over the steps that say it)

Whether a task was solved at any time of an episode is Meta-World's success (arXiv 1910.10897).
Legend: task, episode.
"""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.simulator import EnvironmentFault

WAYS = ("max", "min", "sum", "mean", "last")
TAKEN = ("return", "steps", "entropy", "explained", "loss", "kl")  # names of other metrics


def key_of(entry: str) -> str:
    """The name under which a score is reported: `success`, `distance_last`."""
    return entry.replace(":", "_")


def check_scores(entries: Sequence[str], key: str) -> None:
    """Raise ValueError where an entry of the recipe's `key` names no score."""
    if isinstance(entries, str):
        raise ValueError(f"{key}={entries!r}: must be a list of names, [{entries}]")
    for entry in entries:
        name, _, way = entry.partition(":")
        if not name or name != name.strip() or "/" in name:
            raise ValueError(f"{key}={entry!r}: must be the name of a number in info")
        if ":" in entry and way not in WAYS:
            close = get_close_matches(way, WAYS, 1)
            hint = f"; did you mean {name}:{close[0]}?" if close else ""
            raise ValueError(f"{key}={entry!r}: NAME or NAME: with {', '.join(WAYS)}{hint}")
        if key_of(entry) in TAKEN:
            raise ValueError(f"{key}={entry!r}: {key_of(entry)} is the name of another score")
    if len({*map(key_of, entries)}) < len(entries):
        raise ValueError(f"{key}={list(entries)}: names a score twice")


class EpisodeScores:
    """What the steps of episodes [task, episode] said so far."""

    def __init__(self, entries: Sequence[str], count: tuple[int, ...]) -> None:
        self._entries = {entry: entry.partition(":")[::2] for entry in entries}
        self._said = {entry: np.zeros(count) for entry in entries}  # how many steps
        self._value = {entry: np.full(count, np.nan) for entry in entries}
        self._spoilt = np.zeros(count, dtype=bool)

    def add(self, given: Mapping[str, np.ndarray], running: np.ndarray) -> None:
        """One step's values, NaN where none is given; of the episodes that run.

        Raises:
            EnvironmentFault: an array has another shape.
        """
        for entry, (name, way) in self._entries.items():
            values = np.asarray(given.get(name, np.nan), np.float64)
            if values.shape not in ((), running.shape):
                raise EnvironmentFault(
                    None, f"scores {name} have shape {values.shape}, not {running.shape}"
                )
            now, past = np.where(running, values, np.nan), self._value[entry]
            says = ~np.isnan(now)
            self._said[entry] += says
            if way in ("", "max", "min"):
                past[:] = (np.fmin if way == "min" else np.fmax)(past, now)
            elif way == "last":
                past[says] = now[says]
            else:
                past[says] = np.where(np.isnan(past), 0, past)[says] + now[says]

    def spoil(self, episodes: np.ndarray) -> None:
        """These have diverged: their scores are not numbers."""
        self._spoilt |= episodes

    def result(self, named: Collection[str] = ()) -> dict[str, Tensor] | None:
        """Each score [task, episode]; None where none was asked for.

        Raises:
            EnvironmentFault: no step of an episode says it; `named` are what they could say.
        """
        found = {}
        for entry, (name, way) in self._entries.items():
            silent = (self._said[entry] == 0) & ~self._spoilt
            if silent.any():
                close = get_close_matches(name, named, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                there = f" (there are {', '.join(sorted(named))})" if named and not close else ""
                raise EnvironmentFault(
                    int(silent.any(-1).argmax()),
                    f"no step of an episode has info[{name!r}]{hint}{there}",
                )
            value = self._value[entry] / (self._said[entry].clip(1) if way == "mean" else 1)
            value = np.where(self._spoilt, np.nan, value)
            found[key_of(entry)] = torch.from_numpy(value.astype(np.float32))
        return found or None
