"""A shard's products with the curvature are those of a shard that was asked nothing before."""

from pathlib import Path

import numpy as np

from maml_dist.config.compose import compose
from maml_dist.core.params import flatten
from maml_dist.runs.run import Run
from maml_dist.runtime.shard import TaskShard

SMALL = {"meta_batch": 2, "task.episodes": 4, "task.horizon": 6, "model.hidden": (8,)}
SMALL |= {"engine.running": "traced"}


def test_whatever_was_asked_before():
    spec = Run(Path("unwritten"), (config := compose("navigation", SMALL))).shard_spec
    here = flatten(Run(Path("unwritten"), config).initial).numpy()
    there = here + 0.01 * np.sin(np.arange(len(here), dtype=np.float32))
    along = np.cos(np.arange(len(here), dtype=np.float32))
    asked = [
        (here, 0, along, 1.0, 1.0),
        (here, 0, along, 0.5, 1.0),
        (here, 0, there, 0.5, 0.5),
        (here, 0, there, 0.5, 1.0),
        (here, 1, along, 0.5, 1.0),
        (there, 1, along, 0.5, 1.0),
        (there, 1, here, 0.5, 1.0),
    ]
    shard = TaskShard(spec)
    found = []
    for number, question in enumerate(asked):
        found.append(shard.curvature(*question).gradient)
        if number == 5:
            shard.objective(there, 1, here)
    alone = [TaskShard(spec).curvature(*question).gradient for question in asked]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, alone, strict=True))
    assert len({vector.tobytes() for vector in found}) == len(asked)
