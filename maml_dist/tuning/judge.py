"""Judge: what a trial is judged by, read off the rows of its validations."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from maml_dist.config.dotted_keys import candidates, flatten_keys, full_key
from maml_dist.config.experiment import Experiment
from maml_dist.config.recipe import Config, nearest
from maml_dist.tuning.search_space import Search

SECONDS = "seconds"  # of training, up to the validation


@dataclass(frozen=True)
class Judge:
    """The metrics, and whether more of each is better. The first decides between validations."""

    metrics: tuple[str, ...]
    maximize: tuple[bool, ...]

    @property
    def title(self) -> str:
        """What the score is."""
        each = zip(self.metrics, self.maximize, strict=True)
        return ", ".join(f"{'highest' if more else 'lowest'} {name}" for name, more in each)

    def scores(self, row: Mapping[str, Any], *, seconds: float, config: Config) -> list[float]:
        """Of a row with a validation, of a trial of this configuration: one for each metric."""
        known = {**flatten_keys(config), **row, SECONDS: seconds}
        return [
            math.nan if known.get(name) is None else float(known[name]) for name in self.metrics
        ]

    def signed(self, scores: Iterable[float]) -> list[float]:
        """The same, of which less is better."""
        return [
            -score if more else score for score, more in zip(scores, self.maximize, strict=True)
        ]

    def better(self, scores: list[float], others: list[float] | None) -> bool:
        """Whether these are of the better validation of a trial."""
        return others is None or self.signed(scores)[0] < self.signed(others)[0]

    def front(self, scores: list[list[float]]) -> list[int]:
        """The numbers of those than which no other is better in one metric and as good in all."""
        signed = [self.signed(each) for each in scores]
        return [
            number
            for number, mine in enumerate(signed)
            if not any(
                other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
                for other in signed
            )
        ]


def judge(plan: Search, experiment: Experiment, config: Config, *, names: list[str]) -> Judge:
    """The judge of a search, of whose task `names` are the scores.

    Raises:
        ValueError: a metric is none of a validation, and no number of the recipe.
    """
    task = experiment.task
    own = f"val/{task.metric}"
    steps = [f"{own}/{step}" for step in range(1, experiment.test_steps + 1)]
    known = [f"{own}/path", own, f"{own}/before", *steps]
    known += [f"val/{name}" for name in names if name != task.metric] + [SECONDS]
    keys = flatten_keys(config)
    metrics = list(plan.metrics or [known[0]])
    for place, name in enumerate(metrics):
        if name in known:
            continue
        if name.startswith("val/") or not candidates(name, keys):
            raise ValueError(
                f"metric={name}: is none of this recipe{nearest(name, known)} "
                f"(there are {', '.join(known)}, and the recipe's own numbers)"
            )
        metrics[place] = key = full_key(name, list(keys))
        if isinstance(keys[key], bool) or not isinstance(keys[key], int | float):
            raise ValueError(f"metric={name}: is {keys[key]!r} in this recipe, no number")
    modes = plan.mode if isinstance(plan.mode, list) else [plan.mode] * len(metrics)
    for name, mode in zip(metrics, modes, strict=True):
        if mode is None and name in known and not _is_of(name, own) and name != SECONDS:
            raise ValueError(
                f"metric={name}: needs a mode, min or max, for it is not the task's own"
            )
    return Judge(
        tuple(metrics),
        tuple(
            mode == "max" if mode else task.maximize and _is_of(name, own)
            for name, mode in zip(metrics, modes, strict=True)
        ),
    )


def _is_of(name: str, metric: str) -> bool:
    """Whether it is a metric, or the same after a number of steps."""
    return name == metric or name.startswith(f"{metric}/")
