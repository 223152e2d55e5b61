"""Trials: the rows of a search's table.

trials.jsonl    what was decided, and what has come of it: record.py
trials.csv      the table, best first: written anew after each end
best.yaml       the recipe of the best so far, to be trained as long as the recipe says
"""

import csv
import io
import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from maml_dist.config.compose import override
from maml_dist.config.recipe import Config
from maml_dist.loggers.lines import say
from maml_dist.runs.folder import replace
from maml_dist.tuning.draws import Draw, Draws, Values
from maml_dist.tuning.judge import Judge
from maml_dist.tuning.record import RECORD, End, Ended, Exploit, Interval, Line, Record, Takeover
from maml_dist.tuning.trial_run import TRIALS

TABLE, BEST = "trials.csv", "best.yaml"


class Stretch(NamedTuple):
    """A part of what has led to a trial's weights."""

    iteration: int  # before its first
    trial: int  # by which it was trained
    values: Values

    def __str__(self) -> str:
        values = "  ".join(f"{key}={text(value)}" for key, value in self.values.items())
        return f"from {self.iteration}: trial {self.trial}  {values}"


@dataclass
class Trial:
    """A row of the table; it changes while the trial runs."""

    number: int  # from 0
    draw: Draw
    status: str = "waiting"
    end: End = field(default_factory=lambda: End("failed"))  # so far
    diverged: bool = False
    latest: float | None = None  # score of the last validation, by the first metric
    # Of a population:
    reached: int = 0  # iterations of the intervals that have ended
    schedule: list[Stretch] = field(init=False)  # what has led to its weights
    runs: list[str] = field(init=False)  # the names of its folders
    spent: float = 0.0  # seconds of training in those before the last

    def __post_init__(self) -> None:
        self.schedule = [Stretch(0, self.number, self.draw.values)]
        self.runs = [str(self.number)]

    @property
    def values(self) -> Values:
        """The searched keys; where they change in mid-run, the last ones."""
        return self.schedule[-1].values

    @property
    def scheduled(self) -> bool:
        """Whether they have changed."""
        return len(self.schedule) > 1

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.status in get_args(Ended)

    @property
    def counts(self) -> bool:
        """Whether it may be the best."""
        if self.end.scores is None or self.diverged:
            return False
        return self.status not in ("failed", "diverged")

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
        self.exploited_at = 0  # iterations at the last end of an interval of a population
        for line in lines:
            self._apply(line)
        self._record: Record | None = None  # opened when there is something to add

    def drawn(self, number: int, draw: Draw) -> Trial:
        """A new trial; it is recorded before it starts."""
        self._add(Line(number, draw.values, draw.kept))
        return self.all[number]

    def reached(self, trial: Trial, iteration: int) -> None:
        """The end of an interval of a population, for one trial: recorded."""
        end, latest = trial.end, None if trial.diverged else trial.latest
        self._add(Line(trial.number, interval=Interval(iteration, end.scores, latest, end.seconds)))

    def exploited(self, exploit: Exploit) -> None:
        """The end of an interval, for all of them: recorded; the table and the best anew."""
        self._add(Line(exploit=exploit))
        self.write()

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
            recipe = yaml.safe_dump(override(self._base, best.values), sort_keys=False)
            replace(self.folder / BEST, f"{comment(self._about(best))}{recipe}".encode())

    def _about(self, best: Trial) -> list[str]:
        """What best.yaml says of the best trial."""
        scores = ", ".join(
            f"{name} {score}"
            for name, score in zip(self.judge.metrics, best.end.scores or [], strict=True)
        )
        lines = [f"trial {best.number}: {scores} within {best.end.iteration} iterations"]
        if best.scheduled:
            lines += [
                f"a schedule has led there, of whose values this recipe has the last alone; "
                f"the trained run is {TRIALS}/{best.runs[-1]}",
                *(f"  {stretch}" for stretch in best.schedule),
            ]
        return lines

    def path(self, run: str) -> Path:
        """The folder of a trial's run."""
        return self.folder / TRIALS / run

    @property
    def command(self) -> str:
        """What is to be done with the best: its recipe trained; a schedule's weights are there."""
        if (best := self.best) and best.scheduled:
            command, path = "evaluate", self.path(best.runs[-1])
        else:
            command, path = "train", self.folder / BEST
        return f"python -m maml_dist.{command} {shlex.quote(str(path))}"

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
        lineage = ["lineage"] if any(trial.scheduled for trial in self.all.values()) else []
        columns = ["trial", *keys, "iterations", *scores, "seconds", "status", *lineage, "error"]
        rows = [
            [
                trial.number,
                *(trial.values.get(key) for key in keys),
                trial.end.iteration,
                *(trial.end.scores or [math.nan] * len(metrics)),
                round(trial.end.seconds, 1),
                trial.status,
                *([_lineage(trial)] if lineage else []),
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
            self._record = Record(self.folder / RECORD, new=not self.all)
        self._record.add(line)
        self._apply(line)

    def _apply(self, line: Line) -> None:
        if line.exploit:
            for each in line.exploit.takeovers:
                self._take_over(each, line.exploit.iteration)
            self.exploited_at = line.exploit.iteration
        elif line.values is not None and line.trial is not None:
            self.all[line.trial] = Trial(line.trial, Draw(line.values, line.kept or {}))
        elif line.trial is not None:
            trial = self.all[line.trial]
            if end := line.end:
                trial.status, trial.end = end.status, end
            elif at := line.interval:
                trial.status, trial.reached, trial.latest = "waiting", at.iteration, at.latest
                trial.diverged = at.latest is None
                trial.end = End("failed", at.iteration, at.scores, at.seconds)

    def _take_over(self, takeover: Takeover, iteration: int) -> None:
        trial, source = self.all[takeover.trial], self.all[takeover.source]
        if takeover.error:
            trial.end.error = takeover.error
            return
        trial.schedule = [*source.schedule, Stretch(iteration, trial.number, takeover.values)]
        trial.runs.append(f"{trial.number}-{iteration}")
        trial.end.scores = trial.latest = None
        trial.diverged, trial.spent = False, trial.end.seconds


def draw_again(draws: Draws, trials: Trials, lines: list[Line]) -> None:
    """Ask and tell what an earlier process has, in its order."""
    for line in lines:
        if line.trial is not None and line.end:
            tell(draws, trials.all[line.trial])
        elif line.trial is not None and line.values is not None:
            draws.drawn(line.trial, trials.all[line.trial].draw)


def tell(draws: Any, trial: Trial) -> None:
    """Tell what draws of a trial that has ended; nothing where its score is of other values."""
    scores = trial.end.scores if trial.counts and not trial.scheduled else None
    try:
        draws.tell(trial.number, scores, failed=trial.status == "failed" or trial.scheduled)
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
        else _printable(str(value))
    )


def comment(lines: list[str]) -> str:
    """Lines as a comment of YAML, which none of them can end."""
    return "".join(f"# {_printable(line)}\n" for line in lines)


def _printable(line: str) -> str:
    """A text as it is; one with control characters as JSON."""
    return line if line.isprintable() else json.dumps(line)


def _lineage(trial: Trial) -> str:
    """The trials whose weights have led to this one's."""
    first, *later = trial.schedule
    return ", ".join([str(first.trial), *(f"{each.trial} from {each.iteration}" for each in later)])
