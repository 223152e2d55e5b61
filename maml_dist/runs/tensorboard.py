"""Scalars for TensorBoard, as the bytes of an event file.

tensorboardX's own writer has a thread and a queue: where the disk is full the thread dies, and the
queue is waited for ever after.
"""

import os
import socket
import struct
import time
from itertools import count
from typing import Any

# A record: its length, a checksum of that, the event, a checksum of that.
LENGTH, CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


_files = count()  # of this process


def file_name() -> str:
    """Of a new event file; TensorBoard reads them in this order."""
    now, process = time.time(), f"{socket.gethostname()}.{os.getpid()}"
    return f"events.out.tfevents.{now:.0f}.{process}.{next(_files)}"


def opening(start: int) -> bytes:
    """What a file begins with: events from `start` on in the files before are void."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    now = time.time()
    log = SessionLog(status=SessionLog.START)
    return _record(Event(wall_time=now, file_version="brain.Event:2")) + _record(
        Event(wall_time=now, step=start, session_log=log)
    )


def scalars(numbers: dict[str, float], step: int) -> bytes:
    """Scalars at a step, by name."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    now = time.time()
    return b"".join(
        _record(Event(wall_time=now, step=step, summary=scalar(name, value)))
        for name, value in numbers.items()
    )


def _record(event: Any) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    content: bytes = event.SerializeToString()
    length = LENGTH.pack(len(content))
    return (
        length
        + CHECKSUM.pack(masked_crc32c(length))
        + content
        + CHECKSUM.pack(masked_crc32c(content))
    )
