"""One part of the benchmark: a process of its own with a limit of its own, and what it left."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_rows import Row, read

GRACE = 5.0  # seconds between being asked to end and being ended
TOLD = 5  # last lines of a part that failed


class Part(NamedTuple):
    """What is run, and its share of the time."""

    name: str
    command: tuple[str, ...]
    share: float
    writes_rows: bool = True  # takes --rows and --limit


def run(part: Part, folder: Path, *, limit: float, environment: dict[str, str]) -> Row:
    """Run a part for `limit` seconds at the most; whatever happens to it, what it found so far.

    Its rows lie in `folder`/NAME.jsonl, what it says in NAME.log.
    """
    rows, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    rows.unlink(missing_ok=True)
    command = [*part.command]
    if part.writes_rows:
        command += ["--rows", str(rows), "--limit", f"{limit - 2 * GRACE:.0f}"]
    begun = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | environment,
            start_new_session=True,
        )
        status = _waited(process, limit)
    found: Row = {
        "part": part.name,
        "status": "done" if status == 0 else "out of time" if status is None else "failed",
        "seconds": round(time.monotonic() - begun, 1),
        "limit": round(limit, 1),
        "rows": read(rows),
    }
    if not part.writes_rows or status != 0:
        found["said"] = log.read_text(errors="replace").splitlines()[-TOLD:]
    return found


def _waited(process: "subprocess.Popen[bytes]", limit: float) -> int | None:
    """The exit status; None where the time was over, and the process and its own were ended."""
    try:
        return process.wait(max(0.0, limit - GRACE))
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)  # as Ctrl-C: a Ray of its own ends with it
    except BaseException:  # this process is interrupted
        _signal(process, signal.SIGKILL)
        raise
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()
    return None


def _signal(process: Any, number: int) -> None:
    """To the process group that the part leads, if it is still there."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
