"""Trials: the rows of a search's table, and the record from which a search that was killed goes on.

trials.jsonl    a line for each trial that was drawn, and for each that ended
trials.csv      the table, best first: written anew after each end
best.yaml       the recipe of the best so far, to be trained as long as the recipe says
"""

import csv
import io
import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from maml_dist.config.compose import override
from maml_dist.config.recipe import Config
from maml_dist.core.schema import from_json
from maml_dist.loggers.lines import say
from maml_dist.runs.folder import read_bounded, replace
from maml_dist.runs.growing_file import GrowingFile
from maml_dist.tuning.draws import Draw, Draws, Values
from maml_dist.tuning.judge import Judge

RECORD, TABLE, BEST = "trials.jsonl", "trials.csv", "best.yaml"
BYTES = 200_000_000  # of a record, at the most

Ended = Literal["finished", "stopped", "diverged", "failed"]


@dataclass
class End:
    """How a trial ended."""

    status: Ended
    iteration: int = 0  # of its last validation
    scores: list[float] | None = None  # of its best validation; None where none is finite
    seconds: float = 0.0  # of training
    error: str = ""  # the line that says why it failed


@dataclass
class Line:
    """A line of the record: of a trial that was drawn, or that ended."""

    trial: int
    values: dict[str, Any] | None = None
    kept: dict[str, Any] | None = None
    end: End | None = None


@dataclass
class Trial:
    """A row of the table; it changes while the trial runs."""

    number: int  # from 0; the name of its folder
    draw: Draw
    status: str = "waiting"
    end: End = field(default_factory=lambda: End("failed"))  # so far
    diverged: bool = False

    @property
    def values(self) -> Values:
        """The searched keys."""
        return self.draw.values

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.status in get_args(Ended)

    @property
    def counts(self) -> bool:
        """Whether it may be the best."""
        return self.end.scores is not None and self.status not in ("failed", "diverged")

    def __str__(self) -> str:
        values = "  ".join(f"{key}={text(value)}" for key, value in self.values.items())
        end, score = self.end, texts(self.end.scores)
        return f"{values}  score={score} at {end.iteration}  {self.status}  {end.error}".rstrip()


