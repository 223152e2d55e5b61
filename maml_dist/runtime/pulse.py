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
        self._work, self._since = "", time.monotonic()
        self._times: deque[float] = deque(maxlen=REMEMBERED)

    @contextmanager
    def of(self, work: str, *, timed: bool = False) -> Iterator[None]:
        """Inside, the actor does this; what is `timed` tells how long that takes it."""
        began = time.monotonic()
        self._work, self._since = work, began
        try:
            yield
        finally:
            self._work, self._since = "", time.monotonic()
            if timed:
                self._times.append(self._since - began)

    def pulse(self) -> Pulse:
        """Now; from any thread."""
        seconds = time.monotonic() - self._since
        typical = median(self._times) if self._times else 0.0
        return Pulse(self._node, self._host, os.getpid(), self._work, seconds, typical)
