"""Try an experiment on a task of each split: what cannot work is said before it starts."""

import torch

from maml_dist.core.episode import map_tensors
from maml_dist.core.objective import Objective
from maml_dist.core.params import Params
from maml_dist.core.source import TaskKey
from maml_dist.experiment import Experiment


def check(experiment: Experiment, meta: Params) -> None:
    """Draw a task of each split, and put the training one through the model and its losses.

    Raises:
        ValueError, OSError: the data is missing, or data, model and loss do not fit together.
    """
    source = experiment.task
    for split in ("val", "test", "train"):
        task = source.sample(TaskKey(experiment.seed, split, 0, 0))
    stacked = source.collect([task], steps=1)
    support, query = map_tensors(lambda tensor: tensor[0], (stacked.support[0], stacked.query))
    objective = Objective(experiment.model, source)
    params = {name: meta[name] for name, _ in experiment.model.named_parameters()}
    for name, batch in (("support", support), ("query", query)):
        x, y = list(batch.x.shape), list(batch.y.shape)
        try:
            output = objective.output(params, batch.x)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"the model does not take the {name} set, x {x}: {error}") from None
        shape = list(output.shape)
        try:
            loss = (
                source.loss(output, batch)
                if name == "support"
                else source.query_loss(output, batch)
            )
        except (RuntimeError, IndexError) as error:
            most = f" up to {int(batch.y.max())}" if not batch.y.is_floating_point() else ""
            raise ValueError(
                f"the loss does not take the model's output {shape} with y {y}{most}: {error}"
            ) from None
        if not torch.is_tensor(loss) or loss.dim():
            raise ValueError(f"the loss of one task must be a scalar tensor, not {loss!r}")
    if source.metric not in source.score(output, query):
        raise ValueError(f"the task's score has no {source.metric!r}, which is its metric")
