"""Run writer: all that a run writes while it trains, its rows of metrics and its checkpoints.

Where they cannot be written training goes on. What is not written when it ends is tried for a while
and then written to another folder; only that the run ends with an error.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from maml_dist.loggers.lines import say
from maml_dist.runs import tensorboard
from maml_dist.runs.lock import LockLost
from maml_dist.runs.metrics import Metrics
from maml_dist.runs.pending_checkpoints import Due, PendingCheckpoints
from maml_dist.runs.rescue import rescue
from maml_dist.runs.run import Locks, Run
from maml_dist.runs.trackers import Trackers
from maml_dist.runs.writer import Writer
from maml_dist.runtime.server import Saved

LAST_TRIES = 60.0  # seconds after the end, for a place that refuses
UNDER_WAY = 600.0, 30.0  # seconds for one that is being written to; where the run is stopped
BETWEEN = 3.0  # seconds between two of them


def _events(run: Run, start: int) -> bytes | None:
    """What TensorBoard's events begin with: the recipe, once; None where they are not wanted."""
    if "tensorboard" not in run.config["loggers"]:
        return None
    return b"" if start else tensorboard.recipe(run.config)


class RunWriter:
    """The sink of a run in training."""

    def __init__(
        self,
        run: Run,
        locks: Locks | None = None,
        *,
        start: int,
        quiet: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`start` iterations are there; `stop` says that nothing is to be waited for.

        Raises:
            OSError: the rows that there are cannot be written.
        """
        self._run, self._locks, self._stop = run, locks, stop
        self._parent = run.path.parent.stat().st_ino
        self._writer = Writer()
        total = run.experiment.iterations
        held = locks.folder if locks else None
        try:
            self._metrics = Metrics(
                *(run.path, self._writer),
                start=start,
                total=total,
                quiet=quiet,
                held=held,
                begins=_events(run, start),
            )
            self._trackers = Trackers(run.path, run.config, start=start)
        except BaseException:
            self._writer.close()
            raise
        self._checkpoints = PendingCheckpoints(
            run.checkpoints, run.save, maximize=run.experiment.task.maximize
        )
        run.checkpoints.folder.guard = locks.checkpoints.check if locks else None
        self._writer.add(self._checkpoints)

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._metrics.close()
        try:
            if not isinstance(error, LockLost):
                self._finish(wait=error is None)
        except OSError as unwritten:
            if error is None:
                raise
            say(str(unwritten), level="warning")
        finally:
            self._writer.close()
            if self._writer.ended:
                self._run.checkpoints.folder.guard = None
            self._trackers.close()

    @property
    def last(self) -> Due | None:
        """The last checkpoint, written or not."""
        return self._checkpoints.last

    def log(self, row: dict[str, Any], *, shown: dict[str, Any] | None = None) -> None:
        """One flat row, written within a second or two; the progress line shows it, or `shown`."""
        self._metrics.log(row, shown=shown)
        self._trackers.log(row)

    def keep(self, saved: Saved) -> None:
        """A checkpoint, not validated yet; written now, if it can be."""
        self._checkpoints.keep(saved)
        self._writer.flush()

    def judge(self, score: float | None) -> None:
        """Give the last checkpoint its validation score; None: it diverged."""
        self._checkpoints.judge(score)
        self._writer.flush()

    def saved(self) -> Saved | None:
        """The state of the last checkpoint; None before the first."""
        last = self._checkpoints.last
        state = last.saved if last else None  # once: it may be written at this moment
        return state or self._run.saved()

    def refuse_failed(self) -> None:
        """Raise what ends the run: another driver has taken it over, or a mistake in writing."""
        self._writer.refuse_failed()
        for lock in self._locks or ():
            lock.refuse_lost()

    def _finish(self, *, wait: bool) -> None:
        """Write all that is not written, here or elsewhere.

        Raises:
            OSError: it is elsewhere, or nowhere.
        """
        try:
            self._try_on(wait=wait)
        except KeyboardInterrupt:  # it is not waited for
            pass
        except Exception:  # not of the place: another would not help
            if wait:
                raise
            return
        if not (left := self._unwritten()):
            return
        what = f"{'; '.join(left)}: not written at the end"
        try:
            made = self._rescued()
        except OSError as error:
            raise OSError(f"{what}, {error}") from None
        raise OSError(
            f"{what}: it lies in {made}, a run of its own, and --resume {made} goes on from there"
        )

    def _try_on(self, *, wait: bool) -> None:
        """Give a place that takes its time that, and one that refuses some more tries."""
        self._writer.flush()
        self._await_slow(UNDER_WAY[0] if wait else UNDER_WAY[1])
        end, said = time.monotonic() + LAST_TRIES, False
        while (left := self._unwritten()) and wait and not self._writer.hangs:
            if self._stop() or time.monotonic() >= end:
                return
            if not said:
                word = f"{'; '.join(left)}: tried for {LAST_TRIES:.0f} s more, then elsewhere"
                say(word, level="warning")
                said = True
            time.sleep(BETWEEN)
            self._writer.flush()

    def _await_slow(self, seconds: float) -> None:
        """Until a place that takes its time has done so, or so long."""
        began = time.monotonic()
        if self._writer.hangs:
            places = "; ".join(self._unwritten())
            say(f"{places}: waited for, {seconds:.0f} s at the most", level="warning")
        while self._writer.hangs:
            waited = time.monotonic() - began
            if waited > (UNDER_WAY[1] if self._stop() else seconds):
                return
            self._writer.wait(1.0)
            if not self._writer.hangs:  # what has become due in the meantime
                self._writer.flush()

    def _unwritten(self) -> list[str]:
        """What is in the way of rows and checkpoints."""
        ours = (self._metrics.rows, self._checkpoints)
        reasons = [why for each, why in self._writer.unwritten.items() if each in ours]
        return list(dict.fromkeys(reasons))

    def _rescued(self) -> Path:
        beside, unwritten = [], self._checkpoints.unwritten
        apart = self._writer.writes is self._checkpoints and self._run.config["checkpoints"]
        with suppress(OSError):
            if (
                apart or not self._writer.hangs
            ) and self._run.path.parent.stat().st_ino == self._parent:
                beside.append(self._run.path.parent)
        with suppress(RuntimeError):
            beside.append(Path.home())
        readable = not self._writer.hangs
        return rescue(
            self._run,
            self._metrics.rows.whole(readable=readable),
            lambda place: self._checkpoints.write_to(place, unwritten),
            beside=[*beside, Path(tempfile.gettempdir())],
            readable=readable,
        )
