"""Try an experiment on tasks of each split: what cannot work is said before it starts.

Refused, each in one line that names the part: tasks that are no function of their keys; data, model
and loss that do not fit together; random numbers that nothing seeds; a model that changes its
buffers or its input; a score that is no number; what has no second derivative, a wrong one, or
cannot be traced or vmapped (the line names settings that were tried and compute it).

A second derivative is compared with finite differences for custom autograd.Functions alone, where
the two must agree: of a whole model they need not (stopped gradients, straight-through ones).
"""

import numbers
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from maml_dist.config.experiment import Experiment
from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.episode import Batch, keyed, map_tensors
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.episode_spec import leaves
from maml_dist.core.engine.meta_gradient import task_bytes
from maml_dist.core.model.equal_shapes import broadcasting_refused
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import Params, flatten, layout
from maml_dist.core.users_line import users_line
from maml_dist.loggers.lines import say
from maml_dist.preflight.diagnosis import culprit, fails, follows_score, nondeterministic
from maml_dist.preflight.double_backward import wrong_second_derivative
from maml_dist.preflight.error_messages import FAILURES, in_words
from maml_dist.preflight.gradient_check import (
    Probe,
    first_apart,
    first_of,
    gradients,
    objective_of,
    one_task,
    policy_terms,
    probe_of,
    refuse_unnamed,
    refuse_untouched,
    scores,
    trace_deviation,
    validated,
)
from maml_dist.preflight.purity import Seeded, Unseeded, refuse_impure, unchanged
from maml_dist.preflight.reduced import reduced
from maml_dist.preflight.settings import refuse_conflicts
from maml_dist.runtime.allocator import freed_kept


@freed_kept()
def check(experiment: Experiment, meta: Params, device: str = "cpu") -> list[str]:
    """Draw tasks of each split; put training ones through model, losses, meta-gradient, scores.

    All of it is computed on the CPU, but as the engine is to run on `device`. A score that no trace
    follows is noted on stderr.

    Returns:
        The names of the scores.

    Raises:
        ValueError, OSError: the data is missing, or the experiment cannot be meta-learned.
    """
    refuse_conflicts(experiment)
    refuse_impure(experiment)
    experiment, meta = reduced(experiment, meta)
    source, model = experiment.task, experiment.model
    stacked = one_task(experiment, max(1, experiment.learner.steps), 0)
    support, query, key = map_tensors(
        lambda tensor: tensor[0], (stacked.support[0], stacked.query, stacked.key)
    )
    _refuse_dropout_between(model)
    objective = objective_of(experiment, experiment.engine)
    named = dict(model.named_parameters())
    start = experiment.learner.start_weights(meta, torch.zeros((), dtype=torch.int64))
    params = {name: start[name] for name in named if name in start}
    for name, batch in (("support", support), ("query", query)):
        if not (torch.is_tensor(batch.x) and (source.on_policy or torch.is_tensor(batch.y))):
            raise ValueError(f"x and y of the {name} set must each be one tensor")
        batch = keyed(batch, key, 0, query=name == "query")
        with unchanged(model, params, batch), Seeded():
            output = _output(objective, params, batch, name)
            judge = source.loss if name == "support" else source.query_loss
            loss = _loss(judge, output, batch)
        if objective.remembers(params, batch):
            raise ValueError(
                "the model's output differs when computed again: it draws random numbers, "
                "which nothing seeds, or remembers what it computed"
            )
        if not torch.is_tensor(loss) or loss.dim():
            raise ValueError(f"the loss of one task must be a scalar tensor, not {loss!r}")
    if source.on_policy:
        scored_by = {name: value[0, -1] for name, value in (stacked.scores or {}).items()}
    else:
        drawing = Seeded("the score draws random numbers", "it must be a function of its arguments")
        with unchanged(model, params, query), drawing:
            scored_by = _score(objective, output, query)
    _refuse_no_numbers(scored_by, source)
    if experiment.learner.second_order:
        _refuse_wrong_second_derivative(experiment.learner, objective, params, support)
    check_engine(experiment, meta, device)
    return list(scored_by)


def check_engine(experiment: Experiment, meta: Params, device: str) -> None:
    """What the engine computes on `device` must be there, be the same again, and its trace follow.

    Raises:
        ValueError: one of these does not hold; names the part at fault.
    """
    if experiment.task.on_policy and experiment.learner.zeroth_order:
        return  # no derivative is taken
    experiment, meta = reduced(experiment, meta)
    probe = probe_of(experiment, meta, device)
    _refuse_nondeterminism(probe, "meta-gradient")
    if experiment.task.on_policy:
        if deviation := trace_deviation(probe, policy_terms):
            raise ValueError(_trace_message(*deviation, culprit(probe, trace_deviation)))
        return
    refuse_unnamed(probe, gradients)
    refuse_untouched(probe)
    probe = validated(probe)
    _refuse_nondeterminism(probe, "scores")
    refuse_unnamed(probe, scores)
    if not follows_score(probe):
        say(
            f"note: the score of task={type(experiment.task).__name__} reads tensors as numbers or "
            "decides by them (numpy, .item(), if): it is computed task by task, as written",
            level="warning",
        )


