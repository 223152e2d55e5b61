"""Identity: by what a tracker knows a run again, in a file of its folder."""

import os
import secrets
from pathlib import Path

NAME = "tracked-as"


def identity(folder: Path) -> str:
    """The run's name at trackers; made when it is first asked for.

    Raises:
        OSError: the file is a link, or cannot be written.
    """
    path = folder / NAME
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        pass
    else:
        with open(file, "rb") as opened:
            text = opened.read(64).decode(errors="replace").strip()
        if text.isalnum():
            return text
    text = secrets.token_hex(8)
    partial = folder / f"{NAME}.part"
    partial.unlink(missing_ok=True)
    with partial.open("x") as new:  # x: never through a link
        new.write(text)
    os.replace(partial, path)
    return text
