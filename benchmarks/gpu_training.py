"""Omniglot 5-way 1-shot for as long as there is time, and what its metrics say."""

import os
import signal
import statistics
from pathlib import Path
from threading import Timer
from typing import Any

import maml_dist
from benchmarks.gpu_rows import Row
from maml_dist.runs.run import Run

RECIPE = "omniglot-5way-1shot"
NEVER = 10**6  # meta-iterations
SMALL = {
    **{"meta_batch": 4, "filters": 4, "iterations": 4, "log_every": 1, "checkpoint_every": 2},
    **{"validation_tasks": 4, "test_tasks": 4, "engine.batching": "task"},
    "engine.running": "eager",
}


def trained(seconds: float, *, run: Path, local: bool = False, **overrides: Any) -> Run:
    """A run that is interrupted when its time is over; it ends at a checkpoint.

    Raises:
        TimeoutError: training has not begun by then.
    """
    settings = {"iterations": NEVER, "checkpoint_every": 500} | overrides
    stop = Timer(max(1.0, seconds), os.kill, (os.getpid(), signal.SIGINT))  # as Ctrl-C does
    stop.daemon = True
    stop.start()
    try:
        return maml_dist.meta_train(RECIPE, run=run, local=local, progress=False, **settings)
    except KeyboardInterrupt:
        raise TimeoutError(f"training has not begun within {seconds:.0f} s") from None
    finally:
        stop.cancel()


def paces(run: Run) -> Row:
    """How far a run has come, and how fast: in the first row of metrics is what is made once."""
    rows = [row for row in run.metrics if "it_per_s" in row]
    speeds = [row["it_per_s"] for row in rows[1:]]
    return {
        "iterations": rows[-1]["iteration"] if rows else 0,
        "it_per_s": round(statistics.median(speeds), 2) if speeds else None,
    }


def validations(run: Run) -> list[list[float]]:
    """The checkpoints' iterations and accuracies on the validation tasks."""
    return [
        [row["iteration"], round(row["val/accuracy"], 4)]
        for row in run.metrics
        if "val/accuracy" in row
    ]
