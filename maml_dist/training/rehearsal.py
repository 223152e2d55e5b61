"""Rehearsal: what follows a run's iterations, in small and in memory, before it starts.

checkpoint   the weights and the outer optimizer's state, written and read back
made again   the model predicts the same
load, adapt  the model as `maml_dist.load` gives it, adapted as the report adapts it, copied
travel       what Ray's actors are given, pickled
"""

import copy
from operator import itemgetter
from typing import Any

import torch
from safetensors.torch import load as read
from safetensors.torch import save as written

from maml_dist.core.data.episode import Batch, map_tensors
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.model.frozen_state import frozen_state, restore, saveable
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import real_of
from maml_dist.inference.load import adaptable
from maml_dist.inference.policy import Policy
from maml_dist.preflight.error_messages import FAILURES, in_words
from maml_dist.preflight.gradient_check import collected
from maml_dist.runs.run import Run
from maml_dist.runs.server_state import to_tensors
from maml_dist.runtime.pickling import unpicklable
from maml_dist.runtime.server import ParameterServer
from maml_dist.tasks.rollout import Rollouts


def rehearse(run: Run) -> None:
    """Go through the rest of a run's life in small.

    Raises:
        ValueError: a part of it cannot be; names the part at fault.
    """
    _keep(run)
    fresh = Run(run.path, run.config)  # whose objects nothing has touched, as `load` builds them
    weights = {name: value.clone() for name, value in run.initial.items()}
    try:
        _refuse_unlike(run, fresh)
        loaded = adaptable(fresh.experiment, weights, 0)
        copy.deepcopy(_adapted(fresh, loaded))
    except FAILURES as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            "the trained model could not be loaded, adapted and copied, because of the model or "
            f"the learner: {in_words(error)}"
        ) from error


def _keep(run: Run) -> None:
    """The first checkpoint, written and read back."""
    vector = run.initial_vector
    server = ParameterServer(vector, run.experiment.outer, learned=run.shard_spec.learned)
    tensors = to_tensors(server.state(), run.layout)
    back = read(written(tensors))
    values = run.seeded.in_vector(run.initial)
    given = {f"meta/{name}": value for name, value in values.items()}
    for name, value in {**tensors, **given}.items():
        kept = back[name].to(value.dtype)  # counts travel as floats
        if not torch.equal(kept.nan_to_num(), value.nan_to_num()):
            raise ValueError(
                f"{name} ({value.dtype}) is not kept by a checkpoint, which holds "
                f"{back[name].dtype}"
            )


def _refuse_unlike(run: Run, fresh: Run) -> None:
    """Raise ValueError where the model made again, with all that is kept of it, predicts otherwise.

    Such a model holds what it draws, or reads from elsewhere, where no checkpoint finds it.
    """
    if run.experiment.task.on_policy:
        return
    models = run.experiment.model, fresh.experiment.model
    restore(frozen_state(models[1]), saveable(frozen_state(models[0])))
    params = {name: real_of(p.detach()) for name, p in models[0].named_parameters()}
    x = _one_task(run)[1]
    with torch.no_grad():
        one, two = (Objective(each, run.experiment.task).output(params, x) for each in models)
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise ValueError(
            "the model made again does not predict the same: its constructor draws or reads what "
            "no checkpoint holds; hold it as a buffer, or as a tensor that is a module's attribute"
        )


def _one_task(run: Run) -> tuple[Batch, torch.Tensor]:
    """The support set and the queries' inputs of a task, in the engine's precision."""
    experiment = run.experiment
    key = TaskKey(experiment.seed, "test", 0, 0)
    alone = map_tensors(itemgetter(0), collected(experiment, [key], steps=1))
    x = alone.query.x
    return alone.support[0], x.to(experiment.engine.dtype) if x.is_floating_point() else x


def _adapted(run: Run, loaded: Any) -> torch.nn.Module:
    """A loaded model after a step on a task, as the report makes it."""
    experiment = run.experiment
    steps = min(1, experiment.test_steps)
    if isinstance(loaded, Policy):
        if isinstance(experiment.task, Rollouts) and not experiment.learner.zeroth_order:
            key = TaskKey(experiment.seed, "test", 0, 0)
            loaded.learn(experiment.task.sample(key), steps=steps)
        return loaded
    support, x = _one_task(run)
    with torch.no_grad():
        adapted: torch.nn.Module = loaded.adapt(support.x, support.y, steps=steps)
        adapted(x)
    return adapted


def refuse_unpicklable(run: Run) -> None:
    """Raise ValueError where Ray's actors cannot be given their work; names the attribute."""
    experiment = run.experiment
    parts = {
        "task": experiment.task,
        "model": experiment.model,
        "learner": experiment.learner,
        "outer": experiment.outer,
    }
    if experiment.rollout_workers:
        parts["a drawn task"] = experiment.task.sample(TaskKey(experiment.seed, "train", 0, 0))
    for part, value in parts.items():
        if found := unpicklable(value):
            where, error = found
            raise ValueError(
                f"{part}{where}: cannot be sent to Ray's actors ({error}): make it when it is "
                "first used and leave it out in __getstate__, or use --local"
            )
