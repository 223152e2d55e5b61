"""Growing file: a local file that is added to, of which no piece is lost, doubled or half there.

How long it is to be is known here: what a full disk has cut is written over at the next try.
"""

import os
from contextlib import suppress
from pathlib import Path
from threading import Lock

from maml_dist.runs.folder import make_within, naming
from maml_dist.runs.lock import Held
from maml_dist.runs.writer import Output


class GrowingFile(Output):
    """A file of pieces of bytes, in the order in which they were added."""

    def __init__(
        self,
        path: Path,
        *,
        size: int = 0,
        own_folder: bool = False,
        meanwhile: str,
        held: Held | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            path: the file.
            size: bytes that it has.
            own_folder: it is in a folder of the run's own, which is made where it is not there.
            meanwhile: what becomes of what is not written.
            held: the lock on the run.
        """
        self._path, self._size, self._own_folder = path, size, own_folder
        self._pieces: list[bytes] = []
        self._guard = Lock()
        self.place, self.meanwhile, self._held = str(path), meanwhile, held

    @property
    def pending(self) -> bool:
        """Whether something is not written."""
        return bool(self._pieces)

    def whole(self, *, readable: bool) -> bytes:
        """All of it: what can be read of the file, without what a full disk has cut, and the rest.

        Not `readable`, only the rest.
        """
        written = b""
        if readable:
            with suppress(OSError), self._path.open("rb") as file:
                written = file.read(self._size)
        with self._guard:
            return written + b"".join(self._pieces)

    def add(self, piece: bytes) -> None:
        """One more piece."""
        with self._guard:
            self._pieces.append(piece)

    def write(self) -> None:
        """Write what is pending, at the end of what is there; raises OSError, LockLost."""
        if self._held:
            self._held.check()
        with self._guard:
            count, content = len(self._pieces), b"".join(self._pieces)
        with naming(self._path):
            if self._own_folder:
                make_within(self._path.parent)
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                at = end = min(self._size, os.fstat(file).st_size)
                while end < at + len(content):
                    end += os.pwrite(file, content[end - at :], end)
                os.ftruncate(file, end)
            finally:
                os.close(file)  # on some file systems it is here that a full disk is said
        self._size = end
        with self._guard:
            del self._pieces[:count]
