"""Load: the meta-learned model of a run, ready to adapt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maml_dist.config.experiment import Experiment
from maml_dist.config.trust import Trust
from maml_dist.core.model.objective import running_statistics
from maml_dist.core.params import Params, own_form
from maml_dist.inference.adaptable import Adaptable, class_of
from maml_dist.inference.policy import Policy
from maml_dist.runs.run import Run


def load(
    run: str | Path, *, checkpoint: str = "best", trust: Trust = (), **objects: Any
) -> Adaptable:
    """The meta-learned model of a run: the user's own module, with `adapt` beside its methods.

    Batch norm normalises with the batch that it is given, as in training.

    Args:
        run: the run's folder.
        checkpoint: "best", "last" or a checkpoint file.
        trust: folders whose modules the run may use, or files in them: where its model's class
            is, say. Not needed in the process that has trained it.
        objects: `task`, `model`, `learner`, `outer` that the run was given from Python, again. Not
            needed in that process either.

    Raises:
        ValueError: the folder is no run, has no such checkpoint, or names what is not trusted.
    """
    opened = replace(Run.open(run, trust=trust, **objects), serving=True)
    weights, entry = opened.weights(checkpoint)
    return adaptable(opened.experiment, weights, entry.iteration)


def adaptable(experiment: Experiment, weights: Params, iteration: int) -> Adaptable:
    """The experiment's model, from now on with `adapt` and the weights of a checkpoint."""
    model: Any = experiment.model
    kind = type(model)
    model.__class__ = class_of(Policy if experiment.task.on_policy else Adaptable, kind)
    model._learner, model._source = experiment.learner, experiment.task
    model._it = torch.tensor(float(iteration))
    model._kept = {name: weights.pop(name) for name in running_statistics(model)}
    model._meta = weights
    learner, zero = experiment.learner, torch.tensor(0)
    start = learner.start_weights(weights, zero)
    own = own_form(start, model) | model._statistics(zero)
    model.load_state_dict({**model.state_dict(), **own})
    ready: Adaptable = model.train()
    return ready
