"""How every command ends: a user's mistake is one line on stderr and exit status 2."""

import sys
from collections.abc import Callable


def fail(message: object, *, status: int) -> int:
    """Print one error line; returns the exit status."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return status


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
