"""The recorder: reads what the loop submitted; writes metrics and checkpoints, and validates.

A checkpoint is written, and then the weights in it are scored on held-out tasks: what fails in
scoring, or is killed, does not cost the checkpoint; --resume scores it first. Iterations that are
computed again, because an actor was lost, are read once.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, cast

import numpy as np

from maml_dist.config.experiment import Experiment
from maml_dist.loggers.lines import say
from maml_dist.runs.run import Run
from maml_dist.runs.run_writer import RunWriter
from maml_dist.runtime.backend import ActorGroup, ActorLost
from maml_dist.runtime.remote import Ref
from maml_dist.runtime.server import Saved
from maml_dist.training.callbacks import Callbacks, Row
from maml_dist.training.held_out_rows import HeldOutRows

Validate = Callable[[], list[Ref[dict[str, np.ndarray]]]]  # to the scores of each slice


class IterationRefs(NamedTuple):
    """What is read of an iteration, or of a block of them, later: references."""

    start: int  # as many had been made before
    end: int  # and after
    metrics: Ref[Row] | Ref[list[Row]]
    saved: Ref[Saved] | None  # the server's state, where a checkpoint is due
    validate: Validate | None  # then scores that


class Recorder:
    """Reads the loop's reports: rows of metrics, validations, checkpoints."""

    def __init__(
        self,
        run: Run,
        actors: ActorGroup,
        files: RunWriter,
        *,
        start: int,
        callbacks: Callbacks,
    ) -> None:
        """`start` iterations have been read; `callbacks` see what is."""
        self._run, self._actors, self._files = run, actors, files
        self._callbacks = callbacks
        self.unread: list[IterationRefs] = []  # what the loop has submitted
        self._read = start  # the last iteration
        self._window: list[Row] = []  # the metrics since the last row
        self._counted, self._clock = 0, time.monotonic()
        self._logged = False  # whether a row was, since that clock
        self._printed = {""}
        self._open: Row = {}  # of a checkpoint that is not validated yet
        self._held_out = HeldOutRows(run, actors)

    def record(self, counts: Iterator[int]) -> None:
        """Read the loop to its end; it gives how many of `unread` are to be read now."""
        for count in counts:
            self._take(count)

    def catch_up(self, state: Saved | None, *, validate: bool = True) -> None:
        """Read what was applied of what was submitted, and forget the rest: an actor was lost.

        `state` is the server's, as far as that has got.
        """
        applied = state[0] if state else 0
        self._take(
            sum(report.end <= applied for report in self.unread), state=state, validate=validate
        )
        for it in range(self._read + 1, applied + 1):  # of a block that has broken
            if it in self._actors.rows:
                self._add(it, self._actors.rows[it])
        self.unread.clear()
        self._actors.rows = {}

    def conclude(self, state: Saved) -> None:
        """Read what was applied, validate nothing any more, and save the state."""
        with suppress(ActorLost):
            self.catch_up(state, validate=False)
        self.save(state)

    def save(self, state: Saved) -> None:
        """Save a state that is further than the last checkpoint; --resume validates it."""
        last = self._files.last
        if state[0] > (last.iteration if last else -1):
            self._files.keep(state)

    def _take(self, count: int, *, state: Saved | None = None, validate: bool = True) -> None:
        self._files.refuse_failed()
        for report, rows in self._metrics(self.unread[:count]):
            saved = None
            if report.saved is not None:  # lost here, it is submitted again: nothing is noted yet
                reached = state is not None and state[0] == report.end
                saved = state if reached else self._actors.get(report.saved)
            del self.unread[0]
            for it, metrics in enumerate(rows, report.start + 1):
                if it > self._read:
                    kept = (saved, report.validate) if it == report.end else (None, None)
                    self._add(it, metrics, *kept, validate=validate)
        if self._logged or not self._window:  # the pace is of what is read from now on
            self._counted, self._clock, self._logged = 0, time.monotonic(), False

    def _add(
        self,
        it: int,
        metrics: Row,
        saved: Saved | None = None,
        scores: Validate | None = None,
        *,
        validate: bool = True,
    ) -> None:
        """The metrics of an iteration; what was saved then, and what scores that."""
        self._read = it
        text = metrics.get("warnings", "")
        if text not in self._printed:
            say(text, level="warning", iteration=it)
            self._printed.add(text)
        self._window.append(metrics)
        self._callbacks.iteration(it, metrics)
        if scores or it % self._run.experiment.log_every == 0:
            self._row(it, saved, scores, validate=validate)

    def validate_last(self) -> None:
        """Validate the last checkpoint if it is not; untrained weights are saved and validated."""
        last = self._files.last
        if self._run.experiment.iterations == 0 and not last:
            refs, validate = due(self._run.experiment, self._actors, 0)
            self._keep(self._actors.get(refs), validate, {"iteration": 0})
        elif last and not last.validated:
            saved = self._files.saved()
            assert saved is not None
            row = self._open or {"iteration": last.iteration}
            weights = saved[2].get("average", saved[1])
            it = max(0, last.iteration - 1)
            validate = scoring(self._run.experiment, self._actors, weights, it)
            self._validate(self._with_rows(validate, saved), row)

    def _metrics(self, reports: list[IterationRefs]) -> Iterator[tuple[IterationRefs, list[Row]]]:
        """Reports with their rows; where one has none to give, those before, and its error."""
        known = self._actors.rows

        def rows(report: IterationRefs, read: Row | list[Row] | None = None) -> list[Row]:
            if report.end in known:  # its block has broken after that
                return [known[it] for it in range(report.start + 1, report.end + 1)]
            found = self._actors.get(cast(Any, report.metrics)) if read is None else read
            listed: list[Row] = found if isinstance(found, list) else [found]
            self._counted += len(listed)
            return listed

        try:
            read = self._actors.get([cast(Any, report.metrics) for report in reports])
        except (FloatingPointError, ActorLost):
            for report in reports:
                yield report, rows(report)
            raise
        yield from [
            (report, rows(report, each)) for report, each in zip(reports, read, strict=True)
        ]

    def _row(
        self, it: int, saved: Saved | None, scores: Validate | None, *, validate: bool
    ) -> None:
        """A row of what was read since the last, with a validation where that is due."""
        experiment = self._run.experiment
        pace = self._counted / max(time.monotonic() - self._clock, 1e-9)
        row: Row = {"iteration": it}
        row |= _summary(self._window)
        row |= {"it_per_s": pace, "tasks_per_s": pace * experiment.meta_batch}
        if "steps/after" in row:  # of the environments, by one task
            row["steps_per_s"] = row["steps/after"] * row["tasks_per_s"]
        self._window, self._logged = [], True
        if saved is None or scores is None:
            self._files.log(row)
        elif not validate:
            self._files.log(row)
            self.save(saved)
        else:
            self._keep(saved, scores, row)

    def _keep(self, saved: Saved, validate: Validate, row: Row) -> None:
        """Log a row, save its checkpoint, validate that and log the scores, in a line of their own.

        Raises:
            ValueError: the validation failed; names the part of the experiment that did.
        """
        self._files.log(row, shown={})
        self._files.keep(saved)
        self._validate(self._with_rows(validate, saved), row)

    def _with_rows(self, validate: Validate, saved: Saved) -> Validate:
        """Where there are tables, scores the rows that held-out tasks touch of a state."""
        if not self._run.seeded.tables:
            return validate
        return self._held_out.scoring(saved)

    def _validate(self, validate: Validate, row: Row) -> None:
        try:
            scores, path = self._scored(validate, row["iteration"])
        except ActorLost:
            self._open = row
            raise
        self._open = {}
        row |= scores
        self._files.log({"iteration": row["iteration"], **scores}, shown=row)
        self._files.judge(path)
        self._callbacks.validation(row)

    def _scored(self, validate: Validate, iteration: int) -> tuple[Row, float]:
        """The scores for a row, and the one by which checkpoints are chosen."""
        run = self._run
        metric = run.experiment.task.metric
        try:
            parts = [part for part in self._actors.get(validate()) if part]
            scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ValueError as error:
            kept = f"; its checkpoint is kept, --resume {run.path} goes on from there"
            last = self._files.last
            raise ValueError(
                f"the validation at iteration {iteration} failed: {error}"
                f"{'' if last and last.saved else kept}"
            ) from error
        row: Row = {f"val/{name}": float(by[:, -1].mean()) for name, by in scores.items()}
        for name in (metric, *run.experiment.task.other_scores):
            row[f"val/{name}/before"] = float(scores[name][:, 0].mean())
            for step, column in enumerate(scores[name].T[1:], 1):
                row[f"val/{name}/{step}"] = float(column.mean())
        # Over the whole path, so that a good last step hides no bad first one.
        path = float(scores[metric][:, -run.experiment.test_steps :].mean())
        row[f"val/{metric}/path"] = path
        return row, path


