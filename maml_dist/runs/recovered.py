"""Recovered: a run by its checkpoints alone, which carry the recipe, where its folder is lost.

So it is where the machine is gone on whose disk that lay, and `checkpoints` names another place.
"""

from contextlib import suppress
from pathlib import Path

from maml_dist.runs.checkpoint_header import read_header
from maml_dist.runs.checkpoint_index import INDEX
from maml_dist.runs.checkpoints import FILE, Checkpoints
from maml_dist.runs.folder import Folder
from maml_dist.runs.identity import complete
from maml_dist.runs.run import Run
from maml_dist.runs.run_folder import refuse_used, run_folder


def is_place(where: str | Path) -> bool:
    """Whether that names a place of checkpoints, and not the folder of a run."""
    if "://" in str(where):
        return True
    if not Path(where).is_dir() or Path(where, "recipe.yaml").exists():
        return False
    return any(name == INDEX or FILE.fullmatch(name) for name in Folder(where).names())


def recovered(where: str | Path, *, folder: str | Path | None = None) -> Run:
    """The run whose checkpoints are there: in its folder, where that is here, or in a new one.

    A new one begins without the rows of metrics so far. Nothing is executed or written.

    Args:
        where: a folder or a URI.
        folder: the new folder; by default under `runs/`.

    Raises:
        ValueError: there are no checkpoints, they are damaged, or `folder` holds a run.
    """
    checkpoints = Checkpoints(where)
    if checkpoints.last is None:
        raise ValueError(f"{where} is not a run, and holds no checkpoints of one")
    place, file = checkpoints.folder, checkpoints.last.file
    if folder is None and checkpoints.owner:
        with suppress(ValueError, OSError):
            before = Run.open(checkpoints.owner)
            if before.checkpoints.folder.path == place.path:
                return before
    recipe = read_header(place, file).metadata.recipe
    config = complete(recipe, f"{place.path}/{file}: its recipe")
    config["checkpoints"] = str(where) if "://" in str(where) else place.path
    path = run_folder(folder, config["name"])
    refuse_used(path)
    return Run(path, config)
