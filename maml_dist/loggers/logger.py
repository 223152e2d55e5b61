"""Logger: what a run tells its rows to. A class of one's own needs the same two methods."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class Logger(ABC):
    """Is made once when a run begins, when it is resumed, and for its test scores at the end."""

    @abstractmethod
    def __init__(self, folder: Path, config: dict[str, Any], *, start: int) -> None:
        """Of the run in `folder`, with its resolved recipe; rows come from `start` on."""

    @abstractmethod
    def log(self, row: dict[str, Any]) -> None:
        """One flat row of numbers and texts; its `iteration` says when."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more comes."""

    def picture(self, path: Path) -> None:  # noqa: B027 - may be left out
        """A picture of the run, at its end; `path` is a PNG."""
