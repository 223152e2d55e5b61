"""Try an experiment on a task of each split: what cannot work is said before it starts.

Refused, each in one line: data, model and loss that do not fit together; random numbers that
nothing seeds; a model that changes its buffers or its input; what has no second derivative, a wrong
one, or cannot be traced or vmapped (the line names settings that were tried and compute it).

A second derivative is compared with finite differences for custom autograd.Functions alone, where
the two must agree: of a whole model they need not (stopped gradients, straight-through ones).
"""

from typing import Any

import torch
from torch import Tensor, nn

from maml_dist.core.double_backward import wrong_second_derivative
from maml_dist.core.engine import Engine
from maml_dist.core.episode import Batch, keyed, map_tensors
from maml_dist.core.form import leaves
from maml_dist.core.learner import Learner
from maml_dist.core.meta_gradient import task_bytes
from maml_dist.core.objective import Objective, broadcasting_refused
from maml_dist.core.params import Params, flatten, layout
from maml_dist.core.policy_gradient import PolicyGradient
from maml_dist.core.source import TaskKey
from maml_dist.core.trust_region import TrustRegion
from maml_dist.experiment import Experiment
from maml_dist.guards import Seeded, unchanged
from maml_dist.said import FAILURES, in_words
from maml_dist.tasks.rollout import Rollouts
from maml_dist.trial import differentiate, objective_of, one_task


def check(experiment: Experiment, meta: Params, device: str = "cpu") -> None:
    """Draw a task of each split; put the training one through model, losses and meta-gradient.

    All of it is computed on the CPU, but as the engine is to run on `device`.

    Raises:
        ValueError, OSError: the data is missing, or the experiment cannot be meta-learned.
    """
    source, model = experiment.task, experiment.model
    if experiment.outer.on_policy and not source.on_policy:
        raise ValueError(
            f"outer={type(experiment.outer).__name__}: needs the policies of rollouts, and "
            f"task={type(source).__name__} has none; use maml_dist.core.outer.Adam"
        )
    scored = source.on_policy and experiment.learner.by_scores
    if scored:
        _refuse_derivatives(experiment)
    if source.on_policy and experiment.engine.precision == "bfloat16":
        raise ValueError(
            "engine.precision=bfloat16: rollouts act in float32, so that the policies judged would "
            "not be those that acted; use float32, or float64"
        )
    for split in ("val", "test"):
        source.sample(TaskKey(experiment.seed, split, 0, 0))
    stacked = one_task(experiment, max(1, experiment.learner.steps), 0)
    support, query, key = map_tensors(
        lambda tensor: tensor[0], (stacked.support[0], stacked.query, stacked.key)
    )
    _refuse_dropout_between(model)
    objective = objective_of(experiment, experiment.engine)
    named = dict(model.named_parameters())
    start = experiment.learner.weights(
        meta, experiment.learner.start(meta)[0], torch.zeros((), dtype=torch.int64)
    )
    params = {name: start[name] for name in named if name in start}
    for name, batch in (("support", support), ("query", query)):
        if not (torch.is_tensor(batch.x) and (source.on_policy or torch.is_tensor(batch.y))):
            raise ValueError(f"x and y of the {name} set must each be one tensor")
        batch = keyed(batch, key, 0, query=name == "query")
        with unchanged(model, params, batch), Seeded():
            output = _output(objective, params, batch, name)
            judge = source.loss if name == "support" else source.query_loss
            loss = _loss(judge, output, batch)
        if not torch.is_tensor(loss) or loss.dim():
            raise ValueError(f"the loss of one task must be a scalar tensor, not {loss!r}")
    scores = stacked.scores if source.on_policy else source.score(output, query)
    if source.metric not in (scores or {}):
        raise ValueError(f"the task's score has no {source.metric!r}, which is its metric")
    if experiment.learner.second_order:
        _refuse_wrong_second_derivative(experiment.learner, objective, params, support)
    if not scored:
        differentiate(experiment, meta, device)


def decide(experiment: Experiment, meta: Params, device: str) -> Engine:
    """The engine with every `auto` decided, by this experiment's model, learner and tasks."""

    def peak(engine: Engine) -> int:
        objective = objective_of(experiment, engine)
        episodes = one_task(experiment, experiment.learner.steps, 0)
        return task_bytes(
            engine, experiment.learner, objective, flatten(meta), episodes, layout(meta)
        )

    return experiment.engine.resolve(
        experiment.model,
        experiment.learner,
        device,
        on_policy=experiment.task.on_policy,
        peak=None if experiment.task.on_policy and experiment.learner.by_scores else peak,
    )


