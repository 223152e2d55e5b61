"""Metrics: flat dicts into one sink: a JSON-lines file, TensorBoard events, a progress line."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maml_dist.core.schema import from_json
from maml_dist.runs import tensorboard
from maml_dist.runs.folder import read_bounded, refuse_link, replace
from maml_dist.runs.growing_file import GrowingFile
from maml_dist.runs.lock import Held
from maml_dist.runs.progress import progress
from maml_dist.runs.writer import Writer

METRICS_BYTES = 2_000_000_000  # at the most


class Metrics:
    """Where the numbers of a run go. Rows after `start` (of a run that was killed) are dropped."""

    def __init__(
        self,
        folder: Path,
        writer: Writer,
        *,
        start: int,
        total: int,
        quiet: bool = False,
        held: Held | None = None,
        begins: bytes | None = b"",
    ) -> None:
        """`writer` writes them; raises OSError where the rows that there are cannot be.

        `begins` is what TensorBoard's events begin with; None: none are written.
        """
        path, events = folder / "metrics.jsonl", folder / "tensorboard"
        refuse_link(events)
        content = b""
        if os.path.lexists(path):
            kept = [row for row in read(path) if row["iteration"] <= start]
            content = "".join(json.dumps(row) + "\n" for row in kept).encode()
            replace(path, content)
        self.rows = GrowingFile(
            path, size=len(content), meanwhile="rows of metrics are kept", held=held
        )
        self._events = GrowingFile(
            events / tensorboard.file_name(),
            own_folder=True,
            meanwhile="events are kept",
            held=held,
        )
        writer.add(self.rows)
        self._shown = begins is not None
        if begins is not None:
            self._events.add(tensorboard.opening(start + 1) + begins)
            writer.add(self._events)
        self._progress = progress(start, total, quiet=quiet)

    def log(self, row: dict[str, Any], *, shown: dict[str, Any] | None = None) -> None:
        """One flat row; its `iteration` says when. The progress line shows it, or `shown`."""
        numbers = {name: value if _is_sound(value) else None for name, value in row.items()}
        self.rows.add((json.dumps(numbers) + "\n").encode())  # JSON has no infinity
        scalars = {
            name: value
            for name, value in numbers.items()
            if name != "iteration" and not isinstance(value, str | None)
        }
        if self._shown:
            self._events.add(tensorboard.scalars(scalars, row["iteration"]))
        shown = row if shown is None else shown
        if shown:
            self._progress.show(shown)

    def close(self) -> None:
        """End the progress line."""
        self._progress.close()


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
