"""Meta-test: the score of held-out tasks after 0 … M adaptation steps, in this process."""

import json
import math
import statistics
from typing import Any

import numpy as np
import torch

from maml_dist.config.experiment import TASKS
from maml_dist.config.plain_yaml import short
from maml_dist.core.model.objective import modes
from maml_dist.core.params import Params, flatten
from maml_dist.core.validation import STEPS, check_whole
from maml_dist.runs.run import Run
from maml_dist.runtime.local_backend import LocalBackend
from maml_dist.runtime.shard import TaskShard


def meta_test(
    run: Run,
    *,
    split: str = "test",
    tasks: int | None = None,
    steps: int | None = None,
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Score a run's checkpoint; the result is also written to its `evaluation.json`.

    Args:
        run: the run.
        split: "train", "val" or "test".
        tasks: how many tasks; the recipe's `test_tasks` if None.
        steps: how many adaptation steps; the recipe's `test_steps` if None.
        checkpoint: "best", "last" or a checkpoint file.

    Returns:
        `{"recipe", "split", "tasks", "metric", "results": [{"mode", "steps": [{"step", "mean",
        "ci95", "median"}, …]}]}`. With batch norm the modes are `transductive` (a batch of queries
        is normalised by itself, as in the paper), `inductive` (by the support set) and, where
        running statistics are kept, `running` (by those). Where the task source has other scores
        too, `others` beside `steps` has of each, by its name, what `steps` has of the metric.

    Raises:
        ValueError: there is no such split or checkpoint.
    """
    experiment = run.experiment
    if split not in ("train", "val", "test"):
        raise ValueError(f"split {short(repr(split))}: there are train, val and test")
    tasks = experiment.test_tasks if tasks is None else tasks
    steps = experiment.test_steps if steps is None else steps
    for name, value, low, high in (("tasks", tasks, 2, TASKS), ("steps", steps, 0, STEPS)):
        check_whole(value, name, low, high)
    weights, entry = run.weights(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    meta = flatten({name: weights[name] for name in run.layout.names}).numpy()
    results = []
    with LocalBackend():
        shard = TaskShard(run.shard_spec._replace(slices=1), device=device)
        more = _rows(shard, weights, split=split, tasks=tasks, steps=steps)
        for mode in modes(experiment.model) or ("default",):
            scores = shard.scores(
                meta, entry.iteration, split=split, tasks=tasks, steps=steps,
                mode="transductive" if mode == "default" else mode, **more,
            )  # fmt: skip
            steps_of = {
                name: [{"step": k, **_statistics(v)} for k, v in enumerate(scores[name].T)]
                for name in (experiment.task.metric, *experiment.task.other_scores)
            }  # of [task, step]
            own = {"mode": mode, "steps": steps_of.pop(experiment.task.metric)}
            results.append(own | ({"others": steps_of} if steps_of else {}))
    evaluation = {
        "recipe": experiment.name,
        "split": split,
        "tasks": tasks,
        "metric": experiment.task.metric,
        "results": results,
    }
    run.write("evaluation.json", json.dumps(evaluation, indent=1))
    return evaluation


def _rows(shard: TaskShard, weights: Params, **which: Any) -> dict[str, Any]:
    """Of sparse parameters, the rows that these tasks touch."""
    if not shard.tables:
        return {}
    ids = shard.held_out(**which)
    values = {name: weights[name][torch.from_numpy(at)].numpy() for name, at in ids.items()}
    return {"rows": {name: (at, values[name]) for name, at in ids.items()}}


def _statistics(values: np.ndarray) -> dict[str, float | None]:
    """Mean, its 95% half-width 1.96 std / sqrt(tasks), and median; None where tasks diverged."""
    values = values.astype(np.float64)  # the square of what nearly diverged is beyond float32
    finite = bool(np.isfinite(values).all())
    half_width = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if finite else None
    median = statistics.median(values.tolist())
    return {
        "mean": float(values.mean()) if finite else None,
        "ci95": half_width,
        "median": median if math.isfinite(median) else None,
    }
