"""How every command ends: a user's mistake is one line on stderr and exit status 2."""

import argparse
import sys
from collections.abc import Callable


def fail(message: object, *, status: int) -> int:
    """Print one error line; returns the exit status."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
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
    """Run `main(arguments)`; what a user can cause (ValueError, OSError) is one line, status 2.

    What went wrong with the numbers or the machines in mid-run is one line too, and status 1.
    """
    try:
        return main(sys.argv[1:])
    except (FloatingPointError, ChildProcessError) as error:
        return fail(error, status=1)
    except (ValueError, OSError) as error:
        return fail(error, status=2)
    except KeyboardInterrupt:
        return 130
