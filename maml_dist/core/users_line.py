"""The user's line: where in a user's own code an error came from."""

import site
import sysconfig
from pathlib import Path
from traceback import format_exception, walk_tb
from types import FrameType

PACKAGE = Path(__file__).parents[1]
_INSTALLED = {
    Path(folder).resolve()
    for folder in (
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    )
}


def is_installed(file: str | Path) -> bool:
    """Whether a file is of Python or of an installed package."""
    resolved = Path(file).resolve()
    return any(resolved.is_relative_to(folder) for folder in _INSTALLED)


def users_line(error: BaseException, *, raised: bool = False) -> str | None:
    """File, line and function of the user's that an error came from; None where it is not theirs.

    Torch, called by the user's code, may have raised it; not so this package. `raised`: nor torch.
    """
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            return None
        if _is_users(frame):
            return f"{file}, line {line}, in {frame.f_code.co_name}"
        if raised:
            return None
    return None


def whole_traceback(error: BaseException) -> str:
    """The traceback of an error, after that of what a user's code raised in another process."""
    own = "".join(format_exception(error))
    there: str = getattr(error, "users_traceback", "")
    return own if there in own else f"{there}\n{own}"


def _is_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    if name.startswith("<"):  # made by exec, as a dataclass's constructor; or a notebook's cell
        return name.startswith("<ipython-input")
    return not is_installed(name)
