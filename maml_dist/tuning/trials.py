"""Trials: the rows of a search's table, kept while Ray Tune runs them."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WORST = sys.float_info.max  # before the first finite score; ASHA cannot interpolate infinity


@dataclass
class Trial:
    """A row of the table; it changes while the trial runs."""

    name: str  # of its folder
    values: dict[str, Any]  # the searched keys
    iteration: int = 0  # reached at its last validation
    score: float | None = None  # the best so far; None before the first
    status: str = "interrupted"  # until Tune says how it ended
    error: str = ""  # the last line of what made it fail

    @property
    def counts(self) -> bool:
        """Whether it may be the best."""
        return self.score is not None and not self.error

    def __str__(self) -> str:
        values = "  ".join(f"{key}={_text(value)}" for key, value in self.values.items())
        end = f"score={_text(self.score)} at {self.iteration}  {self.status}  {self.error}"
        return f"{values}  {end}".rstrip()


def watch(iterations: int, *, num_samples: int) -> Any:
    """What Tune calls as trials go on: keeps their rows, prints a line for each that ended."""
    from ray import tune

    class Watch(tune.Callback):
        def __init__(self) -> None:
            self.rows: dict[str, Trial] = {}

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.rows[trial.trial_id] = Trial(trial.trial_id, dict(trial.config))

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
        ) -> None:
            row = self.rows[trial.trial_id]
            row.iteration = result["iteration"]
            row.score = result["best"] if abs(result["best"]) < WORST else None

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            row = self.rows[trial.trial_id]
            self._end(row, "finished" if row.iteration >= iterations else "stopped")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            row = self.rows[trial.trial_id]
            row.error = Path(trial.error_file).read_text().strip().splitlines()[-1]
            self._end(row, "failed")

        def _end(self, row: Trial, status: str) -> None:
            row.status = status
            ended = sum(each.status != "interrupted" for each in self.rows.values())
            print(f"{ended}/{num_samples}  {row}", file=sys.stderr, flush=True)

    return Watch()


def show(trials: list[Trial], title: str, *, file: Path) -> None:
    """Write the table of trials as CSV, and print it shorter, the errors below it."""
    searched = trials[0].values if trials else ()
    columns = ["trial", *searched, "iterations", "score", "status", "error"]
    rows = [
        [row.name, *row.values.values(), row.iteration, row.score, row.status, row.error]
        for row in trials
    ]
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([columns, *rows])
    table = Table(title=title)
    for column in columns[:-1]:
        table.add_column(column.rpartition(".")[2], overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row[:-1]))
    Console().print(table)
    for trial in trials:
        if trial.error:
            print(f"{trial.name}: {trial.error}")


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
