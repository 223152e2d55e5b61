"""Pulse: an actor's answer while it works: where it is, what it does, and for how long."""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

REMEMBERED = 32  # last times, of which the median is typical


class Pulse(NamedTuple):
    """One answer."""

    node: str  # Ray's name of the machine
    host: str  # its address
    pid: int
    work: str  # the method that runs; "" between two
    seconds: float  # for which it has run, or nothing has
    typical: float  # seconds of this actor's gradients; 0: not known yet


class Pace:
    """What an actor does, and how long it takes."""

    def __init__(self, *, node: str, host: str) -> None:
        self._node, self._host = node, host
        self._began = time.monotonic()
        self._work, self._since = "", self._began
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._spent: dict[str, float] = {}  # seconds on each work that has ended

    @contextmanager
    def of(self, work: str, *, timed: bool = False) -> Iterator[None]:
        """Inside, the actor does this; what is `timed` tells how long that takes it.

        One inside another interrupts that, which then goes on.
        """
        outer, asked = self._work, self._since
        began = time.monotonic()
        self._work, self._since = work, began
        try:
            yield
        finally:
            ended = time.monotonic()
            self._work, self._since = outer, asked if outer else ended
            self.add(work, ended - began)
            if outer:
                self.add(outer, began - ended)
            if timed:
                self._times.append(ended - began)

    def add(self, work: str, seconds: float) -> None:
        """So many seconds were spent on this."""
        self._spent[work] = self._spent.get(work, 0.0) + seconds

    @property
    def busy(self) -> float:
        """Seconds spent on all work that has ended."""
        return sum(self._spent.values())

    def spent(self) -> dict[str, float]:
        """Seconds on each work since the actor was made, and `waiting`, the rest; any thread."""
        work, since, now = self._work, self._since, time.monotonic()
        found = dict(self._spent)
        if work:
            found[work] = found.get(work, 0.0) + now - since
        waiting = now - self._began - sum(found.values())
        return {name: max(0.0, by) for name, by in found.items()} | {"waiting": max(0.0, waiting)}

    def pulse(self) -> Pulse:
        """Now; from any thread."""
        seconds = time.monotonic() - self._since
        typical = median(self._times) if self._times else 0.0
        return Pulse(self._node, self._host, os.getpid(), self._work, seconds, typical)
