"""Checkpoints: safetensors and JSON in a folder, local or on any `pyarrow.fs` file system.

A file is written under another name and moved; then `index.json`, which names each file with its
checksum, is replaced the same way. A run that is killed in between loses nothing. Opening a
checkpoint executes nothing.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pyarrow import fs
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

INDEX = "index.json"


@dataclass(frozen=True)
class Entry:
    """One checkpoint, as the index names it."""

    file: str
    iteration: int
    score: float | None  # of the validation tasks, mean over steps; None: diverged
    sha256: str


class Checkpoints:
    """The checkpoints of one run: the last few, and the best by validation."""

    def __init__(self, where: str | Path, *, keep: int = 3) -> None:
        self._fs, self._folder = _file_system(str(where))
        self._keep = keep
        self.entries: list[Entry] = []
        self.best: Entry | None = None
        index = self._read(INDEX)
        if index is not None:
            try:
                content = json.loads(index)
                self.entries = [Entry(**entry) for entry in content["last"]]
                self.best = Entry(**content["best"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self._folder}/{INDEX} is damaged: {error!r}") from None

    @property
    def last(self) -> Entry | None:
        """The latest checkpoint, if there is any."""
        return self.entries[-1] if self.entries else None

    def save(
        self,
        tensors: dict[str, Tensor],
        *,
        iteration: int,
        recipe: str,
        score: float | None,
        maximize: bool,
    ) -> Entry:
        """Write a checkpoint; drop those that are neither among the last nor the best.

        `recipe`, the whole configuration as text, stands in the file beside the weights.

        Raises:
            OSError: it cannot be written; what was there before is whole.
        """
        content = save(tensors, metadata={"iteration": str(iteration), "recipe": recipe})
        name = f"{iteration:08d}.safetensors"
        score = score if score is not None and math.isfinite(score) else None
        entry = Entry(name, iteration, score, hashlib.sha256(content).hexdigest())
        self._fs.create_dir(self._folder, recursive=True)
        self._write(name, content)
        before = [*self.entries, *([self.best] if self.best else [])]
        earlier = [old for old in self.entries if old.iteration < iteration]
        self.entries = [*earlier, entry][-self._keep :]
        if self.best is None or _better(score, self.best.score, maximize=maximize):
            self.best = entry
        index = {"last": [asdict(old) for old in self.entries], "best": asdict(self.best)}
        self._write(INDEX, json.dumps(index, indent=1).encode())
        kept = {old.file for old in (*self.entries, self.best)}
        for file in {old.file for old in before} - kept:
            self._fs.delete_file(f"{self._folder}/{file}")
        return entry

    def load(self, which: str = "best") -> tuple[dict[str, Tensor], Entry]:
        """The tensors of the "best" or "last" checkpoint, or of a file by its path.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        if which not in ("best", "last"):
            given = _content(which)
            return _tensors(given, which), Entry(which, _iteration(given), None, "")
        entry = self.best if which == "best" else self.last
        if entry is None:
            raise ValueError(f"no checkpoint in {self._folder} yet")
        content = self._read(entry.file)
        if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise ValueError(
                f"checkpoint {self._folder}/{entry.file} is damaged: its checksum differs"
            )
        return _tensors(content, entry.file), entry

    def _read(self, name: str) -> bytes | None:
        try:
            with self._fs.open_input_stream(f"{self._folder}/{name}") as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return None
        return content

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._folder}/{name}"
        with self._fs.open_output_stream(f"{path}.part") as stream:
            stream.write(content)
        self._fs.move(f"{path}.part", path)


def _better(new: float | None, old: float | None, *, maximize: bool) -> bool:
    """Whether a score beats another; any score beats none."""
    if new is None or old is None:
        return old is None
    return new > old if maximize else new < old


def _file_system(where: str) -> tuple[fs.FileSystem, str]:
    if "://" in where:
        try:
            system, folder = fs.FileSystem.from_uri(where)
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoints={where}: {error}") from None
        return system, folder
    return fs.LocalFileSystem(), str(Path(where).absolute())


def _content(path: str) -> bytes:
    system, file = _file_system(path)
    try:
        with system.open_input_stream(file) as stream:
            content: bytes = stream.read()
    except OSError as error:
        raise ValueError(f"no checkpoint at {path}: {error}") from None
    return content


def _tensors(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        return dict(sorted(load(content).items()))  # safetensors keeps no order
    except SafetensorError as error:
        raise ValueError(f"checkpoint {name} is damaged: {error}") from None


def _iteration(content: bytes) -> int:
    length = int.from_bytes(content[:8], "little")  # a safetensors file starts with a JSON header
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return int(metadata.get("iteration", 0))
