"""Rescue: what a run could not write where it should, in a folder of its own elsewhere.

That folder is a run, which --resume goes on with. What can still be read of the other goes along.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from maml_dist.runs.checkpoint_index import INDEX, INDEX_BYTES
from maml_dist.runs.checkpoints import FIXED, Checkpoints
from maml_dist.runs.folder import replace as write
from maml_dist.runs.run import Run


def rescue(
    run: Run,
    rows: bytes,
    write_to: Callable[[Checkpoints], None],
    *,
    beside: Iterable[Path],
    readable: bool,
) -> Path:
    """Write it to the first place that takes it; returns the folder.

    Args:
        run: whose it is.
        rows: its lines of metrics.
        write_to: writes the checkpoints that are not written to a place of them.
        beside: folders in which to make one.
        readable: whether the checkpoints that are written can be read, or would be waited for.

    Raises:
        OSError: no place takes it.
    """
    refused = ""
    for parent in beside:
        made: Path | None = None
        try:
            made = Path(tempfile.mkdtemp(prefix=f"{run.path.name}-rescued-", dir=parent))
            _fill(replace(run, path=made), run, rows, write_to, readable=readable)
            return made
        except OSError as error:
            refused = f"{refused}; {parent}: {error.strerror or error}"
            if made:
                shutil.rmtree(made, ignore_errors=True)
    raise OSError(f"nor anywhere else{refused}")


def _fill(
    new: Run,
    run: Run,
    rows: bytes,
    write_to: Callable[[Checkpoints], None],
    *,
    readable: bool,
) -> None:
    write(new.path / "metrics.jsonl", rows)
    place = new.path / "checkpoints"
    place.mkdir()
    if readable:
        try:
            _copy(run.checkpoints, place)
        except OSError:  # what was copied is of no use without the rest
            shutil.rmtree(place)
            place.mkdir()
    write_to(Checkpoints(place, keep=run.config["keep_checkpoints"], run=str(new.path)))
    config = {**run.config, "checkpoints": None}
    replace(new, config=config).write_recipe(new=True)


def _copy(checkpoints: Checkpoints, place: Path) -> None:
    """The index, and the files that it names; raises OSError."""
    best = checkpoints.noted_best
    names = {entry.file for entry in (*checkpoints.entries, *([best] if best else []))}
    for name in [*([FIXED] if checkpoints.fixed else []), *sorted(names)]:
        with (place / name).open("xb") as file:
            for part in checkpoints.folder.chunks(name):
                file.write(part)
    if (index := checkpoints.folder.read(INDEX, most=INDEX_BYTES)) is not None:
        write(place / INDEX, index)
