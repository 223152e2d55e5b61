"""Pending checkpoints: states of the server that are to be written, and scores to be noted.

Of several that wait for their place only the last and the best are kept: those that the index would
name. A score belongs to its state, written or not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock

from maml_dist.runs.checkpoint_index import better
from maml_dist.runs.checkpoints import Checkpoints
from maml_dist.runs.writer import Output
from maml_dist.runtime.server import Saved


@dataclass
class Due:
    """A checkpoint on its way."""

    iteration: int
    saved: Saved | None  # None: it is written
    score: float | None = None  # None: it diverged
    validated: bool = False
    noted: bool = False  # its score, in the index

    @property
    def done(self) -> bool:
        """Whether nothing of it is to be written."""
        return self.saved is None and (self.noted or not self.validated)


class PendingCheckpoints(Output):
    """The checkpoints of a run in training, as far as they are not written."""

    meanwhile = "the checkpoint is kept"

    def __init__(
        self,
        checkpoints: Checkpoints,
        save: Callable[..., None],
        *,
        maximize: bool,
    ) -> None:
        """`save` writes a state there, or to another place that it is given."""
        self._checkpoints, self._save, self._maximize = checkpoints, save, maximize
        self.place = checkpoints.folder.path
        self._guard = Lock()
        self._due: list[Due] = []
        last = checkpoints.last
        self._last = Due(last.iteration, None, validated=last.validated) if last else None

    @property
    def pending(self) -> bool:
        """Whether something is not written."""
        return any(not each.done for each in self._due)

    @property
    def last(self) -> Due | None:
        """The last of all, written or not."""
        return self._last

    def keep(self, saved: Saved) -> None:
        """One more, not validated yet."""
        with self._guard:
            self._due = self._worth_keeping()
            self._last = Due(saved[0], saved)
            self._due.append(self._last)

    def judge(self, score: float | None) -> None:
        """Give the last its score; None: it diverged."""
        last = self._last
        assert last is not None
        with self._guard:
            last.score = score if score is not None and math.isfinite(score) else None
            last.validated = True
            if last not in self._due:
                self._due.append(last)

    def write(self) -> None:
        """Write what is pending; raises OSError."""
        for each in list(self._due):
            if each.saved is not None:
                self._save(each.saved)
                each.saved = None
            if each.validated and not each.noted:
                self._checkpoints.judge(each.score)
                each.noted = True
        with self._guard:
            self._due = [each for each in self._due if not each.done]

    @property
    def unwritten(self) -> list[Due]:
        """What is not written, as it is now: it may be under way."""
        with self._guard:
            copies = [replace(each) for each in self._due]
        return [each for each in copies if not each.done]

    def write_to(self, place: Checkpoints, unwritten: list[Due]) -> None:
        """Write that to another place; raises OSError."""
        for each in unwritten:
            if each.saved is not None:
                self._save(each.saved, place)
            there = place.entries and place.entries[-1].iteration == each.iteration
            if each.validated and there:
                place.judge(each.score)

    def _worth_keeping(self) -> list[Due]:
        """Of what waits the best, if that beats what is written, and what only lacks its score."""
        waiting = [each for each in self._due if not each.done]
        states = [each for each in waiting if each.saved is not None]
        written = self._checkpoints.noted_best
        best: Due | None = None
        for each in states:
            if best is None or better(each.score, best.score, maximize=self._maximize):
                best = each
        if best and written and not better(best.score, written.score, maximize=self._maximize):
            best = None
        return [each for each in waiting if each.saved is None or each is best]
