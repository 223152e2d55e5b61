"""How every command ends: a user's mistake is one line on stderr and exit status 2, never a traceback."""

import sys
from collections.abc import Callable


def fail(message: object) -> int:
    """Print one error line; returns the exit status 2."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return 2


def guarded(main: Callable[[list[str]], int]) -> int:
    """Run `main(arguments)`, turning what a user can cause (ValueError, OSError) into one line and status 2."""
    try:
        return main(sys.argv[1:])
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
