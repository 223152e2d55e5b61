"""A search as plain data: what is searched and how, read from a file.

recipe: sinusoid
search:
  learner.alpha: {loguniform: [0.001, 1]}
  learner.steps: {choice: [1, 2, 5]}
num_samples: 8
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from maml_dist.config.plain_yaml import check
from maml_dist.config.recipe import nearest, read_yaml
from maml_dist.core.validation import LARGEST, check_minimum, check_range

# Ray Tune's names and arguments; `high` of the integers is not drawn, as in Python's range.
DISTRIBUTIONS = {
    "uniform": "[low, high]",
    "loguniform": "[low, high]",
    "randint": "[low, high]",
    "lograndint": "[low, high]",
    "choice": "[value, …]",
}
SHARED = ("iterations", "shards", "cpus_per_shard", "gpus_per_shard", "checkpoints")  # by trials


@dataclass(frozen=True)
class Search:
    """What is searched, and how. Its fields are the keys of a file."""

    recipe: str  # a recipe's name, or a YAML file
    search: dict[str, dict[str, list[Any]]]  # key of the recipe -> distribution -> its arguments
    overrides: dict[str, Any] = field(default_factory=dict)  # other keys of the recipe -> values
    num_samples: int = 16  # trials
    algorithm: Literal["random", "optuna"] = "random"  # how values are drawn
    scheduler: Literal["asha", "fifo"] = "asha"  # asha stops trials early, fifo none
    grace_period: int = 1000  # asha: meta-iterations that every trial gets
    reduction_factor: int = 3  # asha: one trial in so many goes on, for so many times as long
    max_concurrent: int | None = None  # trials at a time; null: as many as there is room for
    seed: int | None = None  # of the draws, and of every trial; null: the recipe's

    def __post_init__(self) -> None:
        check_minimum(self, "", grace_period=1, reduction_factor=2, max_concurrent=1)
        check_range(self, "", num_samples=(1, 100_000), seed=(0, 2**32 - 1))  # numpy's seeds
        if not self.search:
            raise ValueError("search: there is no key to search")
        for key, distribution in self.search.items():
            _check_distribution(key, distribution)
            if key in SHARED:
                raise ValueError(f"search.{key}: all trials share it, so it cannot be searched")
            for other in (*self.overrides, *(other for other in self.search if other != key)):
                if _same(key, other):
                    raise ValueError(f"search.{key}: the value of {other} is set already")

    @property
    def settings(self) -> dict[str, Any]:
        """The overrides that all trials share."""
        return self.overrides if self.seed is None else {**self.overrides, "seed": self.seed}


def read(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Search:
    """A search from its file; `overrides` may name keys of the search and of the recipe.

    Raises:
        ValueError: in one line, the key, the value, what is allowed and the nearest valid name.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    names = [item.name for item in fields(Search)]
    ours = {key: value for key, value in (overrides or {}).items() if key in names}
    content = {
        key: value for key, value in {**read_yaml(file), **ours}.items() if value is not None
    }
    for key in content.keys() - names:
        guess = nearest(str(key), names)
        raise ValueError(f"{file}: unknown key {key!r}{guess} (there are {', '.join(names)})")
    check(content, "")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Search, fail_untyped=False)
    try:
        plan = Search(**vars(parser.instantiate(parser.parse_object(content))))
    except ArgumentError as error:
        said = re.sub(r'[Pp]arser key "([^"]+)":', r"\1:", " ".join(error.message.split()))
        raise ValueError(f"{file}: {said.replace('typing.', '')}") from None
    others = {key: value for key, value in (overrides or {}).items() if key not in names}
    kept = {
        key: value
        for key, value in plan.overrides.items()
        if not any(_same(key, other) for other in others)
    }
    return replace(plan, overrides=kept | others)


def _same(key: str, other: str) -> bool:
    """Whether two keys of a recipe may be one, of which one is written short."""
    return f".{key}".endswith(f".{other}") or f".{other}".endswith(f".{key}")


def _check_distribution(key: str, distribution: Mapping[str, list[Any]]) -> None:
    if len(distribution) != 1:
        raise ValueError(f"search.{key}: takes one distribution, not {len(distribution)}")
    ((name, arguments),) = distribution.items()
    if name not in DISTRIBUTIONS:
        allowed = ", ".join(DISTRIBUTIONS)
        guess = nearest(name, list(DISTRIBUTIONS))
        raise ValueError(f"search.{key}: no distribution {name!r}{guess} (there are {allowed})")
    said = f"search.{key}: {name} takes {DISTRIBUTIONS[name]}, not {arguments}"
    if name == "choice":
        if not arguments:
            raise ValueError(said)
        return
    kinds = (int,) if "int" in name else (int, float)
    if len(arguments) != 2 or not all(type(bound) in kinds for bound in arguments):
        raise ValueError(f"{said} ({'whole numbers' if kinds == (int,) else 'numbers'})")
    low, high = arguments
    if kinds == (int,) and max(abs(low), abs(high)) > LARGEST:
        raise ValueError(f"{said} (whole numbers up to {LARGEST})")
    if not -math.inf < low < high < math.inf or ("log" in name and low <= 0):
        raise ValueError(f"{said} ({'0 < ' if 'log' in name else ''}low < high)")


def ends(distribution: Mapping[str, list[Any]]) -> list[Any]:
    """Values that a distribution can give: its bounds, or all of its choices."""
    ((name, arguments),) = distribution.items()
    return [arguments[0], arguments[1] - 1] if "int" in name else arguments
