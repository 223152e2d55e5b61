"""A training command on a host, what it says and when, and the rows of metrics as they come."""

import json
import re
import subprocess
import threading
import time
from pathlib import Path

NOT_OURS = ("Traceback", "(raylet", "Unhandled error", "RayActorError", "core_worker", "\x1b[33m(")

TIMED = re.compile(r"\d\d:\d\d:\d\d ")  # how a line of the run's own begins


class Watched:
    """A run that goes on while things are done to it."""

    def __init__(self, process: "subprocess.Popen[str]", run: Path) -> None:
        """`run`: its folder, as this machine sees it."""
        self._process, self.folder = process, run
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    @property
    def reached(self) -> int:
        """The last iteration in the metrics."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return int(json.loads(lines[-1])["iteration"]) if lines else 0

    @property
    def status(self) -> int | None:
        """With which it ended."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """All that it said."""
        return "\n".join(text for _, text in self.lines)

    def until(self, iteration: int, *, patience: float = 300.0) -> float:
        """Wait until it has got so far; returns when that was seen."""
        reached, moved = self.reached, time.monotonic()
        while reached < iteration:
            assert self.status is None, f"ended with {self.status}:\n{self.output}"
            assert time.monotonic() - moved < patience, f"hangs at {reached}:\n{self.output}"
            time.sleep(0.1)
            if (now := self.reached) != reached:
                reached, moved = now, time.monotonic()
        return time.monotonic()

    def says(self, *words: str, since: float, patience: float = 300.0) -> tuple[float, str]:
        """Wait for a line with all these words, said since then; returns when, and the line."""
        while True:
            ended = self.status is not None
            for at, text in [*self.lines]:
                if at >= since and all(word in text for word in words):
                    return at, text
            assert not ended, f"ended with {self.status}:\n{self.output}"
            late = time.monotonic() - max(since, 0.0) > patience
            assert not late, f"does not say {words}:\n{self.output}"
            time.sleep(0.1)

    def after(self, since: float) -> str:
        """The seconds from then until the first line, and until the run was to go on."""
        lines = [(at - since, text) for at, text in [*self.lines] if at >= since]
        said = [at for at, text in lines if TIMED.match(text)]
        went_on = [at for at, text in lines if "goes on from iteration" in text]
        words = [f"said after {said[0]:.1f} s"] if said else ["not said"]
        return ", ".join(words + [f"went on after {at:.1f} s" for at in went_on[-1:]])

    def ends(self, *, patience: float = 600.0) -> int:
        """Wait for its end; returns its status."""
        status = self._process.wait(patience)
        self._reader.join(10)
        return status

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            self.lines.append((time.monotonic(), text.rstrip()))
