"""Lock: one driver a run folder, and one a place of checkpoints.

Where the folder is local the kernel holds the lock (`flock`), and lets go of it however the driver
ends. Elsewhere, and towards other hosts, `driver.lock` alone decides: who writes it and finds it
unchanged a moment later holds it, and whoever has not written it for `STALE` seconds holds it no
more. No file system of `pyarrow.fs` can write on a condition, so two drivers may both hold a place
for a moment: each looks before it writes, and the one that finds the other's name stops.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock, Thread

from maml_dist.loggers.lines import say
from maml_dist.runs.folder import Folder, made, naming
from maml_dist.runs.owner import NAME, REFRESH, STALE, Owner, read_owner

SETTLES = 2.0  # seconds until a lock that was written is read back
WATCHED = 1.5 * REFRESH  # seconds that a stale lock is watched before it is taken over: clocks lie


class Locked(ValueError):
    """Another driver holds the place, or may."""


class LockLost(ValueError):
    """Another driver has taken the place over: nothing may be written there any more."""


@contextmanager
def locked(folder: Folder) -> Iterator["Held"]:
    """Inside, this process alone trains there.

    Raises:
        ValueError: another driver holds it, or one on another host may; says how to clear it.
        OSError: the folder cannot be written.
    """
    with made(folder.local) if folder.local else nullcontext():
        held = Held(folder)
        try:
            yield held
        finally:
            held.release()


class Held:
    """A place that this process holds."""

    def __init__(self, folder: Folder) -> None:
        """Take it; raises as `locked` does."""
        self._folder = folder
        self._mine = Owner.me()
        self._guard, self._released = Lock(), Event()
        self._lost: LockLost | None = None
        self._file = _flock(folder) if folder.local else None
        self._inode = folder.local.stat().st_ino if folder.local else None
        try:
            before = _refuse_living(folder, self._file)
            self._claim()
        except BaseException:
            self._let_go()
            raise
        self.word = f"{folder.path}: taking over from {before}" if before else ""
        self._thread = Thread(target=self._refresh, name="driver.lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See that the place is still this process's; to be called before something is written.

        Raises:
            LockLost: another driver has taken it over.
            OSError: it is away, or it cannot be read.
        """
        with self._guard:
            if self._released.is_set():
                raise LockLost(f"{self._folder.path} is not held any more")
            self.refuse_lost()
            try:
                owner = read_owner(self._folder)
            except ValueError as error:
                raise OSError(str(error)) from None
            if owner is None:
                self._reclaim()
            elif owner.id != self._mine.id:
                self._lose(str(owner))

    def refuse_lost(self) -> None:
        """Raise LockLost where it is known that another has taken the place over."""
        if self._lost:
            raise self._lost

    def release(self) -> None:
        """Let go of it."""
        self._released.set()
        self._thread.join(timeout=5)  # the place may hang
        if not self._thread.is_alive():
            self._let_go()

    def _refresh(self) -> None:
        while not self._released.wait(REFRESH):
            try:
                looked = time.time()
                self.check()
                with self._guard:
                    mine = replace(self._mine, refreshed=time.time())
                    self._write(mine)
                    if self._file is None and self._mine.stale and time.time() - looked > SETTLES:
                        self._withdraw()
                    self._mine = mine
            except LockLost:
                return
            except OSError:  # it is away: those who write there say so
                continue

    def _claim(self) -> None:
        self._write(self._mine)
        if self._file is not None:
            return
        time.sleep(SETTLES)
        owner = read_owner(self._folder)
        if owner is None or owner.id != self._mine.id:
            raise _refusal(self._folder, owner)

    def _write(self, mine: Owner) -> None:
        content = mine.content()
        if self._file is None:
            self._folder.write(NAME, content, part=f"{NAME}.{mine.id}.part")
        else:  # in place: the lock is on this very file
            with naming(Path(self._folder.path, NAME)):
                os.pwrite(self._file, content, 0)
                os.ftruncate(self._file, len(content))

    def _reclaim(self) -> None:
        """Take the place again whose lock was removed, if it is the same place."""
        if self._mine.stale:
            self._lose("a driver that has ended, or its lock was removed")
        if local := self._folder.local:
            if local.stat().st_ino != self._inode:
                raise FileNotFoundError(errno.ENOENT, "another folder is there now", str(local))
            if self._file is not None:
                before = self._file
                try:
                    self._file = _flock(self._folder)
                except ValueError as error:
                    self._lose(str(error))
                os.close(before)
        self._write(self._mine)

    def _withdraw(self) -> None:
        """Leave the place to whoever has taken it between a look and a write: this one slept."""
        self._folder.delete(NAME)
        self._lose("another driver, as far as can be told: this one was frozen")

    def _lose(self, to: str) -> None:
        self._lost = LockLost(
            f"{self._folder.path} was taken over by {to}: this driver stops, and writes nothing "
            "there any more"
        )
        raise self._lost

    def _let_go(self) -> None:
        with suppress(OSError, ValueError):
            owner = read_owner(self._folder)
            empty = owner is None and self._file is not None  # the disk was full
            if empty or (owner and owner.id == self._mine.id):
                self._folder.delete(NAME)
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _refuse_living(folder: Folder, file: int | None) -> str:
    """Raise ValueError where another driver may train there; else says which one has ended."""
    owner = read_owner(folder)
    if owner is None:
        return ""
    if owner.ended or (owner.here and file is not None):  # the kernel would have said
        return f"{owner}, which has ended"
    if not owner.stale:
        raise _refusal(folder, owner)
    say(
        f"{folder.path}: {owner} has been silent for {owner.silence:.0f} s; watching for "
        f"{WATCHED:.0f} s whether it still writes",
        level="warning",
    )
    time.sleep(WATCHED)
    now = read_owner(folder)
    if now is not None and now != owner:
        raise _refusal(folder, now)
    return f"{owner}, which is silent"


def _refusal(folder: Folder, owner: Owner | None, *, clear: bool = True) -> Locked:
    heard, until = "", f", or, if it has, remove {folder.path}/{NAME}"
    if owner and owner.silence is not None:
        heard = f", last heard {owner.silence:.0f} s ago"
        until = f", or has been silent for {STALE / 60:.0f} minutes{until}"
    return Locked(
        f"{folder.path} is being trained by {owner or 'another process'}{heard}: wait until it has "
        f"ended{until if clear else ''}"
    )


def _flock(folder: Folder) -> int | None:
    """A descriptor that holds the kernel's lock; None where there are no such locks.

    Raises:
        ValueError: another process holds it.
    """
    path = Path(folder.path, NAME)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise _refusal(folder, read_owner(folder), clear=False) from None
        except OSError:
            os.close(file)
            return None
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)  # the one before has just removed it
