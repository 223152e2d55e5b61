"""The folder of a new run: its name, and whether a run could start there."""

import os
from datetime import datetime
from pathlib import Path

from maml_dist.config.plain_yaml import check_path


def run_folder(run: str | Path | None, name: str, *, kind: str = "") -> Path:
    """The folder that is given for a run; if none is, a new one under `runs/`.

    Raises:
        ValueError: the path is none, or the name would lead out of `runs/`.
    """
    if run is not None:
        check_path(run, "the run's folder")
        return Path(run).absolute()
    if not name or set(name) & set("/\\\0\n") or name in (".", ".."):
        raise ValueError(f"name={name!r}: must be the name of a folder, not a path")
    stamp = f"{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]
    return Path("runs", f"{kind}{name}-{stamp}").absolute()


def refuse_used(path: Path) -> None:
    """Fail early where a run could not be started.

    Raises:
        ValueError: the folder holds a run, or the path is not a folder.
        OSError: nothing can be written there.
    """
    if (path / "recipe.yaml").exists():
        raise ValueError(f"{path} already holds a run (--resume goes on with it)")
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"{path} cannot be a run folder: {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{path} cannot be a run folder: {there} is not writable")
