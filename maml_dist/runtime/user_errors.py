"""User errors: which part of an experiment raised an error, and where."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import torch

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
_PACKAGE, _TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
_INSIDE = (_PACKAGE / "core", _PACKAGE / "runtime", _TORCH)  # no part of the user's


def located(error: BaseException) -> str:
    """`the score (f1.py, line 24) raised ValueError: …`, in one line, not without end."""
    part = ""
    for frame, line in walk_tb(error.__traceback__):
        file, name = Path(frame.f_code.co_filename), PARTS.get(frame.f_code.co_name)
        if name and not any(file.is_relative_to(room) for room in _INSIDE):
            part = f"{name} ({file.name}, line {line}) raised "
        elif name == PARTS["forward"] and not part:
            part = f"{name} raised "
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:300]} …"
    return f"{part}{type(error).__name__}: {text}".rstrip(": ")


@contextmanager
def user_errors_located() -> Iterator[None]:
    """Inside, what the user's parts raise is a ValueError of one line that names the part.

    What is said in our own words, and what machines and numbers do, stays as it is.
    """
    try:
        yield
    except (OSError, FloatingPointError):
        raise
    except Exception as error:  # whatever a user's code may raise
        *_, (innermost, _) = walk_tb(error.__traceback__)
        ours = Path(innermost.f_code.co_filename).is_relative_to(_PACKAGE)
        if ours and isinstance(error, ValueError):
            raise
        raise ValueError(located(error)) from error
