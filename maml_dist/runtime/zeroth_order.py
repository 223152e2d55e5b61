"""Zeroth order: the losses of candidate policies, lived through; and the collector of them.

    loss = -mean return of the episodes that the candidate lives in its task

A learner that takes no derivative is given this function instead of episodes. What a candidate
meets by chance is a pure function of its task and stage: all candidates of a task meet the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.data.task_source import TaskKey, keys_of
from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.engine.gradient_sum import GradientSum, sum_gradients
from maml_dist.core.params import Layout, Params, unflatten
from maml_dist.runtime.collectors import ActingCollector
from maml_dist.runtime.rollout_worker import Returns, Roll

GATHERED = 50_000_000  # numbers of candidates' weights gathered at once; bounds memory


class Scoring:
    """The losses of candidates of some tasks; counts the steps that they live."""

    def __init__(self, returns: Returns, tasks: Sequence[Any], *, into: Layout) -> None:
        self._returns = returns
        self.tasks = tasks
        self._into = into
        self.lived = torch.zeros(len(tasks))  # control steps of each task's candidates so far

    def __call__(self, candidates: Params, stage: int) -> Tensor:
        """Candidates of stacked tasks, each value [task, …, *its shape] -> losses [task, …]."""
        value, shape = candidates[self._into.names[0]], self._into.shapes[0]
        lead = value.shape[: value.dim() - len(shape)]
        at_once = max(1, GATHERED // sum(self._into.sizes))
        found = []
        for some in torch.arange(lead.numel()).split(at_once):
            places = torch.unravel_index(some, lead)
            weights = {name: value[places].cpu().numpy() for name, value in candidates.items()}
            tasks = [self.tasks[place] for place in places[0].tolist()]
            found.append(torch.from_numpy(self._returns(weights, tasks, stage=stage)))
        earned, lived = torch.cat(found, 1).unbind()
        self.lived += lived.reshape(len(self.tasks), -1).sum(1)
        return -earned.reshape(lead).to(value.device, value.dtype)


class ZerothOrderCollector(ActingCollector):
    """Candidates that act, for a learner that is given their returns; and its meta-gradient."""

    def __init__(self, *given: Any, roll: Roll, returns: Returns, kept: Sequence[str] = ()) -> None:
        """`kept` names what the flat vector holds that is not learned."""
        super().__init__(*given)
        self._source, self._learner = self._spec.source, self._spec.learner
        self._into = self._spec.layout
        self._roll = roll
        self._returns = returns
        self._kept = kept

    def episodes(self, it: int, meta: np.ndarray) -> Episode:
        """Of what the policies that meta [size] adapts to live through in the tasks of `it`."""
        start, steps = self._placement.vector(meta), self._learner.steps
        return self.collect(start, self.keys(it), it, steps=steps)

    def collect(self, meta: Tensor, keys: Sequence[TaskKey], it: int, *, steps: int) -> Episode:
        """Episodes of the policies that meta [size] adapts to, after 0 … steps steps."""
        (params, _), score = self._split(meta), self._score(keys)
        key = keys_of(keys).to(meta.device)
        start = {name: value.expand(len(keys), 1, *value.shape) for name, value in params.items()}
        path, lived = [], []
        for phi in self._learner.zeroth_order_path(score, start, key, steps=steps):
            path.append({name: value[:, 0] for name, value in phi.items()})
            lived.append(score.lived.clone())
        episodes, _ = self._lived(score.tasks, path, torch.stack(lived, 1))
        return episodes._replace(key=key)

    def gradient(self, meta: np.ndarray, it: int) -> tuple[GradientSum, Episode]:
        """The summed meta-gradient at meta [size], and the episodes of what meta adapts to."""
        keys, start = self.keys(it), self._placement.vector(meta)
        (params, kept), score = self._split(start), self._score(keys)
        key = keys_of(keys).to(start.device)
        slopes, path = self._learner.es_gradient(score, params, key)
        slopes |= {name: value.expand(len(keys), *value.shape) for name, value in kept.items()}
        gradients = torch.cat([slopes[name].flatten(1) for name in self._into.names], 1)
        lived = torch.zeros(len(keys), len(path))
        lived[:, -1] = score.lived
        episodes, losses = self._lived(score.tasks, path, lived)
        losses = losses.to(start.device, start.dtype)
        metrics = {"loss/before": losses[:, 0], "loss/after": losses[:, -1]}
        return sum_gradients(gradients, metrics), episodes

    def _split(self, meta: Tensor) -> tuple[Params, Params]:
        """What is learned, and what is kept beside it."""
        params = unflatten(meta, self._into)
        return params, {name: params.pop(name) for name in self._kept}

    def _score(self, keys: Sequence[TaskKey]) -> Scoring:
        tasks = [self._source.sample(key) for key in keys]
        both = zip(*self._into, strict=True)
        learned = [(name, shape) for name, shape in both if name not in self._kept]
        return Scoring(self._returns, tasks, into=Layout(*zip(*learned, strict=True)))

    def _lived(
        self, tasks: Sequence[Any], path: list[Params], lived: Tensor
    ) -> tuple[Episode, Tensor]:
        """What the policies of all stages live through, and their losses [task, stage].

        `lived` [task, stage]: the steps of the candidates that were tried before.
        """
        losses, steps = [], []

        def adapt(support: tuple[Batch, ...]) -> Trajectories:
            policies = {name: value.cpu() for name, value in path[len(support)].items()}
            rolled = self._roll(policies, tasks, stage=len(support))
            losses.append(-rolled.rewards.sum(2).mean(1))
            steps.append(rolled.mask.sum((1, 2)))
            return rolled

        episodes = self._source.collect(tasks, steps=len(path) - 1, adapt=adapt)
        scores = {**(episodes.scores or {}), "steps": lived + torch.stack(steps, 1).cumsum(1)}
        return episodes._replace(scores=scores), torch.stack(losses, 1)
