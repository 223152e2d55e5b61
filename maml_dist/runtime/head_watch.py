"""A word about the head of a cluster that does not answer.

Ray ends a driver whose head has not answered for a minute, which nothing can catch or hold up.
"""

import socket
import threading
import time

from maml_dist.loggers.lines import say

EVERY = 5.0  # seconds between two looks
SILENT = 3  # looks in a row without an answer, after which it is said


def watch_head(address: str) -> None:
    """Look after the head at HOST:PORT until this process has left its cluster."""
    threading.Thread(target=_watch, args=[address], name="head-watch", daemon=True).start()


def _watch(address: str) -> None:
    import ray

    silent = 0
    while ray.is_initialized():
        silent = 0 if _answers(address) else silent + 1
        if silent == SILENT:
            say(
                f"the cluster's head at {address} does not answer: "
                "Ray ends this run when it has not for a minute; once there is a cluster again, "
                "--resume goes on from the last checkpoint",
                level="warning",
                clock=True,
            )
        time.sleep(EVERY)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=EVERY).close()
    except OSError:
        return False
    return True
