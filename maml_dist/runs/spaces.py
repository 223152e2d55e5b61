"""Spaces: what a run of policies notes of its task source, in `spaces.json`.

By these its policy acts and adapts where the environment that it was trained in is not there.
"""

import json
from pathlib import Path

from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.schema import from_json
from maml_dist.runs.folder import read_bounded, replace
from maml_dist.tasks.absent import Spaces, spaces_of

NAME = "spaces.json"
BYTES = 10_000  # at the most


def note(run: Path, source: TaskSource) -> None:
    """Write them, where the source has any.

    Raises:
        OSError: the run's folder cannot be written.
    """
    if spaces := spaces_of(source):
        replace(run / NAME, json.dumps(spaces).encode())


def noted(run: Path) -> Spaces | None:
    """What is noted; None of a run without policies, or of one that noted nothing yet.

    Raises:
        ValueError: the file holds something else.
    """
    file = run / NAME
    if not file.is_file():
        return None
    spaces: Spaces = from_json(read_bounded(file, most=BYTES), Spaces, str(file))
    return spaces
