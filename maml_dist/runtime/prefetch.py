"""The episodes of stored examples, collected for several iterations at once.

Small meta-batches are bound by calls, so those of some iterations are collected together. What
takes its time (files, simulators) goes on ahead in a thread; where it is quick, the thread would
cost more than it saves.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from maml_dist.core.data.episode import Episode

QUICK = 0.005  # seconds within which a meta-batch is collected inline
COLD = 1.0  # seconds that the first one of a process may take more: it imports, and fills caches
AT_ONCE = 64  # iterations collected together at the most
AHEAD = 16  # where collecting takes its time: a start or a resumed run waits for a whole block
BLOCK = 40_000  # input numbers collected together, about


class EpisodePrefetcher:
    """The episodes of each iteration; which iterations a block holds depends on nothing asked."""

    def __init__(self, collect: Callable[[int, int], list[Episode]]) -> None:
        """`collect(first, count)` gives the episodes of each of `count` iterations from `first`."""
        self._collect = collect
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="collect")
        self._next: dict[int, Future[list[Episode]]] = {}
        self._block: list[Episode] = []  # of the iterations from _first on
        self._first = 0
        self._size = 0  # iterations of a block; 0: not known yet
        self._waits = False

    def of(self, it: int) -> Episode:
        """The episodes of iteration `it`; raises what collecting them does."""
        if not self._size:
            self._measure(it)
        first = it - it % self._size  # so that a resumed run collects the same blocks
        if first != self._first or not self._block:
            ready = self._next.pop(first, None)
            self._block = ready.result() if ready else self._collect(first, self._size)
            self._first = first
            if self._waits:
                after = first + self._size
                self._next = {after: self._ahead.submit(self._collect, after, self._size)}
        return self._block[it - first]

    def _measure(self, it: int) -> None:
        """Decide by one iteration how many make a block, and whether it is worth a thread."""
        took, one = self._timed(it)
        if QUICK < took < COLD:
            took, one = self._timed(it)
        self._waits = took > QUICK
        numbers = one.query.x.numel() + sum(batch.x.numel() for batch in one.support[:1])
        most = AHEAD if self._waits else AT_ONCE
        self._size = min(most, max(1, BLOCK // numbers))

    def _timed(self, it: int) -> tuple[float, Episode]:
        """The seconds that an iteration's episodes take, and these."""
        clock = time.monotonic()
        one = self._collect(it, 1)[0]
        return time.monotonic() - clock, one
