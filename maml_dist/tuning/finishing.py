"""Finishing: the best trials of a search, trained anew over seeds; the winner is scored on test.

finish/trials/N/    the run of one of them with one seed, as long as the recipe says
finish/trials.csv   their table

A winner of one seed, chosen among many, is chosen for its luck too: what it is worth is the mean
over seeds of its own.
"""

import math
import statistics
from dataclasses import dataclass, replace

import yaml
from scipy import stats  # type: ignore[import-untyped]

from maml_dist.config.compose import override
from maml_dist.config.recipe import Config
from maml_dist.inference.meta_test import meta_test
from maml_dist.loggers.lines import say
from maml_dist.runs.folder import replace as write
from maml_dist.runs.run import Run
from maml_dist.tuning.draws import Draw
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trial_run import TRIALS
from maml_dist.tuning.trials import BEST, Trial, Trials, comment, text

FOLDER = "finish"
SURE = 0.95  # of an interval


class Seeds:
    """What `Draws` is of a search: the best trials with each seed that was not drawn before."""

    def __init__(self, best: list[Trial], seeds: list[int], runs: Trials) -> None:
        self._before = len(runs.all)
        there = [run.values for run in runs.all.values()]
        wanted = [{**trial.values, "seed": seed} for trial in best for seed in seeds]
        self._missing = [values for values in wanted if values not in there]
        self.total = self._before + len(self._missing)

    def draw(self, number: int) -> Draw | None:
        """The values of the run with this number."""
        place = number - self._before
        return Draw(self._missing[place], {}) if place < len(self._missing) else None

    def tell(self, number: int, scores: list[float] | None, *, failed: bool = False) -> None:
        """What became of it changes nothing."""


@dataclass
class Finished:
    """One of the best trials over its seeds."""

    trial: Trial
    runs: list[Trial]
    seeds: int  # with which it is to be trained

    @property
    def scores(self) -> list[float]:
        """Of each seed, by the first metric: of its best checkpoint, though it diverged later."""
        ended = [run for run in self.runs if run.ended and run.status != "failed"]
        return [run.end.scores[0] for run in ended if run.end.scores]

    @property
    def whole(self) -> bool:
        """Whether each seed has a score."""
        return len(self.scores) == self.seeds

    def __str__(self) -> str:
        return interval(self.scores)


def interval(values: list[float]) -> str:
    """The mean of values over seeds, with the half of its interval (Student's t)."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4g}"
    if len(values) == 1:
        return f"{mean} (one seed)"
    spread = statistics.stdev(values) / math.sqrt(len(values))
    half = spread * float(stats.t.ppf((1 + SURE) / 2, len(values) - 1))
    return f"{mean} ± {half:.2g} ({len(values)} seeds)"


def plan_of(plan: Search, total: int) -> Search:
    """The search's plan for so many of these runs: none is stopped early."""
    return replace(
        plan,
        search={"seed": {"choice": [0]}},
        overrides={},
        num_samples=total,
        scheduler="fifo",
        finish=None,
    )


def space_of(plan: Search, seeds: list[int]) -> Search:
    """The plan by which the record of these runs is read: the search's keys, and a seed."""
    return replace(
        plan, search={**plan.search, "seed": {"choice": seeds}}, overrides={}, finish=None
    )


def ranked(best: list[Trial], seeds: list[int], runs: Trials) -> list[Finished]:
    """The best trials by their mean over seeds; one that has failed with a seed comes last."""
    finished = [
        Finished(
            trial,
            [
                run
                for run in runs.all.values()
                if any(run.values == {**trial.values, "seed": seed} for seed in seeds)
            ],
            len(seeds),
        )
        for trial in best
    ]

    def rank(each: Finished) -> tuple[bool, float]:
        mean = statistics.fmean(each.scores) if each.scores else 0.0
        return not each.whole, -mean if runs.judge.maximize[0] else mean

    return sorted(finished, key=rank)


def promote(search: Trials) -> None:
    """Score the best trial's own checkpoint on test, where a schedule has led to it."""
    if best := search.best:
        tested = meta_test(Run.open(search.path(best.runs[-1])))
        lines = [
            f"{tested['metric']} on test after {each['step']} steps: {text(each['mean'])} ± "
            f"{text(each['ci95'])} over {tested['tasks']} tasks"
            for each in tested["results"][0]["steps"]
        ]
        for line in lines:
            say(line, out=True)
        write(
            search.folder / BEST, f"{comment(lines)}{(search.folder / BEST).read_text()}".encode()
        )


def crown(winner: Finished, runs: Trials, base: Config, search: Trials) -> list[str]:
    """Score the winner on test, once for each seed, and write best.yaml with what it is worth.

    Returns what it is worth, as lines.
    """
    tested = [meta_test(Run.open(runs.folder / TRIALS / str(run.number))) for run in winner.runs]
    paths = [each["results"][0]["steps"] for each in tested]
    lines = [
        f"trial {winner.trial.number} of {search.folder}, the best of {len(search.all)}",
        f"{runs.judge.metrics[0]} on validation: {winner}",
    ]
    for step, by_seed in enumerate(zip(*paths, strict=True)):
        score = interval([each["mean"] for each in by_seed])
        lines.append(f"{tested[0]['metric']} on test after {step} steps: {score}")
    recipe = yaml.safe_dump(override(base, winner.trial.values), sort_keys=False)
    write(search.folder / BEST, f"{comment(lines)}{recipe}".encode())
    return lines
