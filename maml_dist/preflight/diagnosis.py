"""Blame: which part of an experiment is at fault, found by trying each alone."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.engine.episode_spec import Form, pack, unpack
from maml_dist.core.engine.score_tracing import Scored
from maml_dist.core.params import flatten, layout, unflatten
from maml_dist.preflight.error_messages import FAILURES
from maml_dist.preflight.gradient_check import Found, Terms, Trial, first_apart, first_of

Fault = Callable[[Trial, Terms], Any]  # true where these terms alone have it


def blamed(trial: Trial, fault: Fault, *, scored: bool = False) -> str:
    """The part that has a fault by itself; the learner where none of the others has.

    The score is one of them where they are `scored`.
    """
    source = trial.experiment.task
    parts = {"the model": _model, "the loss": _loss}
    if type(source).query_loss is not TaskSource.query_loss:
        parts["the query loss"] = _query_loss
    if scored:
        parts["the score"] = _score
    for part, terms in parts.items():
        with suppress(*FAILURES):  # not at fault in this way
            if fault(trial, terms):
                return part
    return "the learner"


def fails(trial: Trial, terms: Terms) -> bool:
    """Whether they cannot be computed as the engine does."""
    try:
        list(terms(trial))
    except FAILURES:
        return True
    return False


def wavers(trial: Trial, terms: Terms) -> bool:
    """Whether they differ when computed again."""
    once, again = (first_of(trial, terms) for _ in range(2))
    return first_apart(once, again, most=0.0) is not None


def follows_score(trial: Trial) -> bool:
    """Whether the engine follows the score, or it is computed as it is written."""
    return trial.engine.running == "eager" or not _scored(trial)[0].as_written


def _model(trial: Trial) -> list[Found]:
    """Of its outputs, in the meta-parameters."""
    return _each(trial, lambda vector, batch: _outputs(trial, vector, batch).square().mean())


def _loss(trial: Trial) -> list[Found]:
    """In the model's outputs."""
    return _each(trial, trial.experiment.task.loss, at=partial(_outputs, trial))


def _query_loss(trial: Trial) -> list[Found]:
    """In the model's outputs."""
    return _each(trial, trial.experiment.task.query_loss, at=partial(_outputs, trial))


def _score(trial: Trial) -> list[Found]:
    """Of the model's outputs."""
    return _scored(trial)[1]


def _scored(trial: Trial) -> tuple[Scored, list[Found]]:
    """What scores the model's outputs, and the scores."""
    found: list[Found] = []
    scored: Scored | None = None
    for episode, _ in trial.tasks():
        form, tensors = pack(Episode((), episode.query, episode.key))

        def score(output: Tensor, *tensors: Tensor, form: Form = form) -> Found:
            return trial.objective.score(output, unpack(form, tensors).query)

        alone = unpack(form, [tensor[0] for tensor in tensors]).query
        output = _outputs(trial, flatten(trial.meta), alone)
        (part,) = trial.engine.parts([output[None], *tensors])
        scored = scored or Scored(trial.engine, score)
        found.append(scored(*part))
    assert scored is not None
    return scored, found


def _outputs(trial: Trial, vector: Tensor, batch: Batch) -> Tensor:
    """Of the unadapted model."""
    learner, objective, zero = trial.experiment.learner, trial.objective, torch.zeros(()).long()
    meta = unflatten(vector, layout(trial.meta))
    learned = {name: value for name, value in meta.items() if name not in objective.kept}
    weights = learner.weights(learned, learner.start(learned)[0], zero)
    return objective.output(weights, batch.x, key=batch.key)


def _each(
    trial: Trial,
    value: Callable[[Tensor, Batch], Tensor],
    *,
    at: Callable[[Tensor, Batch], Tensor] = lambda vector, batch: vector,
) -> list[Found]:
    """A scalar of (a point, a batch) and its derivatives in the point, for each of the tasks.

    `at` gives the point, from the meta-parameters and the batch.
    """
    engine, found = trial.engine, []
    run: Callable[..., Found] | None = None
    for episode, _ in trial.tasks():
        shown = episode.support[0] if episode.support else episode.query
        form, tensors = pack(Episode((), shown, episode.key))

        def one(point: Tensor, *tensors: Tensor, form: Form = form) -> Found:
            batch = form.keyed(tensors, torch.zeros(()).long())

            def of(point: Tensor) -> Tensor:
                return value(point, batch)

            def steep(point: Tensor) -> Tensor:
                slope: Tensor = grad(of)(point).square().sum()
                return slope

            terms = {"value": of(point), "slope": grad(of)(point)}
            if trial.experiment.learner.second_order:
                terms["curve"] = grad(steep)(point)
            return terms

        run = run or engine.run(engine.over(one, shared=0), compiled=False)
        alone = form.keyed(tuple(tensor[0] for tensor in tensors), torch.zeros(()).long())
        with torch.no_grad():
            point = at(flatten(trial.meta), alone)
            (part,) = engine.parts([point[None], *tensors])
            found.append(run(*part))
    return found
