"""Memory: what is freed is kept for the next task, and what lives on is not looked at again."""

import ctypes
import gc
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_freed() -> None:
    """Tell glibc, for this process: a fifth of a convolution's time on a CPU; elsewhere nothing."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(MMAP_MAX, 0)


def spare() -> None:
    """Spare the garbage collector what lives by now: what was imported and compiled, all the run.

    Looking at it takes .2 s, ten times in a run of the sinusoid. `gc.unfreeze` takes it back.
    """
    gc.collect()
    gc.freeze()
