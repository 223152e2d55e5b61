"""Fitting: Ray Tune runs the trials; what is drawn, and what becomes of it, is ours to say.

A trial that an earlier process has begun comes first, with the values that it was drawn; then new
ones, until there are as many as the search wants. Those of a population come an interval at a time.
"""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from maml_dist.config.recipe import Config
from maml_dist.runtime.backend import Resources
from maml_dist.tuning.draws import Draws
from maml_dist.tuning.finishing import Seeds
from maml_dist.tuning.live import Live
from maml_dist.tuning.population import Population
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.stopping import Before, replay, scheduler
from maml_dist.tuning.trial_run import told_before, trainable
from maml_dist.tuning.trials import Trial, Trials, tell


class _Here:
    """Stays in this process: Tune pickles all it is given, and what it writes is never read."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class _OneByOne:
    """The trials, each to its end."""

    over = True  # where there is no next

    def __init__(self, plan: Search, config: Config, trials: Trials, draws: Draws | Seeds) -> None:
        self._plan, self._trials, self._draws = plan, trials, draws
        self._iterations: int = config["iterations"]
        self._begun = [trial for trial in trials.all.values() if not trial.ended]

    def next(self) -> Trial | None:
        if self._begun:
            return self._begun.pop(0)
        number = len(self._trials.all)
        if number >= self._plan.num_trials:
            return None
        draw = self._draws.draw(number)
        return None if draw is None else self._trials.drawn(number, draw)

    def until(self, trial: Trial) -> int:
        return self._iterations


class _Drawing(_Here, Searcher):
    """Gives Tune what is to be run, a trial or an interval of one at a time."""

    def __init__(self, upcoming: _OneByOne | Population) -> None:
        super().__init__()
        self._upcoming = upcoming

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        trial = self._upcoming.next()
        if trial is None:
            return Searcher.FINISHED if self._upcoming.over else None
        return {
            "trial": trial.number,
            "run": trial.runs[-1],
            "values": trial.values,
            "iterations": self._upcoming.until(trial),
            "spent": trial.spent,
        }

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Is told by `_Watch`, which knows how it ended."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of it is read again: trials.jsonl holds all."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


class _Watch(_Here, tune.Callback):
    """Notes what becomes of the trials."""

    def __init__(
        self, trials: Trials, draws: Draws | Seeds, live: Live, scheduled: Any, iterations: int
    ) -> None:
        self._trials, self._draws, self._live = trials, draws, live
        self._scheduled, self._iterations = scheduled, iterations
        self._replayed: set[int] = set()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        row = self._row(trial)
        if row.number not in self._replayed:  # else it was lost in this process
            before = told_before(self._trials.path(row.runs[0]), self._trials.judge)
            replay(self._scheduled, trial, before[:-1])  # the last it tells itself
            self._replayed.add(row.number)
        row.status = "running"
        if row.reached == row.schedule[-1].iteration:  # else it goes on
            self._live.started(row)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        row = self._row(trial)
        row.end.iteration, row.end.scores = result["iteration"], result["scores"]
        row.end.seconds, row.end.error = result["train_seconds"], result["error"]
        row.diverged, row.latest = result["diverged"], result["latest"]
        self._live.changed()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        row, until = self._row(trial), trial.config["iterations"]
        if until < self._iterations and (row.diverged or row.end.iteration >= until):
            self._trials.reached(row, until)
        elif row.diverged:
            self._end(row, "diverged")
        elif row.end.error:
            self._end(row, "failed")
        else:
            self._end(row, "finished" if row.end.iteration >= self._iterations else "stopped")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        row = self._row(trial)
        lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
        row.end.error = lines[-1] if lines else "its machine was lost"
        self._end(row, "failed")

    def _row(self, trial: Any) -> Trial:
        return self._trials.all[trial.config["trial"]]

    def _end(self, row: Trial, status: Any) -> None:
        if row.ended:
            return
        self._trials.ended(row, status)
        tell(self._draws, row)
        self._live.ended(row)


def fit(
    plan: Search,
    config: Config,
    trials: Trials,
    draws: Draws | Seeds,
    *,
    resources: Resources,
    live: Live,
) -> None:
    """Let Tune run the trials that have not ended; `config` is what all of them share."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with it a banner comes even with verbose=0
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths in a recipe stay what they are
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # each run writes its own events
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `stop` is what ends it
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # until Tune listens
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what failed is said in the table
    judge, iterations = trials.judge, config["iterations"]
    scheduled: Any = scheduler(plan, iterations=iterations, maximize=judge.maximize[0])
    for trial in trials.all.values():
        if trial.ended:
            stand_in = Before(trial.number)
            scheduled.on_trial_add(None, stand_in)
            replay(scheduled, stand_in, told_before(trials.path(trial.runs[0]), judge))
    in_turn = Population if plan.stops == "pbt" else _OneByOne
    request = resources.request
    alone = resources.shards == 1 and not request.workers
    shard = {"CPU": request.cpus, "GPU": resources.gpus}
    # The first bundle is the driver's: it only passes references on and needs no core of its own.
    each = [shard] + [{"CPU": request.worker_cpus}] * request.workers
    every = [shard] if alone else [{}] + each * resources.shards
    bundles = tune.PlacementGroupFactory(every, strategy="PACK")
    tuner = tune.Tuner(
        tune.with_resources(trainable(config, trials.folder, judge, local=alone), bundles),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until there is nothing to draw
            max_concurrent_trials=plan.max_concurrent,
            time_budget_s=plan.time_budget,
            search_alg=_Drawing(in_turn(plan, config, trials, draws)),
            scheduler=scheduled,
            reuse_actors=plan.stops == "pbt",  # an interval may take less than a process's start
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(trials.folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=plan.max_failures),
            callbacks=[_Watch(trials, draws, live, scheduled, iterations)],
        ),
    )
    tuner.fit()


def stop() -> None:
    """Have Tune end, what runs included, as soon as it can."""
    if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None):  # it has not begun
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGUSR1)
