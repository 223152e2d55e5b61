"""Validation: a checkpoint is written, and then the weights in it are scored on held-out tasks.

So what fails in scoring, or is killed, does not cost the checkpoint; --resume scores it first.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maml_dist.experiment import Experiment
    from maml_dist.run import Run
    from maml_dist.runtime.launch import Crew

Row = dict[str, Any]
Validate = Callable[[], list[Any]]  # gives references to each shard's scores


def due(experiment: "Experiment", crew: "Crew", it: int) -> tuple[Any, Validate]:
    """What the server holds after iteration `it`, to be saved, and what is to validate it then."""
    meta = crew.server.judged.remote()
    tasks, steps = experiment.validation_tasks, experiment.test_steps

    def validate() -> list[Any]:
        return [
            shard.scores.remote(meta, it, split="val", tasks=tasks, steps=steps)
            for shard in crew.shards
        ]

    return crew.server.state.remote(), validate


def keep(
    run: "Run",
    crew: "Crew",
    saved: Any,
    validate: Validate,
    row: Row,
    *,
    log: Callable[[Row], None],
    on_validation: Callable[[Row], None],
) -> None:
    """Write a checkpoint, validate it and log its row, which is logged whatever fails.

    Args:
        run: the run.
        crew: its actors.
        saved: the server's state, by reference.
        validate: scores it.
        row: the metrics of the iterations before; the validation's join them.
        log: takes the row.
        on_validation: takes it too, when all went well.

    Raises:
        ValueError: the validation failed; names the part of the experiment that did.
        OSError: the checkpoint cannot be written; those before are whole.
    """
    try:
        run.save(crew.get(saved))
        score = _scored(run, crew, validate, row)
    finally:
        log(row)
    run.judge(score)
    on_validation(row)


def _scored(run: "Run", crew: "Crew", validate: Validate, row: Row) -> float:
    """Put the scores into the row; returns the one by which checkpoints are judged."""
    import numpy as np

    metric = run.experiment.task.metric
    try:
        parts = [part for part in crew.get(validate()) if part]
        scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise ValueError(
            f"the validation at iteration {row['iteration']} failed: {error}; its checkpoint is "
            f"kept, --resume {run.path} goes on from there"
        ) from error
    row |= {f"val/{name}": float(by[:, -1].mean()) for name, by in scores.items()}
    row[f"val/{metric}/before"] = float(scores[metric][:, 0].mean())
    # Judged over the whole path, so that a good last step hides no bad first one.
    path = float(scores[metric][:, -run.experiment.test_steps :].mean())
    row[f"val/{metric}/path"] = path
    return path
