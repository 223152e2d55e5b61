"""Checkpoint index: which checkpoints a run has, the last few and the best, with their scores."""

from collections.abc import Sequence
from dataclasses import dataclass

INDEX = "index.json"
INDEX_BYTES = 10_000_000  # at the most
ENTRIES = 100_000  # at the most


@dataclass(frozen=True)
class Entry:
    """One checkpoint, as the index names it."""

    file: str
    iteration: int
    score: float | None  # of the validation tasks, mean over steps; None: none, or diverged
    sha256: str
    validated: bool = True  # whether its score is known, if only that it diverged


@dataclass(frozen=True)
class Index:
    """The content of index.json."""

    last: list[Entry]
    best: Entry
    maximize: bool | None = None  # whether more of the score is better; None: of 0.1.0
    fixed: str | None = None  # sha256 of fixed.safetensors; None: there is none
    run: str | None = None  # the folder of the run whose they are; None: of 0.1.0

    def __post_init__(self) -> None:
        for entry in (*self.last, self.best):
            if entry.iteration < 0 or entry.file != f"{entry.iteration:08d}.safetensors":
                raise ValueError(f"{entry.file[:60]!r} is no checkpoint of iteration "
                                 f"{str(entry.iteration)[:20]} in this folder")  # fmt: skip
        if len(self.last) > ENTRIES:
            raise ValueError(f"last names {len(self.last):,} checkpoints, more than {ENTRIES:,}")
        numbers = [entry.iteration for entry in self.last]
        if not numbers or numbers != sorted(set(numbers)):
            raise ValueError("last must name one checkpoint or more, in order of their iterations")


def best_of(entries: Sequence[Entry], *, maximize: bool | None) -> Entry | None:
    """The entry of the best score; where nothing is known of scores, the latest."""
    best: Entry | None = None
    for entry in entries:
        if best is None or better(entry.score, best.score, maximize=bool(maximize)):
            best = entry
    unknown = maximize is None or best is None or best.score is None
    return entries[-1] if unknown and entries else best


def better(new: float | None, old: float | None, *, maximize: bool) -> bool:
    """Whether a score beats another; any score beats none."""
    if new is None or old is None:
        return old is None
    return new > old if maximize else new < old
