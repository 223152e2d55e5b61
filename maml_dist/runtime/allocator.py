"""Memory that is freed is kept for the next task; what lives on is spared garbage collection."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from maml_dist.core.process_lock import EXCLUSIVE

Piece = TypeVar("Piece")

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's mallopt
# For processes that are started: theirs is not the main thread's work, and the heap of another
# thread is given back whatever mallopt says. A third of a convolution's time.
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}

_spared: list[bool] = []  # for each work under way: whether the caller of the first had frozen


def keep_freed() -> None:
    """Tell glibc, for this process: a fifth of a convolution's time on a CPU; elsewhere nothing."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(MMAP_MAX, 0)


@contextmanager
def freed_kept() -> Iterator[None]:
    """Inside, memory that is freed is kept for what comes next; at the end it is given back."""
    keep_freed()
    try:
        yield
    finally:
        libc = ctypes.CDLL(None)
        if sys.platform.startswith("linux") and hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def freeze_gc(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces of a long piece of work, the garbage collector spared what lives on in it.

    That is what was there before, and after the first piece, in which what runs here has compiled:
    to look at it takes .2 s, ten times in a run of the sinusoid. At the end it is looked at again.
    """
    with EXCLUSIVE:
        _spared.append(_spared[0] if _spared else gc.get_freeze_count() > 0)
    spare()
    try:
        for number, piece in enumerate(pieces):
            if number == 0:
                spare()
            yield piece
    finally:
        with EXCLUSIVE:
            frozen = _spared.pop()
            if not (frozen or _spared):  # else it is the caller's, or another thread's
                gc.unfreeze()


def spare() -> None:
    """Spare the garbage collector what there is now."""
    gc.collect()  # lest what is garbage by now stay for good
    gc.freeze()