def due(experiment: Experiment, actors: ActorGroup, it: int) -> tuple[Ref[Saved], Validate]:
    """What the server holds after iteration `it`, to be saved, and what is to validate it then."""
    weights = actors.server.eval_parameters.remote()
    return actors.server.state.remote(), scoring(experiment, actors, weights, it)


def scoring(
    experiment: Experiment, actors: ActorGroup, weights: Ref[np.ndarray] | np.ndarray, it: int
) -> Validate:
    """What has weights [size] scored by the shards, as those of iteration `it`."""
    tasks, steps = experiment.validation_tasks, experiment.test_steps

    def validate() -> list[Ref[dict[str, np.ndarray]]]:
        return [
            actors.shard(slice).scores.remote(
                weights, it, split="val", tasks=tasks, steps=steps, slice=slice
            )
            for slice in range(actors.slices)
        ]

    return validate


def _summary(window: list[Row]) -> Row:
    """The means of the metrics since the last row; of tasks that were skipped, count and names."""
    latest = {name: value for each in window for name, value in each.items()}  # some not by each
    names = [name for name, value in latest.items() if not isinstance(value, str)]
    row: Row = {}
    for name in names:
        numbers = [each[name] for each in window if not math.isnan(each.get(name, math.nan))]
        row[name] = sum(numbers) / len(numbers) if numbers else math.nan
    skipped = " ".join(filter(None, (each.get("skipped/tasks", "") for each in window)))
    return row | ({"skipped": len(skipped.split()), "skipped/tasks": skipped} if skipped else {})
