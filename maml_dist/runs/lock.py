"""Lock: one driver a run folder, and one a place of checkpoints.

Where the folder is local the kernel holds the lock (`flock`), and lets go of it however the driver
ends. `driver.lock` says whose it is; on another host, or on a file system without such locks, that
file alone decides.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from maml_dist.core.schema import from_json
from maml_dist.runs.folder import Folder, made, naming

NAME = "driver.lock"
MOST = 10_000  # bytes
TAKEN = -1


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    started: float  # of the process, seconds since the machine's start; 0: unknown
    since: str  # local time

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), pid, _started(pid) or 0.0, since)

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended: a process of this host that is no more."""
        return self.host == socket.gethostname() and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextmanager
def locked(folder: Folder) -> Iterator[str]:
    """Inside, this process alone trains there; gives a word on whose stale lock was taken over.

    Raises:
        ValueError: another driver holds it, or one on another host may; says how to clear it.
        OSError: the folder cannot be written.
    """
    with made(folder.local) if folder.local else nullcontext(), _kernel_lock(folder) as held:
        owner = _owner(folder)
        here = held is not None and owner is not None and owner.host == socket.gethostname()
        if held == TAKEN or (owner and not owner.ended and not here):
            clear = "" if held == TAKEN else f", or, if it has, remove {folder.path}/{NAME}"
            raise ValueError(
                f"{folder.path} is being trained by {owner or 'another process'}: wait until it "
                f"has ended{clear}"
            )
        mine = Owner.me()
        _claim(folder, held, mine)
        try:
            yield f"{folder.path}: taking over from {owner}, which has ended" if owner else ""
        finally:
            with suppress(OSError, ValueError):
                if _owner(folder) == mine:
                    folder.delete(NAME)


@contextmanager
def _kernel_lock(folder: Folder) -> Iterator[int | None]:
    """Inside, `flock` holds the folder's lock; gives what `_flock` does."""
    held = _flock(folder.local) if folder.local else None
    try:
        yield held
    finally:
        if held is not None and held != TAKEN:
            os.close(held)


def _flock(folder: Path) -> int | None:
    """A descriptor that holds the lock; TAKEN: another holds it; None: no such locks here."""
    while True:
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return TAKEN
        except OSError:
            os.close(file)
            return None
        with suppress(FileNotFoundError):
            if os.stat(folder / NAME).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)  # the one before has just removed it


def _claim(folder: Folder, held: int | None, mine: Owner) -> None:
    content = json.dumps(asdict(mine)).encode()
    if held is None:
        folder.write(NAME, content)
    else:  # in place: the lock is on this very file
        with naming(Path(folder.path, NAME)):
            os.ftruncate(held, 0)
            os.pwrite(held, content, 0)


def _owner(folder: Folder) -> Owner | None:
    content = folder.read(NAME, most=MOST)
    if not content:
        return None
    where = f"{folder.path}/{NAME}"
    try:
        owner: Owner = from_json(content, Owner, where)
    except ValueError as error:
        raise ValueError(f"{error}; if no driver is training there, remove it") from None
    return owner


def _started(pid: int) -> float | None:
    """When a process of this host began; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return float(text.rpartition(")")[2].split()[19])
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0.0 if not Path("/proc/self/stat").exists() else None
