"""Owner: which driver trains in a place, as the place's `driver.lock` says.

The driver writes it, and every `REFRESH` seconds again, so that others see that it lives.
"""

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from maml_dist.core.schema import from_json
from maml_dist.runs.folder import Folder

NAME = "driver.lock"
MOST = 10_000  # bytes
SIZE = 512  # bytes that are written: always as many, so that writing again needs no room
REFRESH = 20.0  # seconds
STALE = 300.0  # seconds of silence after which a driver may be taken for ended


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    started: float  # of the process, seconds since the machine's start; 0: unknown
    since: str  # local time
    id: str = ""  # of this lock; before 0.2.0 it had none
    refreshed: float | None = None  # seconds since 1970, by its clock; None: it is not refreshed
    system: str = ""  # whose processes have the numbers: containers may share a host's name

    def __post_init__(self) -> None:
        if not 0 < self.pid < 2**31:
            raise ValueError(f"pid must be the number of a process, not {str(self.pid)[:20]}")
        for text in (self.host, self.since, self.id, self.system):
            if len(text) > 100 or not text.isprintable():
                raise ValueError(f"{text[:20]!r} is no name, time or number of a process")

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
        started = _started(pid) or 0.0
        host, new, now = socket.gethostname(), secrets.token_hex(8), time.time()
        return cls(host, pid, started, since, new, now, _system())

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended: a process of this host that is no more."""
        return self.here and _started(self.pid) != self.started

    @property
    def here(self) -> bool:
        """Whether it is a process of this host."""
        return self.host == socket.gethostname() and self.system in ("", _system())

    @property
    def silence(self) -> float | None:
        """Seconds since it was refreshed, as far as the clocks agree; None: it is not refreshed."""
        return None if self.refreshed is None else abs(time.time() - self.refreshed)

    @property
    def stale(self) -> bool:
        """Whether it has been silent for too long."""
        return self.silence is not None and self.silence > STALE

    def content(self) -> bytes:
        """What the file holds."""
        return json.dumps(asdict(self)).ljust(SIZE).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def read_owner(folder: Folder) -> Owner | None:
    """The owner of a place; None where it has none.

    Raises:
        ValueError: its lock is damaged.
        OSError: it cannot be read.
    """
    content = folder.read(NAME, most=MOST)
    if not content:
        return None
    where = f"{folder.path}/{NAME}"
    try:
        owner: Owner = from_json(content, Owner, where)
    except ValueError as error:
        raise ValueError(f"{error}; if no driver is training there, remove it") from None
    return owner


def _system() -> str:
    """The boot of this machine and the namespace of process numbers; "" where not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> float | None:
    """When a process of this host began; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return float(text.rpartition(")")[2].split()[19])
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0.0 if not Path("/proc/self/stat").exists() else None
