"""Interruption: Ctrl-C, or a termination as when a machine is taken back, ends at a checkpoint."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from maml_dist.loggers.lines import say

_received: list[int] = []  # signals are the process's


def forget() -> None:
    """No signal has come yet."""
    _received.clear()


def raise_received(said: str) -> None:
    """End the program, as the signal that was received asks; `said` says why, and how to go on.

    Raises:
        KeyboardInterrupt: it was SIGINT.
        SystemExit: it was another one.
    """
    if not _received or threading.current_thread() is not threading.main_thread():
        return
    if _received[-1] == signal.SIGINT:
        raise KeyboardInterrupt(said)
    say(said, level="warning")
    raise SystemExit(status())


def status() -> int:
    """The exit status of a command that was interrupted: 128 and the signal."""
    return 128 + (_received[-1] if _received else signal.SIGINT)


@contextmanager
def interruptible(
    *, says: str = "stops at a checkpoint", then: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM are acknowledged, and the function says so; a second insists.

    `says` is what is printed of the first, `then` is called after it.
    """
    forget()

    def ask(number: int, frame: object) -> None:
        if _received:
            raise KeyboardInterrupt
        _received.append(number)
        name = signal.Signals(number).name
        say(f"{name}: {says}; once more: at once", level="warning")
        then()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(_received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
