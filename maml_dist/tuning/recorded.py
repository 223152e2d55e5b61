"""Recorded: what a search's `trials.jsonl` holds, each line one that can follow those before.

The report, the table and a search that goes on read it, of a stranger's search too.
"""

from pathlib import Path
from typing import Any

from maml_dist.core.schema import from_json
from maml_dist.core.validation import LARGEST
from maml_dist.runs.folder import read_bounded
from maml_dist.tuning import distributions
from maml_dist.tuning.draws import Draw, Values, keeps
from maml_dist.tuning.record import BYTES, RECORD, End, Exploit, Interval, Line
from maml_dist.tuning.search_space import Search


def read_record(folder: Path, plan: Search) -> list[Line]:
    """What was recorded of a search; a last line that a kill has cut is left out.

    Raises:
        ValueError: the file is none of this search; names the line.
    """
    path = folder / RECORD
    if not path.exists():
        return []
    *texts, _ = read_bounded(path, most=BYTES).split(b"\n")
    lines: list[Line] = []
    course = _Course(plan)
    for number, each in enumerate(texts, 1):
        where = f"{path}, line {number}"
        line: Line = from_json(each, Line, where)
        if wrong := course.follow(line):
            raise ValueError(f"{where}: {wrong}")
        lines.append(line)
    return lines


class _Course:
    """Where the lines so far have led to."""

    def __init__(self, plan: Search) -> None:
        self._plan, self._population = plan, plan.stops == "pbt"
        self._reached: dict[int, int] = {}  # iterations at the end of its last interval, of each
        self._ended: set[int] = set()
        self._exploited_at = 0

    def follow(self, line: Line) -> str:
        """Go on by a line; says what is wrong with it, "" where nothing is."""
        kinds = [line.values, line.interval, line.end, line.exploit]
        if sum(kind is not None for kind in kinds) != 1:
            return "must be one of a draw, an interval, an end and an exploit"
        if line.exploit:
            return self._exploit(line.exploit)
        trial = line.trial
        if line.values is not None:
            return self._draw(trial, Draw(line.values, line.kept or {}))
        if trial is None or trial not in self._reached or trial in self._ended:
            return f"trial {trial} is not one that can be there: it must be drawn, and go on"
        if line.interval:
            return self._interval(trial, line.interval)
        return self._end(trial, line.end) if line.end else ""

    def _draw(self, trial: int | None, draw: Draw) -> str:
        if trial != len(self._reached) or self._exploited_at:
            wanted = "none" if self._exploited_at else len(self._reached)
            return f"trial {trial} is not one that can be there: the next to be drawn is {wanted}"
        self._reached[trial] = 0
        if wrong := self._values(draw.values):
            return f"trial {trial}: {wrong}"
        if draw.kept and not keeps(self._plan, draw):  # of those over seeds nothing is kept
            return f"trial {trial}: kept: is not of its values"
        return ""

    def _interval(self, trial: int, interval: Interval) -> str:
        before, self._reached[trial] = self._reached[trial], interval.iteration
        if not self._population:
            return f"trial {trial}: has an interval, which scheduler=pbt has alone"
        if not before == self._exploited_at < interval.iteration <= LARGEST:
            return f"trial {trial}: an interval cannot end at iteration {interval.iteration} here"
        return self._result(trial, interval)

    def _end(self, trial: int, end: End) -> str:
        self._ended.add(trial)
        if not 0 <= end.iteration <= LARGEST:
            return f"trial {trial}: iteration={end.iteration}: must be from 0 to {LARGEST}"
        return self._result(trial, end)

    def _result(self, trial: int, result: Interval | End) -> str:
        """What is wrong with its scores and seconds."""
        count, scores = max(1, len(self._plan.metrics)), result.scores
        if scores is not None and len(scores) != count:
            return f"trial {trial}: scores={_shown(scores)}: must be {count}"
        if result.seconds < 0:
            return f"trial {trial}: seconds={result.seconds}: must not be negative"
        return ""

    def _exploit(self, exploit: Exploit) -> str:
        at, live = exploit.iteration, self._reached.keys() - self._ended
        if not self._population:
            return "has an exploit, which scheduler=pbt has alone"
        here = at > self._exploited_at and all(self._reached[trial] == at for trial in live)
        if not live or not here or len(self._reached) != self._plan.num_trials:
            return f"an exploit cannot be at iteration {at} here: all trials must have reached it"
        self._exploited_at = at
        sources = {each.source for each in exploit.takeovers}
        for each in exploit.takeovers:
            trial, source = each.trial, each.source
            if not {trial, source} <= live or trial in sources:
                return f"the exploit: trial {trial} cannot take over from trial {source}"
            live.remove(trial)  # it takes over once
            if wrong := self._values(each.values):
                return f"the exploit: trial {trial}: {wrong}"
        return ""

    def _values(self, values: Values) -> str:
        """What is wrong with values: each is there that its conditions want, as it can be drawn."""
        there: Values = {}
        for key in self._plan.order:
            if not self._plan.applies(key, there):
                continue
            if key not in values:
                return f"has no value of {key}"
            distribution, value = self._plan.search[key], values[key]
            if not distributions.gives(distribution, value):
                return f"{key}={_shown(value)}: is not of {_shown(distribution)}"
            there[key] = value
        others = sorted(values.keys() - there.keys())
        return f"{_shown(others[0])} is not searched, or not with these values" if others else ""


def _shown(value: Any) -> str:
    """A value as a line of an error shows it."""
    return f"{value!r:.80}"
