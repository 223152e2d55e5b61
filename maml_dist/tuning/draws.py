"""Draws: the values of each trial, drawn by Optuna.

A draw is a function of the search's seed, the trial's number, and what was told before it: asking
and telling the same in the same order gives the same draws, so that a search that was killed needs
no other record to go on.
"""

import json
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import Trial as Asked
from optuna.trial import TrialState

from maml_dist.tuning import distributions
from maml_dist.tuning.distributions import labels
from maml_dist.tuning.search_space import Search

AGAIN = 100  # draws that were there before, after which those that are left are listed
LEARNED = 10  # of them by the algorithm, the others at random
MANY = 100_000  # values together that are listed
POPULATION = 16  # of nsga2's generations

Values = dict[str, Any]  # searched key -> value


class Draw(NamedTuple):
    """What was drawn for a trial."""

    values: Values
    kept: Values  # as Optuna keeps it


class Draws:
    """What Optuna is asked and told."""

    def __init__(
        self, plan: Search, *, maximize: tuple[bool, ...], study: str, storage: str | None = None
    ) -> None:
        """`storage` is a URL of Optuna's, for its dashboard: the study there is made anew.

        Raises:
            ValueError: Optuna cannot write there.
        """
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        self._plan = plan
        try:
            if storage and study in optuna.get_all_study_names(storage):
                optuna.delete_study(study_name=study, storage=storage)
            self._study = optuna.create_study(
                study_name=study,
                storage=storage,
                directions=["maximize" if more else "minimize" for more in maximize],
            )
        except Exception as error:  # of whatever database that is
            raise ValueError(f"study={storage}: {str(error).splitlines()[0]}") from None
        self._asked: dict[int, Asked] = {}
        self._drawn: set[str] = set()
        self._points = _points(plan.grid)

    def draw(self, number: int) -> Draw | None:
        """What a trial tries; None where all that there is has been drawn.

        In a population equal ones stand: exploring parts them.
        The grid's points come in turn; one at which nothing is left is passed over.
        """
        points = len(self._points)
        turns = (self._points[(number + turn) % points] for turn in range(points))
        return next((found for point in turns if (found := self._at(number, point))), None)

    def _at(self, number: int, point: Values) -> Draw | None:
        for again in range(AGAIN):
            asked, values = self._ask(number, again, point)
            if self._plan.stops == "pbt" or _text(values) not in self._drawn:
                return self._keep(number, asked, values)
            self._study.tell(asked, state=TrialState.FAIL)
        left = (
            kept
            for values, kept in islice(listed(self._plan, point), MANY)
            if _text(values) not in self._drawn
        )
        if (kept := next(left, None)) is None:
            return None
        return self._keep(number, *self._ask(number, AGAIN, kept))

    def drawn(self, number: int, draw: Draw) -> None:
        """A draw that was made before: it is made again, so that Optuna knows what it knew."""
        again = self.draw(number)
        if again == draw:
            return
        if again:  # another version of Optuna, say
            self.tell(number, None, failed=True)
            self._drawn.remove(_text(again.values))
        asked, _ = self._ask(number, 0, draw.kept)
        self._keep(number, asked, draw.values)

    def tell(self, number: int, scores: list[float] | None, *, failed: bool = False) -> None:
        """What became of a trial: its scores; none where it diverged, or `failed` otherwise."""
        asked = self._asked[number]
        if scores is not None:
            self._study.tell(asked, scores)
        elif failed or len(self._study.directions) > 1:
            self._study.tell(asked, state=TrialState.FAIL)
        else:  # which counts as worse than any that has a score
            self._study.tell(asked, state=TrialState.PRUNED)
        del self._asked[number]

    def importance(self) -> dict[str, float]:
        """How much of the first metric each key explains; empty where too little is known."""
        falls = self._study.directions[0] == optuna.study.StudyDirection.MINIMIZE
        sign = 1 if falls else -1  # the evaluator takes the least for the best
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # which it says
                return optuna.importance.get_param_importances(
                    self._study,
                    evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                    target=lambda trial: sign * trial.values[0],
                )
        except (ValueError, RuntimeError):  # fewer than two trials, or all alike
            return {}

    def _ask(self, number: int, again: int, kept: Values) -> tuple[Asked, Values]:
        plan, values = self._plan, Values()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is experimental in Optuna
            self._study.sampler = _sampler(plan, number, again)
            if kept:
                self._study.enqueue_trial(kept)
            asked = self._study.ask()
            for key in plan.order:
                if plan.applies(key, values):
                    values[key] = distributions.suggest(asked, key, plan.search[key])
        return asked, values

    def _keep(self, number: int, asked: Asked, values: Values) -> Draw:
        self._asked[number] = asked
        self._drawn.add(_text(values))
        asked.set_user_attr("trial", number)
        return Draw(values, asked.params)


def keeps(plan: Search, draw: Draw) -> bool:
    """Whether what Optuna keeps of a draw gives its values."""
    fixed = optuna.trial.FixedTrial(draw.kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps
        try:
            again = {
                key: distributions.suggest(fixed, key, plan.search[key]) for key in draw.values
            }
        except ValueError:  # not kept, or not to be drawn
            return False
    return draw.kept.keys() == again.keys() and all(
        distributions.same(again[key], value) for key, value in draw.values.items()
    )


def drawn_anew(key: str, distribution: dict[str, Any], seed: int) -> Any:
    """A value of a key, drawn at random beside all else."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return distributions.suggest(study.ask(), key, distribution)


def _points(grid: dict[str, list[Any]]) -> list[Values]:
    """All points of the grids as Optuna keeps them, the last key changing first."""
    points: list[Values] = [{}]
    for key, values in grid.items():
        points = [{**point, key: label} for point in points for label in labels(values)]
    return points


def listed(plan: Search, point: Values) -> Iterator[tuple[Values, Values]]:
    """All values at a point of the grids with what Optuna keeps of them; none if they are endless.

    In the order of the keys, the last one changing first.
    """
    finite = {key: distributions.finite(each) for key, each in plan.search.items()}
    if None in finite.values():
        return
    stack: list[tuple[int, Values, Values]] = [(0, {}, {})]
    while stack:
        place, values, kept = stack.pop()
        if place == len(plan.order):
            yield values, kept
            continue
        key = plan.order[place]
        if not plan.applies(key, values):
            stack.append((place + 1, values, kept))
            continue
        for label, value in reversed([*(finite[key] or {}).items()]):
            if point.get(key, label) == label:
                stack.append((place + 1, {**values, key: value}, {**kept, key: label}))


def _sampler(plan: Search, number: int, again: int) -> optuna.samplers.BaseSampler:
    seed = int(np.random.SeedSequence([plan.seed, number, again]).generate_state(1)[0])
    samplers = optuna.samplers
    if again >= LEARNED:
        return samplers.RandomSampler(seed=seed)
    match plan.algorithm:
        case "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=True)
        case "gp":
            return samplers.GPSampler(seed=seed)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        case _:
            return samplers.RandomSampler(seed=seed)


def _text(values: Values) -> str:
    return json.dumps(values, sort_keys=True)
