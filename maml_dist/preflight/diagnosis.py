"""Diagnosis: which part of an experiment is at fault, found by trying each alone."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.engine.episode_spec import EpisodeSpec, flatten_episode, unflatten_episode
from maml_dist.core.engine.score_tracing import ScoreFunction
from maml_dist.core.params import flatten, layout, unflatten
from maml_dist.preflight.error_messages import FAILURES
from maml_dist.preflight.gradient_check import Found, Probe, Terms, first_apart, first_of

Fault = Callable[[Probe, Terms], Any]  # true where these terms alone have it


def culprit(probe: Probe, fault: Fault, *, scored: bool = False) -> str:
    """The part that has a fault by itself; the learner where none of the others has.

    The score is one of them where they are `scored`.
    """
    parts = {"the model": _model, "the loss": _loss, "the query loss": _query_loss}
    if scored:
        parts["the score"] = _score
    for part, terms in parts.items():
        with suppress(*FAILURES):  # not at fault in this way
            if fault(probe, terms):
                return part
    return "the learner"


def fails(probe: Probe, terms: Terms) -> bool:
    """Whether they cannot be computed as the engine does."""
    try:
        list(terms(probe))
    except FAILURES:
        return True
    return False


def nondeterministic(probe: Probe, terms: Terms) -> bool:
    """Whether they differ when computed again."""
    once, again = (first_of(probe, terms) for _ in range(2))
    return first_apart(once, again, most=0.0) is not None


def follows_score(probe: Probe) -> bool:
    """Whether the engine follows the score, or it is computed as it is written."""
    return probe.engine.running == "eager" or not _scored(probe)[0].as_written


def _model(probe: Probe) -> list[Found]:
    """Of its outputs, in the meta-parameters."""
    return _each(probe, lambda vector, batch: _outputs(probe, vector, batch).square().mean())


def _loss(probe: Probe) -> list[Found]:
    """In the model's outputs."""
    return _each(probe, probe.experiment.task.loss, at=partial(_outputs, probe))


def _query_loss(probe: Probe) -> list[Found]:
    """In the model's outputs."""
    return _each(probe, probe.experiment.task.query_loss, at=partial(_outputs, probe))


def _score(probe: Probe) -> list[Found]:
    """Of the model's outputs."""
    return _scored(probe)[1]


def _scored(probe: Probe) -> tuple[ScoreFunction, list[Found]]:
    """What scores the model's outputs, and the scores."""
    found: list[Found] = []
    scored: ScoreFunction | None = None
    for episode, _ in probe.tasks():
        spec, tensors = flatten_episode(Episode((), episode.query, episode.key))

        def score(output: Tensor, *tensors: Tensor, spec: EpisodeSpec = spec) -> Found:
            return probe.objective.score(output, unflatten_episode(spec, tensors).query)

        alone = unflatten_episode(spec, [tensor[0] for tensor in tensors]).query
        output = _outputs(probe, flatten(probe.meta), alone)
        (part,) = probe.engine.parts([output[None], *tensors])
        scored = scored or ScoreFunction(probe.engine, score)
        found.append(scored(*part))
    assert scored is not None
    return scored, found


def _outputs(probe: Probe, vector: Tensor, batch: Batch) -> Tensor:
    """Of the unadapted model."""
    learner, objective, zero = probe.experiment.learner, probe.objective, torch.zeros(()).long()
    meta = unflatten(vector, layout(probe.meta))
    learned = {name: value for name, value in meta.items() if name not in objective.kept}
    weights = learner.start_weights(learned, zero)
    return objective.output(weights, batch.x, key=batch.key, rows=batch.rows)


def _each(
    probe: Probe,
    value: Callable[[Tensor, Batch], Tensor],
    *,
    at: Callable[[Tensor, Batch], Tensor] = lambda vector, batch: vector,
) -> list[Found]:
    """A scalar of (a point, a batch) and its derivatives in the point, for each of the tasks.

    `at` gives the point, from the meta-parameters and the batch.
    """
    engine, found = probe.engine, []
    run: Callable[..., Found] | None = None
    for episode, _ in probe.tasks():
        shown = episode.support[0] if episode.support else episode.query
        spec, tensors = flatten_episode(Episode((), shown, episode.key))

        def one(point: Tensor, *tensors: Tensor, spec: EpisodeSpec = spec) -> Found:
            batch = spec.keyed(tensors, torch.zeros(()).long())

            def of(point: Tensor) -> Tensor:
                return value(point, batch)

            def steep(point: Tensor) -> Tensor:
                slope: Tensor = grad(of)(point).square().sum()
                return slope

            terms = {"value": of(point), "slope": grad(of)(point)}
            if probe.experiment.learner.second_order:
                terms["curve"] = grad(steep)(point)
            return terms

        run = run or engine.run(engine.over(one, shared=0), compiled=False)
        alone = spec.keyed(tuple(tensor[0] for tensor in tensors), torch.zeros(()).long())
        with torch.no_grad():
            point = at(flatten(probe.meta), alone)
            (part,) = engine.parts([point[None], *tensors])
            found.append(run(*part))
    return found
