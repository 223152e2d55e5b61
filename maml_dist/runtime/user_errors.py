"""User errors: which part of an experiment raised an error, and where."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch

from maml_dist.core.users_line import PACKAGE, users_line

PARTS = {  # by the function of the user's that was called
    "score": "the score",
    "loss": "the loss",
    "query_loss": "the loss of the queries",
    "forward": "the model",
    "sample": "the task source",
    "collect": "the task source",
    "step": "the environment",
    "reset": "the environment",
}
_INSIDE = (
    PACKAGE / "core",
    PACKAGE / "runtime",
    Path(torch.__file__).parent,
)  # no part of the user's


def located(error: BaseException) -> str:
    """`the score (f1.py, line 24, in mean) raised ValueError: …`, in one line, not without end."""
    part = ""
    for frame, _ in walk_tb(error.__traceback__):
        file, name = Path(frame.f_code.co_filename), PARTS.get(frame.f_code.co_name)
        if (
            name
            and not any(file.is_relative_to(room) for room in _INSIDE)
            or name == PARTS["forward"]
            and not part
        ):
            part = name
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:300]} …"
    where = users_line(error)
    place = f" ({where})" if where else ""
    raised = f"{part or 'your code'}{place} raised " if part or place else ""
    return f"{raised}{type(error).__name__}: {text}".rstrip(": ")


@contextmanager
def user_errors_located() -> Iterator[None]:
    """Inside, what the user's parts raise is a ValueError of one line that names the part.

    What is said in our own words, and what machines and numbers do, stays as it is.
    """
    try:
        yield
    except (OSError, FloatingPointError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a user's code may raise
        *_, (innermost, _) = walk_tb(error.__traceback__)
        ours = Path(innermost.f_code.co_filename).is_relative_to(PACKAGE)
        if ours and isinstance(error, ValueError):
            raise
        where = located(error)
        if where.startswith(type(error).__name__):  # no part of it: it is a mistake of ours
            raise
        told: Any = ValueError(where)
        told.users_traceback = "".join(
            traceback.format_exception(error)
        )  # goes with it to another process
        raise told from error
