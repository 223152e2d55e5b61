"""Scalars for TensorBoard, as the bytes of an event file.

tensorboardX's own writer has a thread and a queue: where the disk is full the thread dies, and the
queue is waited for ever after.
"""

import os
import socket
import struct
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from maml_dist.loggers.flat import flat

# A record: its length, a checksum of that, the event, a checksum of that.
LENGTH, CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


# What one compares runs by.
HPARAMS = ("task", "model", "learner", "outer", "meta_batch", "iterations", "seed")

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


def recipe(config: dict[str, Any]) -> bytes:
    """The configuration: as text, and for the HParams page."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import hparams, text

    leaves = flat({key: config[key] for key in HPARAMS})
    summaries = [text("recipe", f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}\n```")]
    summaries += hparams(leaves, {})[:2]  # the third says that it has ended
    now = time.time()
    return b"".join(_record(Event(wall_time=now, step=0, summary=each)) for each in summaries)


def pictures(paths: Iterable[Path], step: int) -> bytes:
    """PNG files as images, by their names."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    found = b""
    for path in paths:
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # as PNG has it
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=content
        )
        summary = Summary(value=[Summary.Value(tag=path.stem, image=image)])
        found += _record(Event(wall_time=time.time(), step=step, summary=summary))
    return found


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
