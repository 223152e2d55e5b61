"""Single tasks of an experiment, collected and differentiated before it starts.

The meta-gradient must be there, be the same again, and the trace must follow it; else one line says
why, and which settings were tried and compute it.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from maml_dist.core.engine import Engine
from maml_dist.core.episode import Batch, Episode, map_tensors
from maml_dist.core.learner import Learner
from maml_dist.core.meta_gradient import MetaGradient
from maml_dist.core.objective import Objective
from maml_dist.core.params import Params, flatten, layout, real_of
from maml_dist.core.source import Adapt, TaskKey, keys_of
from maml_dist.core.trajectories import Trajectories
from maml_dist.experiment import Experiment
from maml_dist.runtime.rollout_worker import RolloutWorker
from maml_dist.said import FAILURES, in_words

TRACED_LIKE_EAGER = 1e-3  # relative; rounding moves float32 far less, a baked-in number far more


def differentiate(experiment: Experiment, meta: Params, device: str) -> None:
    """The meta-gradient: it must be there, be the same again, and the trace must follow it.

    It is computed on the CPU, by the engine that is to run on `device`.

    Raises:
        ValueError: one of these does not hold.
    """
    learner = experiment.learner
    on_policy = experiment.task.on_policy
    engine = experiment.engine.resolve(experiment.model, learner, device, on_policy=on_policy)
    engine = replace(engine, chunk=None, budget=Engine.budget)  # of single tasks
    eager, traced = (replace(engine, running=running) for running in ("eager", "traced"))
    if on_policy:  # what an environment does wrong is said as it is
        one_task(experiment, learner.steps, 1)
    # Traced at one task, replayed at another: what was baked in of the first shows.
    try:
        first, second = _gradients(experiment, meta, learner, eager, [0, 1])
        (again,) = _gradients(experiment, meta, learner, eager, [0])
        replayed = second
        if engine.running != "eager":
            _, replayed = _gradients(experiment, meta, learner, traced, [0, 1])
            if engine.precision == "bfloat16":  # whose rounding alone moves a gradient far
                single = [replace(each, precision="float32") for each in (eager, traced)]
                second, replayed = (
                    _gradients(experiment, meta, learner, each, [0, 1])[1] for each in single
                )
    except FAILURES as error:
        raise ValueError(
            "the meta-gradient of one task cannot be computed: "
            f"{in_words(error)}{_way_out(experiment, meta, engine)}"
        ) from None
    if not torch.equal(first, again) and first.isfinite().all():
        raise ValueError(
            "the meta-gradient of one task differs when computed again: the model, the loss or the "
            "learner draws random numbers, which nothing seeds, or remembers what it computed"
        )
    off = (replayed - second).norm() / second.norm().clamp(min=1e-12)
    if off > TRACED_LIKE_EAGER:
        raise ValueError(
            f"the traced meta-gradient of a task differs from the eager one (by {off:.1%}): "
            "something is read as a Python number; engine.running=eager computes without a trace"
        )


def _way_out(experiment: Experiment, meta: Params, engine: Engine) -> str:
    """The settings with which it can be computed: they are tried."""
    task: dict[str, Any] = {"batching": "task"}
    eager: dict[str, Any] = {"running": "eager"}
    learners: list[dict[str, Any]] = [{}]
    if getattr(experiment.learner, "first_order", None) is False:
        learners.append({"first_order": True})
    base = engine if engine.running == "eager" else replace(engine, running="traced")
    for learned, run in product(learners, ({}, eager, task, task | eager)):
        said = [f"learner.{name}=true" for name in learned]
        said += [f"engine.{name}={value}" for name, value in run.items()]
        try:
            learner = replace(experiment.learner, **learned)
            _gradients(experiment, meta, learner, replace(base, **run), [0, 1])
        except FAILURES:
            continue
        return f"; {' '.join(said)} computes it"
    return ""


def _gradients(
    experiment: Experiment, meta: Params, learner: Learner, engine: Engine, tasks: list[int]
) -> list[Tensor]:
    """The meta-gradients of some tasks, one after the other, each at an iteration of its own."""
    gradient = MetaGradient(engine, learner, objective_of(experiment, engine), into=layout(meta))
    return [
        gradient(
            flatten(meta), one_task(experiment, learner.steps, task), torch.tensor(float(task))
        ).gradient
        for task in tasks
    ]


def objective_of(experiment: Experiment, engine: Engine) -> Objective:
    """The experiment's losses, in the engine's precision."""
    return Objective(experiment.model, experiment.task, bfloat16=engine.precision == "bfloat16")


def one_task(experiment: Experiment, steps: int, task: int) -> Episode:
    """One training task, stacked, in the engine's precision; what it raises is the data's."""
    source, dtype = experiment.task, experiment.engine.dtype
    named = [TaskKey(experiment.seed, "train", 0, task)]
    sampled = [source.sample(key) for key in named]
    episodes = source.collect(sampled, steps=steps, adapt=_unadapted(experiment, sampled))
    episodes = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, episodes)
    return episodes._replace(key=keys_of(named))


def _unadapted(experiment: Experiment, tasks: list[Any]) -> Adapt | None:
    """On-policy: what the untrained policy does, at every stage."""
    if not experiment.task.on_policy:
        return None
    worker = RolloutWorker(experiment.task, experiment.model)
    named = experiment.model.named_parameters()
    start = {name: real_of(p.detach())[None] for name, p in named}

    def adapt(support: tuple[Batch, ...]) -> Trajectories:
        try:
            return worker.here(start, tasks, stage=len(support))
        except (RuntimeError, TypeError, IndexError) as error:
            seen = getattr(experiment.task, "observations", "these")
            raise ValueError(
                f"the policy cannot act on observations of {seen} numbers: {in_words(error)}; "
                f"perhaps model.observations={seen}"
            ) from None

    return adapt
