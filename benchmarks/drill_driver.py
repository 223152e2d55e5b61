"""The drill's driver: a training command whose output is read, and which is resumed as it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ENDED = {0: "finished", -9: "killed", 130: "interrupted", 143: "terminated"}
EARLY = {-2: 130, -15: 143}  # as a signal ends one that has only begun to start, and later
RESCUED = re.compile(r"and --resume (\S+) goes on from there")
WORD = ("was lost", "has not answered", "goes on from", "waits", "stops at", "cannot be", "failed")


class Driver:
    """A run's driver, one after the other until the run is finished."""

    def __init__(self, command: list[str], folder: Path, address: str) -> None:
        self.folder, self._address = folder, address
        self.output = ""
        self.words: list[tuple[float, str]] = []  # what it said of faults, and when
        self.rows: list[tuple[float, int]] = []  # when an iteration was first seen
        self.reached = 0  # the last iteration in the metrics
        self.wrong: list[str] = []
        self.expected: set[int] = {0}  # exit statuses
        self.rivals: list[subprocess.Popen[str]] = []  # which would take the place of one that ends
        self._moved = time.monotonic()
        self._read = 0
        self._start(command)

    def runs(self, *, patience: float) -> bool:
        """Whether the run is still to go on; goes on with one that was ended.

        Raises:
            TimeoutError: nothing has moved for `patience` seconds.
        """
        self._look()
        status = self._process.poll()
        if status is not None:
            self._reader.join()
            status = EARLY.get(status, status)
            if status == 2 and (elsewhere := RESCUED.search(self.output)):
                self.folder, self._read, self.expected = Path(elsewhere[1]), 0, {0}
                self.output = self.output.replace("goes on from there", "went on from there")
                self.words.append((time.monotonic(), ENDED[143]))
                self.resume()
                return True
            if status and status not in self.expected:
                self.wrong.append(f"ended with status {status}")
                return False
            if status == 0:
                return False
            self.expected.discard(status)
            self.note(f"--- {ENDED[status]}; resumes")
            self.words.append((time.monotonic(), ENDED[status]))
            self.resume()
        if time.monotonic() - self._moved > patience:
            raise TimeoutError(f"hangs at iteration {self.reached}")
        return True

    def resume(self) -> None:
        """Go on with the run, which no rival is to have taken over."""
        self._end_rivals()
        resume = ["--resume", str(self.folder), "--address", self._address]
        recipe = self.folder / "recipe.yaml"
        again = [sys.executable, "-m", "maml_dist.train", *resume]
        self._start(again if recipe.exists() else self._command)

    def signal(self, number: int, *, status: int | None = None) -> None:
        """Send the driver one, which ends it with `status`, if any."""
        if status is not None:
            self.expected.add(status)
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    @property
    def trains(self) -> bool:
        """Whether it has taken the run's place, or has ended."""
        if self._process.poll() is not None:
            return True
        try:
            return f"{self._process.pid}" in (self.folder / "driver.lock").read_text()
        except FileNotFoundError:
            return False

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()

    def note(self, text: str) -> None:
        """Put a line between those of the driver."""
        self.output += f"{time.strftime('%H:%M:%S')} {text}\n"

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._end_rivals()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _end_rivals(self) -> None:
        for rival in self.rivals:
            rival.kill()
            rival.wait()

    def _start(self, command: list[str]) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._moved = time.monotonic()
        self._reader = threading.Thread(target=self._listen, args=[self._process], daemon=True)
        self._reader.start()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for text in process.stdout:
            self.output += text
            if any(word in text for word in WORD):
                self.words.append((time.monotonic(), text.strip()))

    def _look(self) -> None:
        """Read the rows that have come."""
        try:
            with (self.folder / "metrics.jsonl").open() as file:
                if os.fstat(file.fileno()).st_size < self._read:
                    self._read = 0  # rewritten by a resumed run
                file.seek(self._read)
                lines = file.read()
        except FileNotFoundError:
            return
        whole = lines[: lines.rfind("\n") + 1]
        self._read += len(whole.encode())
        if whole:
            self._moved = time.monotonic()
            self.reached = json.loads(whole.splitlines()[-1])["iteration"]
            self.rows.append((self._moved, self.reached))