def refuse_idle(experiment: Experiment) -> None:
    """Raise ValueError where a setting does nothing here; of new runs, since old ones may go on."""
    source, outer = experiment.task, experiment.outer
    for name in ("rollout_workers", "environments"):
        value = getattr(experiment, name)
        if not source.on_policy and value != getattr(Experiment, name):
            raise ValueError(
                f"{name}={value}: task={type(source).__name__} has no rollouts; leave {name} out"
            )
    if isinstance(source, Rollouts):
        gradient = source.policy_gradient
        if gradient.clip != PolicyGradient.clip and gradient.outer_surrogate != "clipped":
            raise ValueError(
                f"task.policy_gradient.clip={gradient.clip}: does nothing with "
                f"outer_surrogate={gradient.outer_surrogate}; use clipped, or {PolicyGradient.clip}"
            )
    once = not outer.asks or isinstance(outer, TrustRegion)  # a single gradient an iteration
    if source.on_policy and source.penalty and once and not experiment.learner.by_scores:
        raise ValueError(
            f"task.policy_gradient.penalty={source.penalty}: does nothing in a first epoch, where "
            "the policy is the one that acted; use outer.epochs=2 or more, or 0"
        )


def _refuse_derivatives(experiment: Experiment) -> None:
    """Of policies that a learner knows by their returns alone."""
    outer, kind = experiment.outer, type(experiment.learner).__name__
    if outer.on_policy:
        raise ValueError(
            f"outer={type(outer).__name__}: needs derivatives of the policies, and learner={kind} "
            "takes none; use maml_dist.core.outer.Adam"
        )
    if outer.epochs > 1:
        raise ValueError(
            f"outer.epochs={outer.epochs}: must be 1 with learner={kind}, which has no episodes to "
            "use again"
        )
    if experiment.task.penalty:
        raise ValueError(
            f"task.policy_gradient.penalty={experiment.task.penalty}: must be 0 with "
            f"learner={kind}, which takes no derivatives of the policies"
        )


def _output(objective: Objective, params: Params, batch: Batch, name: str) -> Tensor:
    try:
        output = objective.output(params, batch.x, key=batch.key)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"the model does not take the {name} set, x {list(batch.x.shape)}: {in_words(error)}"
        ) from None
    if not torch.is_tensor(output):
        raise ValueError(f"the model must return one tensor, not {type(output).__name__}")
    return output


def _loss(judge: Any, output: Tensor, batch: Batch) -> Any:
    try:
        with broadcasting_refused(*leaves(batch)[1:2]):
            return judge(output, batch)
    except (RuntimeError, IndexError, UserWarning) as error:
        y = leaves(batch)[1]
        most = f" up to {int(y.max())}" if not y.is_floating_point() else ""
        raise ValueError(
            f"the loss does not take the model's output {list(output.shape)} with "
            f"y {list(y.shape)}{most}: {in_words(error)}"
        ) from None


def _refuse_dropout_between(model: nn.Module) -> None:
    for name, part in model.named_modules():
        if isinstance(part, nn.RNNBase) and part.dropout > 0 and part.num_layers > 1:
            kind = type(part).__name__
            raise ValueError(
                f"{name or 'the model'} is nn.{kind}(dropout={part.dropout:g}), which draws random "
                f"numbers that the task does not seed: use single nn.{kind} layers with nn.Dropout "
                "between them, or dropout=0"
            )


def _refuse_wrong_second_derivative(
    learner: Learner, objective: Objective, params: Params, batch: Batch
) -> None:
    try:
        wrong = wrong_second_derivative(objective.loss, params, batch)
    except FAILURES:
        return  # said with the meta-gradient
    if wrong:
        without = "; first order does without: learner.first_order=true"
        raise ValueError(
            f"the second derivative of {wrong}, an autograd.Function, is not that of its backward: "
            "backward must be differentiable (no once_differentiable, no detach, nothing on ctx "
            f"but by save_for_backward){without if hasattr(learner, 'first_order') else ''}"
        )
