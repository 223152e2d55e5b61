"""Sessions: when, where and by what a run was trained: `sessions.jsonl`, a line for each of them.

It is written when a session ends, however that is; of one that is killed there is none. Where it
ends by an error, `errors.log` gets the whole traceback.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from maml_dist.core.schema import from_json
from maml_dist.core.users_line import PACKAGE, whole_traceback
from maml_dist.runs.folder import read_bounded
from maml_dist.runs.lock import Held, LockLost

NAME = "sessions.jsonl"
ERRORS = "errors.log"
BYTES = 10_000_000  # at the most
PACKAGES = ("maml_dist", "torch", "ray")


@dataclass(frozen=True)
class Session:
    """A line."""

    began: str  # local time
    seconds: float
    cores: int  # of the driver's machine
    system: str  # its operating system and processor
    versions: dict[str, str]
    commit: str = ""  # of this package, where it is a checkout


@contextmanager
def session(folder: Path, held: Held | None = None) -> Iterator[None]:
    """Inside, the run in `folder` is trained. What cannot be written is left out.

    Nothing is where `held`, the lock on the run, is lost: it is another's now.
    """
    began, clock = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic()
    try:
        yield
    except Exception as error:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        _append(folder / ERRORS, f"{now}\n{whole_traceback(error)}\n", held)
        raise
    finally:
        line = Session(
            began,
            round(time.monotonic() - clock, 1),
            os.cpu_count() or 1,
            f"{platform.system()} {platform.machine()}",
            {name: found for name in PACKAGES if (found := _version(name))},
            _commit(PACKAGE.parent / ".git"),
        )
        _append(folder / NAME, json.dumps(asdict(line)) + "\n", held)


def _append(path: Path, text: str, held: Held | None) -> None:
    with suppress(OSError, LockLost):
        if held:
            held.check()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(path, flags, 0o644)
        try:
            os.write(file, text.encode(errors="replace"))
        finally:
            os.close(file)


def sessions(folder: Path) -> list[Session]:
    """Those of a run, the first one first; lines that are none are left out."""
    if not (folder / NAME).is_file():
        return []
    found = []
    for line in read_bounded(folder / NAME, most=BYTES).splitlines():
        with suppress(ValueError):
            found.append(from_json(line, Session, NAME))
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit(git: Path) -> str:
    """What is checked out, by git's own files."""
    with suppress(OSError, UnicodeDecodeError):
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            head = (git / head.removeprefix("ref: ")).read_text().strip()
        return head[:12] if head.isalnum() else ""
    return ""