class Trials:
    """All trials of a search, in its folder."""

    def __init__(self, folder: Path, judge: Judge, base: Config, lines: list[Line]) -> None:
        """`base` is the recipe that is searched, `lines` what was recorded before."""
        self.folder, self.judge, self._base = folder, judge, base
        self.all: dict[int, Trial] = {}
        for line in lines:
            self._apply(line)
        self._record: GrowingFile | None = None  # opened when there is something to add

    def drawn(self, number: int, draw: Draw) -> Trial:
        """A new trial; it is recorded before it starts."""
        self._add(Line(number, draw.values, draw.kept))
        return self.all[number]

    def ended(self, trial: Trial, status: Ended) -> None:
        """The end of a trial: recorded, and the table and the best written anew."""
        trial.end.status = status
        self._add(Line(trial.number, end=trial.end))
        self.write()

    def write(self) -> None:
        """Write the table and the best so far."""
        columns, rows = self.table()
        content = io.StringIO()
        csv.writer(content).writerows([columns, *rows])
        replace(self.folder / TABLE, content.getvalue().encode())
        if best := self.best:
            scores = ", ".join(
                f"{name} {score}"
                for name, score in zip(self.judge.metrics, best.end.scores or [], strict=True)
            )
            comment = f"# trial {best.number}: {scores} within {best.end.iteration} iterations\n"
            recipe = yaml.safe_dump(override(self._base, best.values), sort_keys=False)
            replace(self.folder / BEST, f"{comment}{recipe}".encode())

    @property
    def best(self) -> Trial | None:
        """The trial with the best score by the first metric."""
        counting = [trial for trial in [*self.all.values()] if trial.counts]
        return min(counting, key=self._rank, default=None)

    @property
    def ranked(self) -> list[Trial]:
        """All of them, the best first."""
        return sorted(self.all.values(), key=self._rank)

    @property
    def front(self) -> list[Trial]:
        """Those than which no other is better in one metric and as good in all."""
        counting = [trial for trial in self.all.values() if trial.counts]
        places = self.judge.front([trial.end.scores or [] for trial in counting])
        return [counting[place] for place in places]

    @property
    def counts(self) -> Counter[str]:
        """How many there are of each status."""
        return Counter(trial.status for trial in [*self.all.values()])  # a view asks meanwhile

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The names of the columns, and the rows."""
        keys = list(dict.fromkeys(key for trial in self.all.values() for key in trial.values))
        metrics = self.judge.metrics
        scores = ["score"] if len(metrics) == 1 else list(metrics)
        columns = ["trial", *keys, "iterations", *scores, "seconds", "status", "error"]
        rows = [
            [
                trial.number,
                *(trial.values.get(key) for key in keys),
                trial.end.iteration,
                *(trial.end.scores or [math.nan] * len(metrics)),
                round(trial.end.seconds, 1),
                trial.status,
                trial.end.error,
            ]
            for trial in self.ranked
        ]
        return columns, rows

    def _rank(self, trial: Trial) -> tuple[bool, bool, float, int]:
        scores = trial.end.scores
        first = self.judge.signed(scores)[0] if scores else 0.0
        return not trial.counts, scores is None, first, trial.number

    def _add(self, line: Line) -> None:
        if self._record is None:
            there = read_bounded(self.folder / RECORD, most=BYTES) if self.all else b""
            whole = there.rfind(b"\n") + 1  # without a line that a kill has cut
            self._record = GrowingFile(self.folder / RECORD, size=whole, meanwhile="")
        self._record.add(_json(line).encode())
        self._record.write()
        with (self.folder / RECORD).open("rb") as written:
            os.fsync(written.fileno())  # before a run that it speaks of begins
        self._apply(line)

    def _apply(self, line: Line) -> None:
        if line.end:
            trial = self.all[line.trial]
            trial.status, trial.end = line.end.status, line.end
        elif line.values is not None and line.kept is not None:
            self.all[line.trial] = Trial(line.trial, Draw(line.values, line.kept))


def read_record(folder: Path) -> list[Line]:
    """What was recorded of a search; a last line that a kill has cut is left out.

    Raises:
        ValueError: the file is missing, or none of a search; names the line.
    """
    path = folder / RECORD
    if not path.exists():
        return []
    *texts, _ = read_bounded(path, most=BYTES).split(b"\n")
    lines: list[Line] = []
    drawn: set[int] = set()
    ended: set[int] = set()
    for number, each in enumerate(texts, 1):
        where = f"{path}, line {number}"
        line: Line = from_json(each, Line, where)
        new = line.end is None
        if (
            new == (line.trial in drawn)
            or line.trial in ended
            or (new and (line.values is None or line.kept is None))
        ):
            raise ValueError(f"{where}: trial {line.trial} is not one that can be there")
        (drawn if new else ended).add(line.trial)
        lines.append(line)
    return lines


def draw_again(draws: Draws, trials: Trials, lines: list[Line]) -> None:
    """Ask and tell what an earlier process has, in its order."""
    for line in lines:
        trial = trials.all[line.trial]
        if line.end:
            tell(draws, trial)
        else:
            draws.drawn(trial.number, trial.draw)


def tell(draws: Any, trial: Trial) -> None:
    """Tell what draws of a trial that has ended."""
    scores = trial.end.scores if trial.counts else None
    try:
        draws.tell(trial.number, scores, failed=trial.status == "failed")
    except Exception as error:  # of the study's storage: the record has it, and tells it again
        line = str(error).splitlines()[:1]
        say(f"the study was not told of trial {trial.number}: {line}", level="warning")


def texts(scores: list[float] | None) -> str:
    """Scores as a line shows them."""
    return " ".join(map(text, scores)) if scores else "-"


def text(value: Any) -> str:
    """A value as a table shows it."""
    return (
        "-"
        if value is None or value != value
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


def _json(line: Line) -> str:
    content: dict[str, Any] = {"trial": line.trial}
    if line.end:
        content["end"] = vars(line.end)
    else:
        content |= {"values": line.values, "kept": line.kept}
    return json.dumps(content) + "\n"
