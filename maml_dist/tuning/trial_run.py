"""Trial run: what Ray Tune runs of a trial, the whole distributed run in a folder of its own.

A trial that was begun before, and whose machine or search has been lost since, goes on from its own
last checkpoint, to the same bits.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maml_dist.config.compose import override
from maml_dist.config.recipe import Config
from maml_dist.config.trust import own
from maml_dist.runs.run import Run
from maml_dist.training.trainer import execute, prepare
from maml_dist.tuning.judge import Judge

WORST = sys.float_info.max  # before the first finite score; ASHA cannot interpolate infinity
TRIALS = "trials"  # the folder with those of the trials

Row = dict[str, Any]


class Reached:
    """How far a trial has got: the best of its validations so far, and its time."""

    def __init__(self, judge: Judge, config: Config) -> None:
        self._judge, self.config = judge, config
        self.iteration, self.seconds = 0, 0.0
        self._timed = 0  # iterations in `seconds`
        self.scores: list[float] | None = None  # of the best validation
        self.diverged = False

    def take(self, row: Row) -> bool:
        """A row of metrics; whether it held a validation."""
        if pace := row.get("it_per_s"):
            self.seconds += (row["iteration"] - self._timed) / pace
            self._timed = row["iteration"]
        if not any(name.startswith("val/") for name in row):
            return False
        self.iteration = row["iteration"]
        scores = self._judge.scores(row, seconds=self.seconds, config=self.config)
        self.diverged = not all(map(math.isfinite, scores))
        if not self.diverged and self._judge.better(scores, self.scores):
            self.scores = scores
        return True

    def told(self, **more: Any) -> Row:
        """What Tune is told."""
        worst = [-WORST if each else WORST for each in self._judge.maximize]
        return {
            "iteration": self.iteration,
            "score": (self.scores or worst)[0],
            "scores": self.scores,
            "train_seconds": self.seconds,
            "diverged": self.diverged,
            "error": "",
        } | more


class _Stop(Exception):
    """The run is of no use any more."""


def trainable(config: Config, folder: Path, judge: Judge, *, local: bool) -> Callable[[Row], None]:
    """What runs a trial of the search in `folder`: its number, and the values that were drawn.

    `local`: in the trial's own process, where its only shard would be beside it otherwise.
    """

    place = config["checkpoints"]  # where other machines see them

    def trial(drawn: Row) -> None:
        from ray import tune

        for trusted in config["code"]:  # by the process of the search
            own(trusted)
        reached = Reached(judge, config)

        def take(row: Row) -> None:
            if reached.take(row):
                tune.report(reached.told())
            if reached.diverged:
                raise _Stop

        try:
            number = str(drawn["trial"])
            own_place = {"checkpoints": f"{place}/{number}"} if place else {}
            reached.config = override(config, drawn["values"] | own_place)
            run = begun(folder / TRIALS / number, reached.config)
            if any([reached.take(row) for row in run.metrics]):  # before it was lost
                tune.report(reached.told())
            if not reached.diverged:
                execute(run, local=local, progress=False, on_validation=take)
        except _Stop:
            pass
        except ChildProcessError:  # of the machines: it is begun again
            raise
        except FloatingPointError as error:
            reached.diverged = True
            tune.report(reached.told(error=str(error)))
        except (ValueError, OSError) as error:  # again it would be the same
            tune.report(reached.told(error=str(error)))

    return trial


def told_before(path: Path, judge: Judge) -> list[Row]:
    """What a trial has told, by the rows of its run; nothing where it had not begun."""
    if not (path / "recipe.yaml").exists():
        return []
    run = Run.open(path)
    reached = Reached(judge, run.config)
    return [reached.told() for row in run.metrics if reached.take(row)]


def begun(path: Path, config: Config) -> Run:
    """The run of a trial: a new one, or the one that was begun."""
    kept = {key: config[key] for key in ("shards", "gpus_per_shard")}
    if (path / "recipe.yaml").exists():
        return prepare("", kept, resume=path)
    new = Run(path, config)
    if config["checkpoints"] and new.checkpoints.last:  # by a machine that is gone
        return prepare("", kept, resume=config["checkpoints"], run=path)
    return new
