"""Trial run: what Ray Tune runs of a trial, the whole distributed run in a folder of its own.

A trial that was begun before, and whose machine or search has been lost since, goes on from its own
last checkpoint, to the same bits.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maml_dist.config.compose import override
from maml_dist.config.recipe import Config
from maml_dist.config.trust import own, trusted
from maml_dist.runs.folder import refuse_links_to_run
from maml_dist.runs.fork import FORKED
from maml_dist.runs.lock import Locked, LockLost
from maml_dist.runs.owner import STALE
from maml_dist.runs.run import Run
from maml_dist.training.callbacks import Callbacks
from maml_dist.training.trainer import execute, prepare
from maml_dist.tuning.judge import Judge

WORST = sys.float_info.max  # before the first finite score; ASHA cannot interpolate infinity
TRIALS = "trials"  # the folder with those of the trials
UNWRITTEN = Path("unwritten")  # of a run that is only tried
TRAINED = ("task", "model", "learner", "outer", "meta_batch", "seed")  # what a run is of
PATIENCE = 60.0  # seconds beyond those after which a lock is stale

Row = dict[str, Any]


class Reached:
    """How far a trial has got: the best of its validations so far, and its time."""

    def __init__(self, judge: Judge, config: Config, *, seconds: float = 0.0) -> None:
        """`seconds` of training were before this run."""
        self._judge, self.config = judge, config
        self.iteration, self.seconds = 0, seconds
        self._timed = 0  # iterations in `seconds`
        self.scores: list[float] | None = None  # of the best validation
        self.latest: list[float] | None = None  # of the last
        self.diverged = False

    def take(self, row: Row) -> bool:
        """A row of metrics; whether it held a validation."""
        if FORKED in row:  # what is before was trained in another run
            self._timed = row["iteration"]
        if pace := row.get("it_per_s"):
            self.seconds += (row["iteration"] - self._timed) / pace
            self._timed = row["iteration"]
        if not any(name.startswith("val/") for name in row):
            return False
        self.iteration = row["iteration"]
        scores = self._judge.scores(row, seconds=self.seconds, config=self.config)
        self.diverged = not all(map(math.isfinite, scores))
        self.latest = None if self.diverged else scores
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
            "latest": self.latest and self.latest[0],
            "train_seconds": self.seconds,
            "diverged": self.diverged,
            "error": "",
        } | more


class _Stop(Exception):
    """The run is of no use any more."""


def trainable(config: Config, folder: Path, judge: Judge, *, local: bool) -> Callable[[Row], None]:
    """What runs a trial of the search in `folder`, or an interval of it.

    `local`: in the trial's own process, where its only shard would be beside it otherwise.
    """

    code = trusted(config["code"])  # by the process of the search

    def trial(drawn: Row) -> None:
        from ray import tune

        for folder_of_code in code:
            own(folder_of_code)
        reached = Reached(judge, config, seconds=drawn["spent"])

        def take(row: Row) -> None:
            validated = reached.take(row)
            if reached.diverged:
                raise _Stop
            if validated and row["iteration"] < drawn["iterations"]:  # what comes last, at the end
                tune.report(reached.told())

        try:
            until = {"iterations": drawn["iterations"]}
            reached.config = config_of(config, drawn["run"], drawn["values"] | until)
            run = begun(folder / TRIALS / drawn["run"], reached.config)
            if any([reached.take(row) for row in run.metrics]):  # before it was lost
                tune.report(reached.told())
            if not reached.diverged:
                calls = Callbacks(on_validation=take)
                when_free(lambda: execute(run, local=local, progress=False, callbacks=calls))
                tune.report(reached.told())
        except _Stop:
            tune.report(reached.told())
        except ChildProcessError:  # of the machines: it is begun again
            raise
        except FloatingPointError as error:
            reached.diverged = True
            tune.report(reached.told(error=str(error)))
        except LockLost as error:
            raise ChildProcessError(str(error)) from None
        except (ValueError, OSError) as error:  # again it would be the same
            tune.report(reached.told(error=str(error)))

    return trial


def config_of(shared: Config, run: str, values: Mapping[str, Any]) -> Config:
    """The recipe of a trial's run."""
    return override(shared, {**values, **place_of(shared, run)})


def place_of(shared: Config, run: str) -> dict[str, str]:
    """The key of a run's own place of checkpoints, where they lie elsewhere, for all machines."""
    place = shared["checkpoints"]
    return {"checkpoints": f"{place}/{run}"} if place else {}


def told_before(path: Path, judge: Judge) -> list[Row]:
    """What a trial has told, by the rows of its run; nothing where it had not begun."""
    if not (path / "recipe.yaml").exists():
        return []
    run = Run.open(path)
    reached = Reached(judge, run.config)
    return [reached.told() for row in run.metrics if reached.take(row)]


def begun(path: Path, config: Config) -> Run:
    """The run of a trial: a new one, or the one that was begun.

    Raises:
        ValueError: there is one of other values, or a link leads there.
    """
    refuse_links_to_run(path)
    kept = {key: config[key] for key in ("iterations", "shards", "gpus_per_shard")}
    if (path / "recipe.yaml").exists():
        found = prepare("", kept, resume=path)
    else:
        found = Run(path, config)
        if not config["checkpoints"] or not found.checkpoints.last:
            return found
        found = prepare("", kept, resume=config["checkpoints"], run=path)  # of a machine lost
    if any(found.config[key] != config[key] for key in TRAINED):
        raise ValueError(f"{path}: holds a run of other values than were drawn")
    return found


def when_free(work: Callable[[], object]) -> None:
    """Do it; where the driver of a machine that is gone seems to hold the run, wait for that."""
    end = time.monotonic() + STALE + PATIENCE
    while True:
        try:
            work()
            return
        except Locked:
            if time.monotonic() > end:
                raise
            time.sleep(5)
