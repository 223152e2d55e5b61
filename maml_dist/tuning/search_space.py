"""A search as plain data: what is searched and how, read from a file.

recipe: sinusoid
search:
  learner: {choice: [MAML, MetaSGD]}
  learner.alpha: {loguniform: [0.001, 1], when: {learner: MAML}}
num_samples: 8
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from maml_dist.config.errors import config_errors
from maml_dist.config.plain_yaml import check
from maml_dist.config.recipe import nearest, read_yaml
from maml_dist.config.trust import Names
from maml_dist.core.validation import check_minimum, check_range, check_share
from maml_dist.tuning import distributions
from maml_dist.tuning.distributions import WHEN

TRIALS = 100_000  # at the most
SHARED = ("iterations", "shards", "cpus_per_shard", "gpus_per_shard", "checkpoints")  # by trials


Mode = Literal["min", "max"]
Scheduler = Literal["asha", "hyperband", "median", "pbt", "fifo"]
# What has no effect with pbt, and with all others.
NOT_PBT = ("grace_period", "reduction_factor", "algorithm")
PBT = (
    *("perturbation_interval", "quantile_fraction"),
    *("resample_probability", "perturbation_factors"),
)


@dataclass(frozen=True)
class Finish:
    """What becomes of the best trials: each is trained anew, whole, with other seeds."""

    top: int = 1  # trials
    seeds: int | None = None  # of each: those after the recipe's, which chose it; null: 3
    iterations: int | None = None  # null: the recipe's

    def __post_init__(self) -> None:
        check_minimum(self, "finish", top=1, seeds=1, iterations=1)


@dataclass(frozen=True)
class Search:
    """What is searched, and how. Its fields are the keys of a file."""

    recipe: str  # a recipe's name, or a YAML file
    search: dict[str, dict[str, list[Any] | dict[str, Any]]]  # key of the recipe -> distribution
    overrides: dict[str, Any] = field(default_factory=dict)  # other keys of the recipe -> values
    num_samples: int | None = None  # trials, of each point of the grids; null: 16, with grids 1
    metric: str | list[str] | None = None  # of a validation; null: the mean over the path
    mode: Mode | list[Mode] | None = None  # which of its values is better; null: as the task says
    algorithm: Literal["random", "tpe", "gp", "cmaes", "nsga2"] = "random"  # how values are drawn
    scheduler: Scheduler | None = None  # what stops trials, or has them learn from one another
    grace_period: int = 1000  # meta-iterations that every trial gets
    reduction_factor: int = 3  # asha: one trial in so many goes on, for so many times as long
    perturbation_interval: int | None = None  # pbt: iterations; null: checkpoint_every
    quantile_fraction: float = 0.25  # pbt: so many of the worst take over so many of the best
    resample_probability: float = 0.25  # pbt: that a value is then drawn anew, not perturbed
    perturbation_factors: tuple[float, float] = (1.2, 0.8)  # pbt: by one of which it is multiplied
    max_concurrent: int | None = None  # trials at a time; null: as many as there is room for
    max_failures: int = 3  # of machines, after which a trial is not begun again
    time_budget: float | None = None  # seconds after which what runs is stopped; null: none
    seed: int = 0  # of the draws; that of the trials is the recipe's
    finish: Finish | None = None  # what becomes of the best; null: nothing
    study: str | None = None  # URL of Optuna's storage; null: study.db in the search's folder

    def __post_init__(self) -> None:
        check_minimum(
            self, "", grace_period=1, reduction_factor=2, max_concurrent=1, max_failures=0
        )
        check_range(self, "", num_samples=(1, TRIALS), seed=(0, 2**32 - 1))  # numpy's seeds
        check_range(self, "", time_budget=(1, 100_000_000))  # three years
        if not self.search:
            raise ValueError("search: there is no key to search")
        for key, distribution in self.search.items():
            distributions.check(key, distribution)
            if key in SHARED:
                raise ValueError(f"search.{key}: all trials share it, so it cannot be searched")
            for other in (*self.overrides, *(other for other in self.search if other != key)):
                if _same(key, other):
                    raise ValueError(f"search.{key}: the value of {other} is set already")
        self._check_conditions()
        self._check_metrics()
        self._check_population()
        if self.grid_size * self.samples > TRIALS:
            raise ValueError(
                f"search: its grids have {self.grid_size} points, and with num_samples="
                f"{self.samples} there are more than {TRIALS} trials"
            )

    def _check_conditions(self) -> None:
        for key in self.search:
            for parent, values in self.conditions(key).items():
                where = f"search.{key}.when.{parent}"
                if parent not in self.search:
                    raise ValueError(
                        f"{where}: is not searched{nearest(parent, list(self.search))}"
                    )
                listed = distributions.choices(self.search[parent])
                if listed is None:
                    raise ValueError(f"{where}: must be a choice or a grid")
                for value in values:
                    if not any(equal(value, each) for each in listed):
                        raise ValueError(f"{where}={value!r}: must be of {listed}")
                if not values:
                    raise ValueError(f"{where}: must name a value")
                ancestors, seen = [parent], set[str]()
                while ancestors:
                    ancestor = ancestors.pop()
                    if ancestor == key:
                        raise ValueError(f"{where}: {key} would depend on itself")
                    if ancestor not in seen:
                        ancestors += self.conditions(ancestor) if ancestor in self.search else ()
                        seen.add(ancestor)
            if self.conditions(key) and distributions.grid(self.search[key]):
                raise ValueError(f"search.{key}: a grid cannot have conditions; a choice can")

    def _check_metrics(self) -> None:
        names, modes = self.metrics, self.mode if isinstance(self.mode, list) else [self.mode]
        if self.metric is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"metric={self.metric}: must be one name, or several different ones")
        if isinstance(self.mode, list) and len(modes) != max(1, len(names)):
            raise ValueError(f"mode={self.mode}: must be one for each of {len(names)} metrics")
        if len(names) > 1 and self.scheduler not in (None, "fifo"):
            raise ValueError(
                f"scheduler={self.scheduler}: compares trials by one metric, and there are "
                f"{len(names)}; use fifo"
            )
        if len(names) > 1 and self.algorithm == "cmaes":
            raise ValueError(
                f"algorithm=cmaes: is for one metric, and there are {len(names)}; use nsga2 or tpe"
            )

    def _check_population(self) -> None:
        check_minimum(self, "", perturbation_interval=1)
        check_share(self, "", "quantile_fraction", most=0.5)
        check_range(self, "", resample_probability=(0, 1))
        low, high = sorted(self.perturbation_factors)
        if not 0 < low < 1 < high < math.inf:
            raise ValueError(
                f"perturbation_factors={list(self.perturbation_factors)}: must be two positive "
                "numbers, one over and one under 1"
            )
        population = self.scheduler == "pbt"
        defaults = {item.name: item.default for item in fields(self)}
        for name in NOT_PBT if population else PBT:
            if (value := getattr(self, name)) != defaults[name]:
                whose = "not with scheduler=pbt" if population else "with scheduler=pbt alone"
                raise ValueError(f"{name}={value}: has an effect {whose}")
        if not population:
            return
        if self.num_trials < 2:
            raise ValueError(f"num_samples={self.num_trials}: a population has 2 trials or more")
        if self.finish and self.finish != Finish():
            raise ValueError(
                "finish: a schedule that pbt has found is not trained anew; `finish: {top: 1}` "
                "scores the best trial's checkpoint on test"
            )
        for key in self.search:
            if len(distributions.tried(self.search[key])) < 2:
                raise ValueError(
                    f"search.{key}: has one value, and with scheduler=pbt all change in mid-run; "
                    "give it among the overrides"
                )
            if self.conditions(key):
                raise ValueError(
                    f"search.{key}.when: with scheduler=pbt all values change in mid-run, so that "
                    "none can depend on another"
                )

    @property
    def metrics(self) -> list[str]:
        """What trials are judged by; none where that is the task's."""
        if self.metric is None:
            return []
        return [self.metric] if isinstance(self.metric, str) else self.metric

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The keys that are searched by a grid, with their values."""
        grids = {key: distributions.grid(each) for key, each in self.search.items()}
        return {key: values for key, values in grids.items() if values is not None}

    @property
    def grid_size(self) -> int:
        """How many points the grids have together; 1 without any."""
        return math.prod(len(values) for values in self.grid.values())

    @property
    def samples(self) -> int:
        """Trials, of each point of the grids."""
        return self.num_samples or (1 if self.grid else 16)

    @property
    def stops(self) -> str:
        """The scheduler: what is said, or what fits."""
        return self.scheduler or ("asha" if len(self.metrics) < 2 else "fifo")

    @property
    def num_trials(self) -> int:
        """All trials; fewer where there are no more different ones."""
        return self.samples * self.grid_size

    def conditions(self, key: str) -> dict[str, list[Any]]:
        """The values of other keys with which a key is drawn at all."""
        given = self.search[key].get(WHEN, {})
        if not isinstance(given, dict):
            raise ValueError(f"search.{key}.when={given}: must be keys and their values")
        return {
            parent: values if isinstance(values, list) else [values]
            for parent, values in given.items()
        }

    def applies(self, key: str, values: Mapping[str, Any]) -> bool:
        """Whether a key is drawn beside these values of others."""
        return all(
            parent in values and any(equal(values[parent], each) for each in allowed)
            for parent, allowed in self.conditions(key).items()
        )

    @property
    def order(self) -> list[str]:
        """The searched keys, each after those on which it depends."""
        placed: list[str] = []
        while len(placed) < len(self.search):
            placed += [
                key
                for key in self.search
                if key not in placed and all(parent in placed for parent in self.conditions(key))
            ]
        return placed


def read(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Search:
    """A search from its file; `overrides` may name keys of the search and of the recipe.

    Raises:
        ValueError: in one line, the key, the value, what is allowed and the nearest valid name.
    """
    from jsonargparse import ArgumentParser

    names = [item.name for item in fields(Search)]
    ours = {key: value for key, value in (overrides or {}).items() if key in names}
    content = {
        key: value for key, value in {**read_yaml(file), **ours}.items() if value is not None
    }
    if content.get("algorithm") == "optuna":  # its own default
        content["algorithm"] = "tpe"
    for key in content.keys() - names:
        guess = nearest(str(key), names)
        raise ValueError(f"{file}: unknown key {key!r}{guess} (there are {', '.join(names)})")
    check(content, "")
    try:
        with config_errors(Search, Names([])):
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(Search, fail_untyped=False)
            given = vars(parser.instantiate(parser.parse_object(content)))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    plan = Search(**given)
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


def equal(value: Any, other: Any) -> bool:
    """Whether two plain values are one; true is not 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
