"""Metrics: flat dicts into one sink: a JSON-lines file, TensorBoard events, a progress line."""

import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from maml_dist.core.schema import from_json
from maml_dist.runs.folder import naming, read_bounded, replace
from maml_dist.runs.tensorboard import Events

FLUSH_EVERY = 1.0  # seconds
METRICS_BYTES = 2_000_000_000  # at the most


class Metrics:
    """Where the numbers of a run go. Rows after `start` (of a run that was killed) are dropped."""

    def __init__(self, folder: Path, *, start: int, total: int, quiet: bool = False) -> None:
        self._path = folder / "metrics.jsonl"
        kept = [row for row in read(self._path) if row["iteration"] <= start]
        replace(self._path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = self._path.open("a")
        self._events = Events(folder / "tensorboard", start=start + 1)
        self._flushed = time.monotonic()
        self._progress = _progress(start, total, quiet=quiet)

    def log(self, row: dict[str, Any]) -> None:
        """One flat row; its `iteration` says when.

        Raises:
            OSError: it cannot be written; names the path.
        """
        numbers = {name: value if _is_sound(value) else None for name, value in row.items()}
        with naming(self._path):
            self._file.write(json.dumps(numbers) + "\n")  # JSON has no infinity
        for name, value in numbers.items():
            if name != "iteration" and not isinstance(value, str | None):
                self._events.add(name, value, row["iteration"])
        now = time.monotonic()
        validated = any(name.startswith("val/") for name in row)  # its checkpoint comes next
        if validated or now - self._flushed > FLUSH_EVERY:
            with naming(self._path):
                self._file.flush()
            self._flushed = now
        self._progress.show(row)

    def close(self) -> None:
        """Flush everything."""
        self._progress.close()
        try:
            with naming(self._path):
                self._file.close()
        finally:
            self._events.close()


def _is_sound(value: Any) -> bool:
    return isinstance(value, str) or math.isfinite(value)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, one an iteration; a last line cut short by a kill is left out.

    Raises:
        ValueError: the file is no such, or a line is not a flat object with its iteration.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    *lines, cut = read_bounded(path, most=METRICS_BYTES).split(b"\n")
    for number, line in enumerate((*lines, cut), 1):
        where = f"{path}, line {number}"
        try:
            row = from_json(line, dict[str, str | int | float | None], where)
            if type(row.get("iteration")) is not int or row["iteration"] < 0:
                raise ValueError(f"{where}: must have an iteration, 0 or more")
        except ValueError as error:
            if number > len(lines):
                break
            raise ValueError(f"{error}; remove that line to go on without it") from None
        if rows and rows[-1]["iteration"] == row["iteration"]:
            rows[-1] |= row  # its validation came later
        else:
            rows.append(row)
    return rows


def scores(rows: Iterable[dict[str, Any]]) -> dict[int, float | None]:
    """Of the iterations that were validated, the score by which checkpoints are chosen."""
    return {
        row["iteration"]: score
        for row in rows
        for name, score in row.items()
        if name.startswith("val/") and name.endswith("/path") and not isinstance(score, str)
    }


def _progress(start: int, total: int, *, quiet: bool) -> Any:
    if quiet:
        return _Quiet()
    return _Bar(start, total) if sys.stderr.isatty() else _Lines(total)


def _text(row: dict[str, Any]) -> str:
    shown = {"it_per_s": "it/s", "tasks_per_s": "tasks/s"}
    if "return/after" in row:  # rollouts, whose loss tells nothing
        shown |= {"steps_per_s": "steps/s", "return/before": "before", "return/after": "after"}
        shown |= {"kl": "KL", "entropy/after": "entropy", "explained/after": "explained"}
    else:
        shown |= {"loss/before": "before", "loss/after": "after"}
    parts = [f"{row[key]:.4g} {name}" for key, name in shown.items() if key in row]
    parts += [f"{name} {row[name]:.4g}" for name in row if name.startswith("val/")]
    return "  ".join(parts)


class _Quiet:
    def show(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A live line."""

    def __init__(self, start: int, total: int) -> None:
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("starting", total=total, completed=start)
        self._validation: dict[str, Any] = {}
        self._bar.start()

    def show(self, row: dict[str, Any]) -> None:
        self._validation |= {name: row[name] for name in row if name.startswith("val/")}
        text = _text({**row, **self._validation})
        self._bar.update(self._task, completed=row["iteration"], description=text)

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """A plain line now and then, where there is no terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._next = 0.0

    def show(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if now >= self._next or row["iteration"] == self._total:
            left = (self._total - row["iteration"]) / row["it_per_s"] if row.get("it_per_s") else 0
            said = f"{row['iteration']}/{self._total}  {_text(row)}  {left:.0f} s left"
            print(said, file=sys.stderr, flush=True)
            self._next = now + 10

    def close(self) -> None: ...
