"""Writer: a thread that writes what it is given, so that training waits for no file.

What cannot be written (a full disk, a place that is away) is kept and tried again, when more is due
and each minute. That is said once, and once more when it is written.
"""

import time
from abc import ABC, abstractmethod
from contextlib import suppress
from threading import Condition, Thread

from maml_dist.loggers.lines import say

EVERY = 1.0  # seconds between two writings
RETRY = 60.0  # seconds until what failed is tried again
PATIENCE = 30.0  # seconds that `flush` waits for a place that neither takes nor refuses
SHOWN = 300  # characters of an error at the most


class Output(ABC):
    """A file, or several, that grow in training. Filled by one thread, written by another."""

    place: str  # where it is
    meanwhile: str  # what becomes of what is not written, for a message

    @property
    @abstractmethod
    def pending(self) -> bool:
        """Whether something is not written."""

    @abstractmethod
    def write(self) -> None:
        """Write all that is pending.

        Raises:
            OSError: not all of it could be written; the rest is pending.
        """


class Writer:
    """Writes outputs, in their order, from a thread of its own."""

    def __init__(self) -> None:
        self._outputs: list[Output] = []
        self._changed = Condition()
        self._asked = self._done = 0  # passes over all outputs
        self._ends = self._slow = False
        self._errors: dict[Output, str] = {}  # of those that fail
        self._again: dict[Output, float] = {}  # when they are tried again
        self._failure: BaseException | None = None  # other than of the place
        self.writes: Output | None = None  # what is written at this moment
        self._thread = Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def add(self, output: Output) -> None:
        """Write this one too, after the others."""
        self._outputs = [*self._outputs, output]

    @property
    def unwritten(self) -> dict[Output, str]:
        """What is pending, with what is in its way."""
        return {
            output: self._errors.get(output, f"{output.place} does not answer")
            for output in self._outputs
            if output.pending
        }

    @property
    def hangs(self) -> bool:
        """Whether a place neither takes nor refuses what is written."""
        return self._slow and self._asked > self._done

    def flush(self) -> None:
        """Try to write all that is pending, now; waits for that, though not for ever.

        Raises:
            LockLost: another driver has taken a place over.
            BaseException: whatever else than OSError went wrong.
        """
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            patience = 0.0 if self._slow else PATIENCE
            done = self._changed.wait_for(lambda: self._done >= mine, timeout=patience)
            if not done and not self._slow:
                places = ", ".join(output.place for output in self._outputs if output.pending)
                _say(f"{places}: does not answer: training goes on, and writes when it does")
                self._slow = True  # until the pass under way has ended
        self.refuse_failed()

    def wait(self, seconds: float) -> None:
        """Until nothing that was asked for is under way any more, or so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._done >= self._asked, timeout=seconds)

    def refuse_failed(self) -> None:
        """Raise what went wrong, other than that a place cannot be written."""
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def close(self) -> None:
        """End the thread; what is pending stays so."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join(timeout=EVERY)

    @property
    def ended(self) -> bool:
        """Whether its thread has: one that hangs may still write when its place answers."""
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._ends:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._asked > self._done or self._ends, timeout=EVERY
                )
                asked = self._asked
            for output in self._outputs:
                if self._ends:
                    break
                if output.pending and (asked > self._done or self._is_time(output)):
                    self._try(output)
            with self._changed:
                self._done, self._slow = asked, False
                self._changed.notify_all()

    def _is_time(self, output: Output) -> bool:
        return time.monotonic() >= self._again.get(output, 0)

    def _try(self, output: Output) -> None:
        self.writes = output
        try:
            output.write()
        except OSError as error:
            self._again[output] = time.monotonic() + RETRY
            said, words = self._errors.get(output), in_words(error, output.place)
            self._errors[output] = words
            if said is None or (error.strerror and error.strerror not in said):
                _say(
                    f"{words}: training goes on, {output.meanwhile} in memory; tried again each "
                    "minute"
                )
        except BaseException as error:
            self._again[output] = time.monotonic() + RETRY
            self._failure = error
        else:
            if self._errors.pop(output, None):
                _say(f"{output.place}: is written again")
        finally:
            self.writes = None


def in_words(error: OSError, place: str) -> str:
    """Where and why, in one line."""
    said = f"{error.filename or place}: {error.strerror}" if error.strerror else str(error)
    said = " ".join(said.split())
    return said if len(said) <= SHOWN else f"{said[:SHOWN]} …"


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody listens any more
        say(text, level="warning")
