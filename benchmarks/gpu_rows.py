"""Rows: what a part of the benchmark has found, on disk line by line as soon as it is there."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIB = 2**20
Row = dict[str, Any]


class Rows:
    """A file of JSON lines, and the same on stdout."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def add(self, row: Row) -> None:
        """Write a row; what is written survives this process."""
        line = json.dumps(row)
        print(line, flush=True)
        if self._path:
            with self._path.open("a") as file:
                file.write(line + "\n")


def read(path: Path) -> list[Row]:
    """The rows that are there; of one that was cut off, nothing."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that every part has."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rows", type=Path, metavar="FILE", help="append the rows there too")
    made.add_argument("--limit", type=float, default=120.0, help="seconds that it may take (120)")
    made.add_argument("--dry-run", action="store_true", help="all of it in small")
    return made


def timed(run: Callable[[], Any], seconds: float) -> Row:
    """Milliseconds of a call that is waited for: the median; the first; the device's memory."""

    def once() -> float:
        clock = time.perf_counter()
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - clock

    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = once()
    once()  # where a CUDA graph is recorded
    times, end = [once()], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times.append(once())
    row: Row = {"ms": round(1e3 * statistics.median(times), 3), "first_s": round(first, 2)}
    if DEVICE == "cuda":
        row["peak_mib"] = round(torch.cuda.max_memory_allocated() / MIB)
    return row


@contextmanager
def device_peak(row: Row) -> Iterator[None]:
    """Inside, what all processes hold of the device is looked at; the most of it goes to `row`."""
    if DEVICE == "cpu":
        yield
        return
    done, most = Event(), [0]

    def watch() -> None:
        while not done.wait(0.1):
            free, total = torch.cuda.mem_get_info()
            most[0] = max(most[0], total - free)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        row["device_peak_mib"] = round(most[0] / MIB)


def one_line(error: BaseException) -> str:
    """What went wrong, shortened."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text.strip()}"[:200]
