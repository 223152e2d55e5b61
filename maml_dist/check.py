"""Try an experiment on a task of each split: what cannot work is said before it starts."""

from dataclasses import replace

import torch

from maml_dist.core.engine import MetaGradient
from maml_dist.core.episode import map_tensors
from maml_dist.core.objective import Objective, broadcasting_refused
from maml_dist.core.params import Params, flatten, layout
from maml_dist.core.source import TaskKey
from maml_dist.experiment import Experiment


def check(experiment: Experiment, meta: Params) -> None:
    """Draw a task of each split; put the training one through model, losses and meta-gradient.

    Raises:
        ValueError, OSError: the data is missing, or data, model and loss do not fit together.
    """
    source = experiment.task
    for split in ("val", "test", "train"):
        task = source.sample(TaskKey(experiment.seed, split, 0, 0))
    stacked = source.collect([task], steps=1)
    support, query = map_tensors(lambda tensor: tensor[0], (stacked.support[0], stacked.query))
    objective = Objective(experiment.model, source)
    params = {name: meta[name] for name, _ in experiment.model.named_parameters() if name in meta}
    for name, batch in (("support", support), ("query", query)):
        if not (torch.is_tensor(batch.x) and torch.is_tensor(batch.y)):
            raise ValueError(f"x and y of the {name} set must each be one tensor")
        x, y = list(batch.x.shape), list(batch.y.shape)
        try:
            output = objective.output(params, batch.x)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"the model does not take the {name} set, x {x}: {error}") from None
        shape = list(output.shape)
        judge = source.loss if name == "support" else source.query_loss
        try:
            with broadcasting_refused():
                loss = judge(output, batch)
        except (RuntimeError, IndexError, UserWarning) as error:
            most = f" up to {int(batch.y.max())}" if not batch.y.is_floating_point() else ""
            raise ValueError(
                f"the loss does not take the model's output {shape} with y {y}{most}: {error}"
            ) from None
        if not torch.is_tensor(loss) or loss.dim():
            raise ValueError(f"the loss of one task must be a scalar tensor, not {loss!r}")
    if source.metric not in source.score(output, query):
        raise ValueError(f"the task's score has no {source.metric!r}, which is its metric")
    _differentiate(experiment, meta, objective)


def _differentiate(experiment: Experiment, meta: Params, objective: Objective) -> None:
    """One task's meta-gradient, twice: it must be there, and be the same."""
    source, learner = experiment.task, experiment.learner
    task = source.sample(TaskKey(experiment.seed, "train", 0, 0))
    episode = source.collect([task], steps=learner.steps)
    engine = replace(experiment.engine.resolve(experiment.model, "cpu"), traced=False)
    gradient = MetaGradient(engine, learner, objective, into=layout(meta))
    try:
        one, again = (gradient(flatten(meta), episode, torch.zeros(()))[0] for _ in range(2))
    except (RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"the meta-gradient of one task cannot be computed: {error}") from None
    if not torch.equal(one, again) and one.isfinite().all():
        raise ValueError(
            "the meta-gradient of one task differs when computed again: the model, the loss or the "
            "learner draws random numbers, which nothing seeds"
        )
