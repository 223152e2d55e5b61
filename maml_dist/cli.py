"""How every command ends: what went wrong is one line on stderr, and an exit status.

2    a user's mistake, in the words, the files or the code that were given
1    numbers or machines in mid-run       130  interrupted
70   a mistake of this package            141  nobody reads the output any more
"""

import argparse
import os
import re
import select
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

from maml_dist.core.users_line import users_line, whole_traceback
from maml_dist.loggers.lines import FORMATS, is_json, say, use_format

SHOWN = 1000  # characters of a message at the most
WORD = 200  # and of one word of it
LOG_FORMAT = "--log-format"


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument(
            "--traceback", action="store_true", help="show the whole traceback of an error"
        )
        self.add_argument(
            LOG_FORMAT,
            choices=FORMATS,
            action=_UseFormat,
            help="what is said while it works: lines of text (default), or objects of JSON",
        )

    def error(self, message: str) -> NoReturn:
        """Raise ValueError, which `guarded` prints."""
        raise ValueError(f"{message} (--help shows what there is)")


class _UseFormat(argparse.Action):
    """Says everything in the format from here on."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, value)
        use_format(value)


def fail(message: object, *, status: int) -> int:
    """Say one error line; returns the exit status."""
    line = " ".join(str(message).split()) or "no reason is given"
    line = re.sub(rf"\S{{{WORD},}}", lambda word: f"{word[0][:60]}…{word[0][-60:]}", line)
    line = line if len(line) <= SHOWN else f"{line[:SHOWN]} …"
    if is_json():
        say(line, level="error", status=status)
    else:
        say(f"error: {line}")
    return status


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add `--trust PATH`, which may be given several times."""
    parser.add_argument(
        "--trust",
        metavar="PATH",
        action="append",
        default=[],
        help="a folder of your own (or a file in it) whose modules may be loaded; repeatable",
    )


def guarded(main: Callable[[list[str]], int]) -> int:
    """Run `main(arguments)`; what goes wrong is one line, or with --traceback all of it."""
    arguments = sys.argv[1:]
    use_format(_asked_format(arguments))  # of errors in the arguments as well
    try:
        status = main(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        where = users_line(end, raised=True)
        if where is None:
            raise  # --help
        return fail(f"{where}: it ends the program (SystemExit: {end.code})", status=2)
    except Exception as error:  # the last resort: nothing may end in a bare traceback
        if isinstance(error, BrokenPipeError) and _is_unread():
            return 141
        if "--traceback" in arguments:
            if is_json():
                say("the traceback", level="error", traceback=whole_traceback(error))
            else:
                print(whole_traceback(error), end="", file=sys.stderr)
        return _told(error)


def _asked_format(arguments: list[str]) -> str:
    """The last that the arguments name, where that is one."""
    given = [after for word, after in pairwise(arguments) if word == LOG_FORMAT]
    given += [word.partition("=")[2] for word in arguments if word.startswith(f"{LOG_FORMAT}=")]
    return next((each for each in reversed(given) if each in FORMATS), FORMATS[0])


def _told(error: Exception) -> int:
    """Print the line of an error; returns the exit status."""
    where = users_line(error)
    said = f"{where}: {type(error).__name__}: {error}" if where else str(error)
    if isinstance(error, FloatingPointError | ChildProcessError):
        return fail(error, status=1)
    if isinstance(error, ValueError | OSError) or where:
        return fail(said, status=2)
    if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:
        return fail(f"not enough memory. {_first_line(said)}", status=1)
    return fail(
        f"a mistake of maml_dist, {type(error).__name__}: {_first_line(said)} "
        "(please report it with what --traceback shows)",
        status=70,
    )


def _first_line(text: str) -> str:
    """The line that says what; of a traceback from another process the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "" if not lines else lines[-1] if lines[0].startswith("ray::") else lines[0]


def _is_unread() -> bool:
    """Whether nobody reads stdout any more; then nothing more is written to it."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError):  # closed, or no file
        return False
    watched = select.poll()
    watched.register(descriptor, 0)
    if not watched.poll(0):  # nothing is the matter with it
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True
