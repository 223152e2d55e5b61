"""Live: what a search shows while it runs: in a terminal or a notebook a view, else plain lines."""

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live as View
from rich.table import Table
from rich.text import Text

from maml_dist.loggers.lines import duration, is_json, say
from maml_dist.tuning.trials import Trial, Trials, text, texts

EVERY = 30.0  # seconds between plain lines, at the least
SHOWN = 12  # trials that run, in the view


class Live:
    """Of a search of so many trials, each of so many iterations at the most."""

    def __init__(self, trials: Trials, *, total: int, iterations: int) -> None:
        self._trials, self._total, self._iterations = trials, total, iterations
        self._began = time.monotonic()
        self._before = self._done
        self._said = self._began
        self._console = Console(stderr=True)
        live = (self._console.is_terminal or self._console.is_jupyter) and not is_json()
        self._view = View(console=self._console, get_renderable=self._render) if live else None

    def __enter__(self) -> "Live":
        if self._view:
            self._view.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._view:
            self._view.stop()

    def started(self, trial: Trial) -> None:
        """A trial has started."""
        if not self._view:
            values = "  ".join(f"{key}={text(value)}" for key, value in trial.values.items())
            starts = "starts"
            if trial.scheduled:
                source, own = trial.schedule[-2:]
                starts = f"goes on from trial {source.trial}'s checkpoint at {own.iteration}"
            line = f"trial {trial.number} {starts}  {values}"
            self._print(line, trial=trial.number, values=trial.values)

    def changed(self) -> None:
        """A trial has been validated."""
        if not self._view and time.monotonic() - self._said > EVERY:
            self._print(self._summary(), **self._trials.counts)

    def ended(self, trial: Trial) -> None:
        """A trial has ended."""
        number = sum(each.ended for each in self._trials.all.values())
        line = f"{number}/{self._total}  trial {trial.number}  {trial}"
        self._print(line, trial=trial.number, **{**vars(trial.end), "status": trial.status})
        if not self._view:
            self._print(self._summary(), **self._trials.counts)

    def _print(self, line: str, **fields: Any) -> None:
        """Say a line; `fields` go into one of JSON."""
        self._said = time.monotonic()
        if is_json():
            say(line, **fields)
        else:  # above the view
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _summary(self) -> str:
        counts = self._trials.counts
        waiting = self._total - len(self._trials.all) + counts["waiting"]
        parts = [f"{counts['running']} running", f"{waiting} waiting"]
        parts += [
            f"{counts[each]} {each}"
            for each in ("finished", "stopped", "diverged", "failed")
            if counts[each]
        ]
        if (best := self._trials.best) and best.end.scores:
            parts.append(f"best {text(best.end.scores[0])} by trial {best.number}")
        if left := self._left():
            parts.append(left)
        return ", ".join(parts)

    def _left(self) -> str:
        """How long it will take, by how long what has been done has taken."""
        done = self._done - self._before
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self._began) * (self._total - self._done) / done
        return f"{duration(seconds)} left"

    @property
    def _done(self) -> float:
        """Trials that have ended, and the parts of those that run."""
        return sum(
            1.0 if each.ended else min(1.0, each.end.iteration / max(1, self._iterations))
            for each in [*self._trials.all.values()]
        )

    def _render(self) -> Group:
        running = [each for each in [*self._trials.all.values()] if each.status == "running"]
        keys = list(dict.fromkeys(key for each in running for key in each.values))
        table = Table(box=None, pad_edge=False)
        for column in ("trial", *(key.rpartition(".")[2] for key in keys), "iteration", "score"):
            table.add_column(column)
        for each in running[:SHOWN]:
            values = [text(each.values.get(key)) for key in keys]
            table.add_row(
                str(each.number), *values, str(each.end.iteration), texts(each.end.scores)
            )
        more = [Text(f"and {len(running) - SHOWN} more")] if len(running) > SHOWN else []
        return Group(table, *more, Text(self._summary()))
