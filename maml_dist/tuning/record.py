"""Record: `trials.jsonl`, a line for all that is decided in a search or has come of it.

A search that was killed goes on from it, and the report is drawn from it. It is plain JSON.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from maml_dist.runs.folder import read_bounded
from maml_dist.runs.growing_file import GrowingFile

RECORD = "trials.jsonl"
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
class Interval:
    """What a trial of a population has got to at the end of an interval."""

    iteration: int
    scores: list[float] | None  # of its run's best validation; None where none is finite
    latest: float | None  # of the last one, by the first metric; None: it diverged
    seconds: float  # of training


@dataclass
class Takeover:
    """A trial goes on from another's checkpoint, with values that are explored from the other's."""

    trial: int
    source: int  # the other
    before: dict[str, Any]  # its own values until then
    values: dict[str, Any]  # and from then on
    error: str = ""  # the line that says why it could not: the trial has failed


@dataclass
class Exploit:
    """What a population made of the end of an interval."""

    iteration: int
    takeovers: list[Takeover]


@dataclass
class Line:
    """A line: of a trial that was drawn, ended its interval, or ended; or of an exploit."""

    trial: int | None = None
    values: dict[str, Any] | None = None
    kept: dict[str, Any] | None = None
    interval: Interval | None = None
    end: End | None = None
    exploit: Exploit | None = None


class Record:
    """The file of a search, added to."""

    def __init__(self, path: Path, *, new: bool) -> None:
        """A last line that a kill has cut is written over; `new`: there is none to go on from."""
        there = b"" if new else read_bounded(path, most=BYTES)
        self._path = path
        self._file = GrowingFile(path, size=there.rfind(b"\n") + 1, meanwhile="")

    def add(self, line: Line) -> None:
        """One more line, on the disk when this returns: before a run that it speaks of begins."""
        content = {name: value for name, value in asdict(line).items() if value is not None}
        self._file.add((json.dumps(content) + "\n").encode())
        self._file.write()
        with self._path.open("rb") as written:
            os.fsync(written.fileno())
