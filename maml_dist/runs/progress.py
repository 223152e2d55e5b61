"""Progress: what a run shows while it trains, a live line, or a plain one now and then."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from maml_dist.loggers.lines import is_json, say


def progress(start: int, total: int, *, quiet: bool) -> Any:
    """What shows rows of metrics, by `show`, until it is closed."""
    if quiet:
        return _Quiet()
    live = sys.stderr.isatty() and not is_json()
    return _Bar(start, total) if live else _Lines(total)


def _text(row: dict[str, Any]) -> str:
    shown = {"it_per_s": "it/s", "tasks_per_s": "tasks/s"}
    if "return/after" in row:  # rollouts, whose loss tells nothing
        shown |= {"steps_per_s": "steps/s", "return/before": "before", "return/after": "after"}
        shown |= {"kl": "KL", "entropy/after": "entropy", "explained/after": "explained"}
    else:
        shown |= {"loss/before": "before", "loss/after": "after"}
    parts = [f"{row[key]:.4g} {name}" for key, name in shown.items() if key in row]
    parts += [f"{name} {row[name]:.4g}" for name in row if _is_shown(name)]
    return "  ".join(parts)


def _is_shown(name: str) -> bool:
    """Whether it is a score of a validation, other than after one of the steps."""
    return name.startswith("val/") and not name.rpartition("/")[2].isdigit()


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
    """A plain line now and then, where there is no terminal, or of JSON, with all of the row."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._next = 0.0

    def show(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if now >= self._next or row["iteration"] == self._total:
            at, pace = row["iteration"], row.get("it_per_s")
            left = (self._total - at) / pace if pace else None  # none: before the first is known
            said = f"{at}/{self._total}  {_text(row)}"
            said += "" if left is None else f"  {left:.0f} s left"
            say(said, iteration=at, iterations=self._total, seconds_left=left, row=row)
            self._next = now + 10

    def close(self) -> None: ...
