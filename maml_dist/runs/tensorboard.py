"""Scalars for TensorBoard, written by the thread that logs them.

tensorboardX's own writer has a thread and a queue: where the disk is full the thread dies, and the
queue is waited for ever after.
"""

import time
from pathlib import Path

from maml_dist.runs.folder import make_within, naming


class Events:
    """One more event file in a folder. Events from `start` on in the others are void."""

    def __init__(self, folder: Path, *, start: int) -> None:
        """Raises ValueError where the folder is a link, OSError where it cannot be written."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._path = folder
        with naming(folder):
            make_within(folder)
            self._writer = EventsWriter(str(folder / "events"))
            self._writer.write_event(Event(step=start, file_version="brain.Event:2"))
            log = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=start, session_log=log))

    def add(self, name: str, value: float, step: int) -> None:
        """A scalar at a step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        with naming(self._path):
            self._writer.write_event(event)

    def close(self) -> None:
        """Flush everything."""
        with naming(self._path):
            self._writer.close()
