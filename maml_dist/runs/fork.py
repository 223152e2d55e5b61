"""Fork: a new run that goes on where another has got to, with other values of its recipe.

Weights, the outer optimizer's state and the count of iterations are the other's, to the bits. The
first row of its metrics says so; its rows and checkpoints are of its own values alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maml_dist.config.compose import override
from maml_dist.runs.folder import refuse_links_to_run, replace
from maml_dist.runs.run import Run

FORKED = "forked/from"  # in that row: the folder of the other run


def fork(source: Run, path: Path, changes: Mapping[str, Any]) -> Run:
    """Make a run in `path` of the last checkpoint of `source`; one that was made before stays.

    Its first validation is that of this checkpoint, with the new values.

    Args:
        source: a run with a checkpoint.
        path: the new folder.
        changes: keys of the recipe that keep the model and what the outer optimizer remembers.

    Raises:
        ValueError: the checkpoint does not fit these values, or is damaged; a link leads there, or
            the place is another run's.
        OSError: the run cannot be written.
    """
    refuse_links_to_run(path)
    if (path / "recipe.yaml").exists():  # written last
        return Run.open(path)
    saved = source.saved()
    if saved is None:
        raise ValueError(f"no checkpoint in {source.checkpoints.folder.path} to go on from")
    new = Run(path, override(source.config, {"checkpoints": None, "init": None, **changes}))
    if new.layout != source.layout:
        raise ValueError(f"{source.path} does not fit these values: its parameters are others")
    with new.locked():
        if fixed := source.fixed:
            new.checkpoints.save_fixed(fixed)
        new.save(saved)
        Run(path, new.config).saved()  # what does not fit is said here
        row = {"iteration": saved[0], FORKED: str(source.path)}
        replace(path / "metrics.jsonl", f"{json.dumps(row)}\n".encode())
        new.write_recipe(new=True)
    return new
