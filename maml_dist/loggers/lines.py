"""Lines: what a command says while it works: text, or with `--log-format json` objects of JSON.

{"time": "2026-11-28T12:00:00.000+00:00", "level": "info", "message": "…", "iteration": 100, …}
"""

import json
import math
import sys
import threading
import time
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("text", "json")
WIDE = 200  # columns of a table that no terminal shows
MINUTE = 60.0  # seconds
Level = Literal["info", "warning", "error"]

_format = "text"  # of this process
_one_at_a_time = threading.Lock()
_show_warning = warnings.showwarning  # Python's own


def use_format(name: str) -> None:
    """Say everything in one of FORMATS from now on; in JSON that takes in Python's warnings."""
    global _format
    _format = name
    warnings.showwarning = _say_warning if name == "json" else _show_warning


def is_json() -> bool:
    """Whether lines are objects of JSON."""
    return _format == "json"


def say(
    message: str,
    *,
    level: Level = "info",
    clock: bool = False,
    out: bool = False,
    **fields: Any,
) -> None:
    """Say a line on stderr, or on stdout if `out`.

    Args:
        message: the text.
        level: how bad it is.
        clock: whether the text begins with the time; an object always has it.
        fields: what an object says besides: numbers, texts, lists and dicts of these. What has
            names of a user's is one of them.
    """
    stream = sys.stdout if out else sys.stderr
    if stream is None:  # closed
        return
    if is_json():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "message": message, **_sound(fields)}
        said = json.dumps(line, default=str)
    else:
        said = f"{time.strftime('%H:%M:%S')} {message}" if clock else message
    with _one_at_a_time:  # and each in one piece
        stream.write(f"{said}\n")
        stream.flush()


def show_table(table: "Table") -> None:
    """Print a table on stdout: as wide as the terminal, or where there is none as it needs."""
    from rich.console import Console

    if sys.stdout is not None:
        Console(width=None if sys.stdout.isatty() else WIDE).print(table)


class Seldom:
    """Says one line a minute of those that it is given."""

    def __init__(self) -> None:
        self._next = 0.0

    def say(self, message: str, *, clock: bool = False) -> None:
        """Say it, or not."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + MINUTE
            say(message, clock=clock)


def duration(seconds: float) -> str:
    """In words: 90 s, 35 min, 12.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _sound(value: Any) -> Any:
    """The same without what JSON lacks: a number that is not finite is null."""
    if isinstance(value, dict):
        return {str(name): _sound(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(each) for each in value]
    if getattr(value, "ndim", None) == 0:  # a scalar of numpy's
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    say(str(message), level="warning", category=category.__name__)
