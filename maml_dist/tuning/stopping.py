"""Stopping: Ray Tune's schedulers, which end the worse trials early.

asha        Li et al., arXiv 1810.05934: at each rung one trial in `reduction_factor` goes on
hyperband   the same in three brackets, that begin to stop later and later
median      Golovin et al., Google Vizier: below the median of the others' running means
fifo, pbt   none is stopped
"""

import math
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trial_run import Row

BRACKETS = 3


def scheduler(plan: Search, *, iterations: int, maximize: bool) -> TrialScheduler:
    """The scheduler of a search, told of metric and mode by itself."""
    grace = min(plan.grace_period, iterations)
    told: dict[str, Any] = {
        "metric": "score",
        "mode": "max" if maximize else "min",
        "time_attr": "iteration",
    }
    if plan.stops in ("asha", "hyperband"):
        return AsyncHyperBandScheduler(
            max_t=iterations,
            grace_period=grace,
            reduction_factor=plan.reduction_factor,
            brackets=1 if plan.stops == "asha" else _brackets(plan, iterations // grace),
            **told,
        )
    if plan.stops == "median":
        never: Any = math.inf  # a trial yields to others
        return MedianStoppingRule(grace_period=grace, min_time_slice=never, **told)
    return FIFOScheduler()


def _brackets(plan: Search, length: int) -> int:
    """As many as have a rung each."""
    count = 1
    while count < BRACKETS and plan.reduction_factor ** (count + 1) <= length:
        count += 1
    return count


def replay(scheduled: Any, trial: Any, rows: list[Row]) -> None:
    """Show a scheduler what a trial has told in an earlier process; it is not asked now."""
    for row in rows:
        notes = isinstance(scheduled, MedianStoppingRule)  # on_trial_complete does that alone
        show = scheduled.on_trial_complete if notes else scheduled.on_trial_result
        show(None, trial, row)


class Before:
    """Stands for a trial that has ended in an earlier process."""

    def __init__(self, number: int) -> None:
        self.trial_id = f"before-{number}"