def _refuse_nondeterminism(probe: Probe, what: Literal["meta-gradient", "scores"]) -> None:
    """Raise ValueError where this cannot be computed, twice alike, and by a trace as eagerly."""
    scored = what == "scores"
    terms = scores if scored else gradients
    try:
        once, again = (first_of(probe, terms) for _ in range(2))
        deviation = trace_deviation(probe, terms)
    except FAILURES as error:
        out = "" if scored else _way_out(probe)
        raise ValueError(
            f"the {what} of one task cannot be computed, because of "
            f"{culprit(probe, fails, scored=scored)}: {in_words(error)}{out}"
        ) from None
    diverged = not scored and not once["meta-gradient"].isfinite().all()
    if (apart := first_apart(once, again, most=0.0)) and not diverged:
        named = f"score {apart[0]}" if scored else what
        part = culprit(probe, nondeterministic, scored=scored)
        raise ValueError(f"the {named} {_NONDETERMINISM.format(part)}")
    if deviation:
        raise ValueError(_trace_message(*deviation, culprit(probe, trace_deviation, scored=scored)))


_NONDETERMINISM = (
    "of one task differs when computed again: {} draws random numbers, which nothing seeds, or "
    "remembers what it computed"
)


def _trace_message(name: str, off: float, part: str) -> str:
    return (
        f"the traced {name} of a task differs from the eager one (by {off:.1%}): the trace of "
        f"{part}, made with one task, computes something else for another, as where a number is "
        "read from a tensor and kept; engine.running=eager computes without a trace"
    )


def resolve_engine(experiment: Experiment, meta: Params, device: str) -> Engine:
    """The engine with every `auto` decided, by this experiment's model, learner and tasks."""
    together = -(-experiment.meta_batch // (experiment.slices or 1))  # whose rows each task has
    experiment, meta = reduced(experiment, meta, tasks=together)

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
        peak=None if experiment.task.on_policy and experiment.learner.zeroth_order else peak,
    )


def _way_out(probe: Probe) -> str:
    """The settings with which the meta-gradient can be computed, if one of two tries finds them."""
    alone: dict[str, Any] = {"batching": "task", "running": "eager"}
    learner, said = probe.experiment.learner, "engine.batching=task engine.running=eager"
    tried = probe._replace(engine=replace(probe.engine, **alone))
    if not fails(tried, gradients):
        return f"; {said} computes it"
    if getattr(learner, "first_order", None) is False:
        first: dict[str, Any] = {"first_order": True}
        experiment = replace(probe.experiment, learner=replace(learner, **first))
        if not fails(tried._replace(experiment=experiment), gradients):
            return f"; learner.first_order=true {said} computes it"
    return ""


def _output(objective: Objective, params: Params, batch: Batch, name: str) -> Tensor:
    try:
        output = objective.output(params, batch.x, key=batch.key, rows=batch.rows)
    except FAILURES as error:
        if isinstance(error, ValueError) and users_line(error) is None:
            raise  # it is said already
        raise ValueError(
            f"the model does not take the {name} set, x {list(batch.x.shape)}: {in_words(error)}"
        ) from error
    if not torch.is_tensor(output):
        raise ValueError(f"the model must return one tensor, not {type(output).__name__}")
    return output


def _score(objective: Objective, output: Tensor, query: Batch) -> Any:
    try:
        return objective.score(output.detach(), query._replace(key=None))
    except Unseeded:
        raise
    except FAILURES as error:
        raise ValueError(
            f"the score of the model's output {list(output.shape)} cannot be computed: "
            f"{in_words(error)}"
        ) from None


def _loss(judge: Any, output: Tensor, batch: Batch) -> Any:
    try:
        with broadcasting_refused(*leaves(batch)[1:2]):
            return judge(output, batch)
    except (*FAILURES, UserWarning) as error:
        if isinstance(error, ValueError) and users_line(error) is None:
            raise
        y = leaves(batch)[1]
        most = f" up to {int(y.max())}" if not y.is_floating_point() else ""
        raise ValueError(
            f"the loss does not take the model's output {list(output.shape)} with "
            f"y {list(y.shape)}{most}: {in_words(error)}"
        ) from error


def _refuse_no_numbers(scores: Any, source: Any) -> None:
    """Raise ValueError where scores are no numbers by name, with the metric among them."""
    kind = type(source).__name__
    if not isinstance(scores, Mapping) or source.metric not in scores:
        raise ValueError(f"the task's score has no {source.metric!r}, which is its metric")
    for name, value in scores.items():
        if torch.is_tensor(value):
            fits = value.dim() == 0 and not value.is_complex()
        else:
            fits = isinstance(value, numbers.Real | np.generic)
        if not fits:
            what = f"a tensor {list(value.shape)}" if torch.is_tensor(value) else repr(value)
            raise ValueError(f"task={kind}: its score {name!r} must be one number, not {what:.80}")


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
