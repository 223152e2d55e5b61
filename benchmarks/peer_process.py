"""A library in a process of its own: its threads, its memory, its first iteration.

The process answers one request after the other, so that several of them take turns.
"""

import importlib
import os
import resource
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from ctypes import CDLL
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peer_cases import Case, Workload, read

BURST = 0.05  # seconds of meta-iterations between two readings of the clock
CHECKED = 3  # meta-iterations whose losses must agree
DECAY = 0.9  # of Adam's first moment: after one update it is 0.1 of the meta-gradient
PROC = Path("/proc")
MIB = 2**20

# library -> module and class of its contender, the package that it needs
LIBRARIES = {
    "maml_dist": ("peer_ours", "Ours", "maml_dist"),
    "maml_dist-ray": ("peer_ours", "OursOnRay", "ray"),
    "pytorch": ("peer_torch", "ByHand", "torch"),
    "learn2learn": ("peer_torch", "Learn2Learn", "learn2learn"),
    "higher": ("peer_torch", "Higher", "higher"),
    "torchopt": ("peer_torch", "TorchOpt", "torchopt"),
    "jax": ("peer_jax", "Jax", "jax"),
}


class Contender(ABC):
    """A library at work on a case; nothing is traced or compiled before the first iteration."""

    def __init__(self, case: Case, threads: int) -> None:
        self._batches = case.workload.batches
        self._next = -1

    @abstractmethod
    def iterate(self, count: int) -> list[float]:
        """`count` more meta-iterations, all done; the mean query loss of each."""

    @abstractmethod
    def moment(self) -> np.ndarray:
        """Adam's first moment [size], in the order of the module's parameters."""

    def pace(self, seconds: float) -> list[float]:
        """Seconds an iteration, one for each burst of iterations, `seconds` long."""
        times: list[float] = []
        count, end = 1, time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            clock = time.perf_counter()
            self.iterate(count)
            times.append((time.perf_counter() - clock) / count)
            count = max(1, round(BURST / times[-1]))
        return times

    def one_task(self) -> None:
        """The meta-gradient of one task alone, for its memory."""
        raise NotImplementedError

    def processes(self) -> list[int]:
        """Those whose memory counts besides this one."""
        return []

    def close(self) -> None:  # noqa: B027 - most have nothing
        """Let everything go."""

    def next_batch(self) -> int:
        """The number of the meta-batch whose turn it is."""
        self._next = (self._next + 1) % self._batches
        return self._next


class First(NamedTuple):
    """What the first iterations tell."""

    seconds: float  # of the very first
    losses: list[float]  # of the first few
    gradient: np.ndarray  # [size], the first one


def make(library: str, case: Case, threads: int) -> Contender:
    """The contender of a library; raises ImportError where it is not installed."""
    name, kind, _ = LIBRARIES[library]
    contender: Contender = getattr(importlib.import_module(f"benchmarks.{name}"), kind)(
        case, threads
    )
    return contender


def begin(contender: Contender) -> First:
    """The first iterations."""
    clock = time.perf_counter()
    losses = contender.iterate(1)
    seconds = time.perf_counter() - clock
    gradient = contender.moment() / (1 - DECAY)
    return First(seconds, losses + contender.iterate(CHECKED - 1), gradient)


class Process:
    """A library on a workload, in a fresh process."""

    def __init__(self, library: str, workload: Workload, path: Path, threads: int) -> None:
        context = get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, library, workload, path, threads)
        )
        self._process.start()
        there.close()

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have a request done.

        Raises:
            ChildProcessError: with what went wrong there, in one line.
        """
        try:
            self._pipe.send((what, arguments))
            done, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ChildProcessError(f"ended with code {self._process.exitcode}") from None
        if not done:
            raise ChildProcessError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._pipe.send(("close", ()))
        self._process.join()


def _serve(pipe: Connection, library: str, workload: Workload, path: Path, threads: int) -> None:
    _keep_to(threads)
    contender: Contender | None = None
    memory = Memory([])
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:  # nobody asks any more
            what = "close"
        if what == "close":
            if contender:
                contender.close()
            return
        try:
            answer: Any = None
            if what == "build":
                contender = make(library, read(workload, path), threads)
                memory = Memory([os.getpid(), *contender.processes()])
            elif what == "begin":
                answer = begin(contender)
            elif what == "extra":
                answer = memory.extra()
                memory.forget()
            elif what == "task_memory":
                contender.one_task()  # what is made once is not the task's
                memory = Memory([os.getpid()])
                contender.one_task()
                answer = memory.extra()
            else:
                answer = getattr(contender, what)(*arguments)
            pipe.send((True, answer))
        except Exception as error:  # noqa: BLE001 - whatever a library raises is told
            line = next(iter(str(error).splitlines()), "")
            pipe.send((False, f"{type(error).__name__}: {line}"))


def _keep_to(threads: int) -> None:
    """No more cores than `threads`, for every library alike."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Memory:
    """The resident memory of some processes, beyond what they hold now.

    Where the system does not tell (there is no /proc), the peak of this process alone.
    """

    def __init__(self, processes: list[int]) -> None:
        self._processes = processes
        self.forget()
        self._before = self._read("VmRSS")

    def extra(self) -> float:
        """The most that was held since the last `forget`, in MiB beyond the beginning."""
        return self._read("VmHWM") - self._before

    def forget(self) -> None:
        """Give freed memory back to the system, and forget the peak."""
        if PROC.exists():
            CDLL(None).malloc_trim(0)
            for process in self._processes:
                (PROC / str(process) / "clear_refs").write_text("5")

    def _read(self, name: str) -> float:
        if not PROC.exists():
            unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
        return sum(_status(process, name) for process in self._processes) / 1024


def _status(process: int, name: str) -> int:
    """A number of /proc/<process>/status, KiB."""
    lines = (PROC / str(process) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def descendants(title: str) -> list[int]:
    """The processes below this one whose command line starts with `title`."""
    parents, titles = {}, {}
    for folder in PROC.glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        parents[int(folder.name)] = int(stat[1])
    found, front = [], {os.getpid()}
    while front:
        front = {process for process, parent in parents.items() if parent in front}
        found += [process for process in front if titles[process].startswith(title)]
    return sorted(found)


def missing(library: str) -> bool:
    """Whether the package that a library needs is not there."""
    return find_spec(LIBRARIES[library][2]) is None
