"""Failures: how many in a row a run survives, and which task is to blame for them."""

from collections.abc import Iterable

ENDED = 3  # processes that a task ends in a row, on machines that answer, before it ends the run


class Failures:
    """Those at one iteration: once that has got by, they are forgotten."""

    def __init__(self, *, most: int, meta_batch: int, slices: int) -> None:
        """`most`: in a row, that a run survives."""
        self._most, self._meta_batch, self._slices = most, meta_batch, slices
        self._it = -1
        self._lines: list[str] = []  # of the failure under way
        self._ending: set[int] = set()  # slices whose shard's process it has ended
        self._stories: list[str] = []  # of each failure in a row
        self._ended: list[set[int]] = []

    def note(self, line: str, *, slices: Iterable[int] = ()) -> None:
        """What was lost, and the slices that a process computed which has ended of itself."""
        self._lines.append(line)
        self._ending |= set(slices)

    @property
    def in_a_row(self) -> int:
        """How many there were at this iteration."""
        return len(self._stories)

    def count(self, it: int, reason: str = "an answer was lost", *, furthest: int = 0) -> None:
        """The failure under way is one at iteration `it`; `reason` where nothing else is noted.

        `furthest`: the last that was submitted. Up to there it may have been any, where the state
        is taken from before.

        Raises:
            ChildProcessError: it is one too many; says what was lost, and whose fault that is.
        """
        if it > self._it:
            self._stories, self._ended = [], []
            self._it = max(it, furthest)
        self._stories.append(", ".join(self._lines) or reason)
        if self._ending or self._lines:  # else it is the echo of one that is noted
            self._ended.append(self._ending)
        self._lines, self._ending = [], set()
        if len(self._ended) >= ENDED and (common := set.intersection(*self._ended[-ENDED:])):
            tasks = [task for task in range(self._meta_batch) if task % self._slices in common]
            named = ", ".join(map(str, tasks[:20])) + " …" * (len(tasks) > 20)
            until = f" to {self._it}" if self._it > it else ""
            raise ChildProcessError(
                f"iteration {it}{until}, or one collected with it, has ended {ENDED} processes in "
                f"a row, on machines that answer: one of its tasks {named} does (memory, or a "
                "crash in native code)"
            )
        if len(self._stories) > self._most:
            raise ChildProcessError(
                f"{len(self._stories)} failures at iteration {it}, and it has not got by "
                f"(max_failures): {'; '.join(dict.fromkeys(self._stories))}"
            )
