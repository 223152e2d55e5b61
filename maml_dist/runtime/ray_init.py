"""Starting or joining a Ray. Where a machine is busy that times out: then it is tried again.

Ray's word for it is a bare `Exception` after 30 seconds, and the processes of the node that did not
come up in time are left running.
"""

import re
import traceback
from contextlib import suppress
from typing import Any

from maml_dist.loggers.lines import say

TRIES = 3
_TIMES_OUT = re.compile(r"tim(ed|e) ?out|deadline exceeded|connect to GCS", re.IGNORECASE)


def init(what: str, **arguments: Any) -> None:
    """`ray.init` with these arguments; a word on `what` where it is tried again.

    Raises:
        TimeoutError: it timed out each time.
        Exception: whatever else Ray raises.
    """
    import ray

    for tried in range(1, TRIES + 1):
        try:
            ray.init(**arguments)
            return
        except Exception as error:
            _end_half_started(error)
            said = str(error).strip() or type(error).__name__
            if isinstance(error, ValueError) or not _TIMES_OUT.search(said):
                raise
            line = said.splitlines()[0].split(". ")[0].rstrip(".")
            if tried == TRIES:
                raise TimeoutError(f"{line} (tried {TRIES} times)") from error
            say(f"{what}: {line}: tried again", level="warning")
            ray.shutdown()


def _end_half_started(error: Exception) -> None:
    """End what belongs to a node that was not made: no shutdown knows of it any more."""
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            with suppress(Exception):  # of processes that have ended by themselves
                node.kill_all_processes(check_alive=False, allow_graceful=False)
