"""The recorder: reads what the loop submitted; writes metrics and checkpoints, and validates.

A checkpoint is written, and then the weights in it are scored on held-out tasks: what fails in
scoring, or is killed, does not cost the checkpoint; --resume scores it first.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from maml_dist.config.experiment import Experiment
from maml_dist.runs.run import Run
from maml_dist.runtime.backend import ActorGroup
from maml_dist.runtime.remote import Ref
from maml_dist.runtime.server import Saved

Row = dict[str, Any]
Validate = Callable[[], list[Ref[dict[str, np.ndarray]]]]  # to each shard's scores


class IterationRefs(NamedTuple):
    """What is read of an iteration later: references."""

    iteration: int
    metrics: Ref[Row]
    saved: Ref[Saved] | None  # the server's state, where a checkpoint is due
    validate: Validate | None  # then scores that


def record(
    run: Run,
    actors: ActorGroup,
    batches: Iterator[list[IterationRefs]],
    *,
    log: Callable[[Row], None],
    on_validation: Callable[[Row], None],
) -> None:
    """Read the loop's reports: rows of metrics, validations, checkpoints."""
    experiment = run.experiment
    window: list[Row] = []  # the metrics since the last row
    counted, clock = 0, time.monotonic()
    printed = {""}
    for batch, read in _read(actors, batches):
        for text in {metrics.get("warnings", "") for metrics in read} - printed:
            print(text, file=sys.stderr)
            printed.add(text)
        counted += len(batch)
        pace = counted / max(time.monotonic() - clock, 1e-9)
        for report, metrics in zip(batch, read, strict=False):
            window.append(metrics)
            if report.validate is None and report.iteration % experiment.log_every:
                continue
            row: Row = {"iteration": report.iteration}
            row |= _summary(window)
            row |= {"it_per_s": pace, "tasks_per_s": pace * experiment.meta_batch}
            if "steps/after" in row:  # of the environments, by one task
                row["steps_per_s"] = row["steps/after"] * row["tasks_per_s"]
            if report.saved is None or report.validate is None:
                log(row)
            else:
                refs = report.saved, report.validate
                keep(run, actors, *refs, row, log=log, on_validation=on_validation)
            window = []
        if not window:
            counted, clock = 0, time.monotonic()


def _read(
    actors: ActorGroup, batches: Iterator[list[IterationRefs]]
) -> Iterator[tuple[list[IterationRefs], list[Row]]]:
    """Reports with their metrics; where a task diverged, those before it, and then its error."""
    for batch in batches:
        read: list[Row] = []
        try:
            read = actors.get([report.metrics for report in batch])
        except FloatingPointError:
            for report in batch:
                try:
                    read.append(actors.get(report.metrics))
                except FloatingPointError:
                    break
            yield batch, read
            raise
        yield batch, read


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


def due(experiment: Experiment, actors: ActorGroup, it: int) -> tuple[Ref[Saved], Validate]:
    """What the server holds after iteration `it`, to be saved, and what is to validate it then."""
    meta = actors.server.eval_parameters.remote()
    tasks, steps = experiment.validation_tasks, experiment.test_steps

    def validate() -> list[Ref[dict[str, np.ndarray]]]:
        return [
            shard.scores.remote(meta, it, split="val", tasks=tasks, steps=steps)
            for shard in actors.shards
        ]

    return actors.server.state.remote(), validate


def keep(
    run: Run,
    actors: ActorGroup,
    saved: Ref[Saved],
    validate: Validate,
    row: Row,
    *,
    log: Callable[[Row], None],
    on_validation: Callable[[Row], None],
) -> None:
    """Write a checkpoint, validate it and log its row, which is logged whatever fails.

    Args:
        run: the run.
        actors: its actors.
        saved: the server's state, by reference.
        validate: scores it.
        row: the metrics of the iterations before; the validation's join them.
        log: takes the row.
        on_validation: takes it too, when all went well.

    Raises:
        ValueError: the validation failed; names the part of the experiment that did.
        OSError: the checkpoint cannot be written; those before are whole.
    """
    try:
        run.save(actors.get(saved))
        score = _scored(run, actors, validate, row)
    finally:
        log(row)
    run.judge(score)
    on_validation(row)


def _scored(run: Run, actors: ActorGroup, validate: Validate, row: Row) -> float:
    """Put the scores into the row; returns the one by which checkpoints are chosen."""
    metric = run.experiment.task.metric
    try:
        parts = [part for part in actors.get(validate()) if part]
        scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise ValueError(
            f"the validation at iteration {row['iteration']} failed: {error}; its checkpoint is "
            f"kept, --resume {run.path} goes on from there"
        ) from error
    row |= {f"val/{name}": float(by[:, -1].mean()) for name, by in scores.items()}
    row[f"val/{metric}/before"] = float(scores[metric][:, 0].mean())
    # Over the whole path, so that a good last step hides no bad first one.
    path = float(scores[metric][:, -run.experiment.test_steps :].mean())
    row[f"val/{metric}/path"] = path
    return path
