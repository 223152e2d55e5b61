"""TaskShard: the actor that computes slices of every meta-batch.

Slice s of n holds the tasks range(s, meta_batch, n): a shard collects their episodes, adapts to
them and returns the sum of their meta-gradients. It keeps nothing that it cannot compute again, so
that any shard gives the same bits for a slice, at any time.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.episode import Episode, chosen, ends, thinned
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.engine.policy_terms import PolicyTerms
from maml_dist.core.model.objective import Mode, Objective
from maml_dist.runtime.allocator import keep_freed
from maml_dist.runtime.collectors import (
    ActingCollector,
    Collector,
    OnPolicyCollector,
    Placement,
    Slice,
    SupervisedCollector,
)
from maml_dist.runtime.messages import Contribution, ShardSpec
from maml_dist.runtime.remote import remote
from maml_dist.runtime.rollout_worker import Returns, Roll, RolloutWorker
from maml_dist.runtime.user_errors import user_errors_located
from maml_dist.runtime.zeroth_order import ZerothOrderCollector

Shares = tuple[float, float]  # of the episodes after adapting, and of those adapted to


class TaskShard:
    """Collects and differentiates the tasks of slices."""

    def __init__(
        self,
        spec: ShardSpec,
        *,
        device: str = "cpu",
        roll: Roll | None = None,
        returns: Returns | None = None,
    ) -> None:
        """`roll` and `returns` act in the environments; without, the shard does it itself."""
        self._spec = spec
        if device == "cpu":
            keep_freed()
        model = spec.model.to(torch.device(device))
        engine = spec.engine.resolve(model, spec.learner, device, on_policy=spec.source.on_policy)
        engine.set_rounding()
        self._placement = Placement(torch.device(device), engine.dtype)
        objective = Objective(model, spec.source, bfloat16=engine.precision == "bfloat16")
        self._policy_terms = PolicyTerms(engine, spec.learner, objective, into=spec.layout)
        self._collects = self._makes_collectors(engine, objective, roll, returns)
        self._collectors: dict[int, tuple[int, Collector]] = {}  # of a slice, and when asked last
        self._products: dict[int, tuple[Episode, Shares, Callable[[Tensor], Tensor]]] = {}

    def _makes_collectors(
        self,
        engine: Engine,
        objective: Objective,
        roll: Roll | None,
        returns: Returns | None,
    ) -> Callable[[int], Collector]:
        """What makes the collector of a slice for this learner; all slices share its traces."""
        spec = self._spec
        gradient = MetaGradient(engine, spec.learner, objective, into=spec.layout)
        make: Callable[..., Collector]
        if not spec.source.on_policy:
            scores = PathScores(engine, spec.learner, objective, into=spec.layout)
            make = partial(SupervisedCollector, scores=scores)
        else:
            alone = RolloutWorker(spec.source, spec.model, max_parallel_envs=spec.max_parallel_envs)
            roll, returns = roll or alone.here, returns or alone.returns
            if spec.learner.zeroth_order:
                kept = objective.kept
                make = partial(ZerothOrderCollector, roll=roll, returns=returns, kept=kept)
            else:
                make = partial(OnPolicyCollector, terms=self._policy_terms, roll=roll)
        return lambda number: make(spec, Slice(number, spec.slices), self._placement, gradient)

    @remote
    def gradient(
        self, meta: np.ndarray, it: int, at: np.ndarray | None = None, *, slice: int = 0
    ) -> Contribution:
        """The summed meta-gradient of a slice's tasks of iteration `it`.

        Args:
            meta: the parameters [size] with which on-policy episodes are collected.
            it: the meta-iteration.
            at: where to differentiate [size]; at `meta` if None.
            slice: its number.

        Raises:
            FloatingPointError: a task's loss or gradient is not finite, and is not to be skipped;
                or the penalty's gradient is not, of a task whose own is.
        """
        collector = self._collector(slice, it)
        if at is None:
            self._products.pop(slice, None)  # what it holds makes room for new episodes
            tasks = list(collector.tasks)
            summed, episodes = collector.gradient(meta, it)
        else:
            episodes, tasks = self._counted(it, meta, slice)
            if not tasks:
                return Contribution(np.zeros_like(meta), 0, {})
            summed = collector.gradient_at(self._placement.vector(at), episodes, it)
        metrics = summed.metrics
        if episodes.scores:
            metrics = metrics | self._placement.data(ends(episodes))
        if self._spec.skip:
            metrics = {name: torch.where(summed.finite, by, 0) for name, by in metrics.items()}
        totals = torch.stack([value.sum() for value in metrics.values()])
        gradient, finite, totals = self._placement.host(summed.gradient, summed.finite, totals)
        skipped = self._skipped(it, tasks, finite)
        if at is None:
            collector.leave_out(it, meta, skipped)
        if self._spec.source.penalty and len(skipped) < len(tasks):
            counted = chosen(episodes, summed.finite)
            gradient = gradient + self._penalty(meta if at is None else at, it, counted).cpu()
        sums = dict(zip(metrics, totals.tolist(), strict=True))
        return Contribution(gradient.numpy(), len(tasks) - len(skipped), sums, skipped)

    @remote
    def objective(
        self, meta: np.ndarray, it: int, at: np.ndarray, *, slice: int = 0
    ) -> Contribution:
        """The summed outer loss and KL divergence of a slice's tasks of `it`, at `at` [size]."""
        episodes, tasks = self._counted(it, meta, slice)
        self._products.pop(slice, None)  # of the direction that is now followed
        if not tasks:
            return Contribution(np.zeros(0, np.float32), 0, {})
        point, number = self._placement.vector(at), self._placement.number(it)
        found = self._policy_terms.objective(point, episodes, number)
        sums = {name: float(value.sum()) for name, value in found.items()}
        return Contribution(np.zeros(0, np.float32), len(tasks), sums)

    @remote
    def curvature(
        self,
        meta: np.ndarray,
        it: int,
        vector: np.ndarray,
        share: float = 1.0,
        support_share: float = 1.0,
        *,
        slice: int = 0,
    ) -> Contribution:
        """The KL divergence's curvature times `vector` [size], summed over a slice's tasks of `it`.

        `share` of each task's episodes after adapting are looked at, and `support_share` of those
        adapted to; one at least.
        """
        episodes, tasks = self._counted(it, meta, slice)
        if not tasks:
            return Contribution(np.zeros_like(vector), 0, {})
        shares = share, support_share
        last = self._products.get(slice)
        if last is None or last[0] is not episodes or last[1] != shares:
            del last
            self._products.pop(slice, None)  # what it holds makes room first
            thin = thinned(episodes, *shares)
            point, number = self._placement.vector(meta), self._placement.number(it)
            found = self._policy_terms.curvature(point, thin, number)
            self._products[slice] = episodes, shares, found
        product = self._products[slice][2](self._placement.vector(vector))
        return Contribution(product.cpu().numpy(), len(tasks), {})

    def collect(self, meta: np.ndarray, keys: Sequence[TaskKey], it: int, *, steps: int) -> Episode:
        """On-policy: episodes of policies that adapt to them, stage by stage, at meta [size]."""
        collector = self._collector(0, it)
        assert isinstance(collector, ActingCollector)
        return collector.collect(self._placement.vector(meta), keys, it, steps=steps)

    @remote
    @user_errors_located()
    def scores(
        self,
        meta: np.ndarray,
        it: int,
        *,
        split: str,
        tasks: int,
        steps: int,
        mode: Mode = "transductive",
        slice: int = 0,
    ) -> dict[str, np.ndarray]:
        """Each score of this slice of `tasks` held-out tasks, after 0 … steps inner steps.

        Returns:
            Arrays [task, step]; none where this slice has no task.

        Raises:
            ValueError: a part of the experiment raised; says which.
        """
        keys = [
            TaskKey(self._spec.seed, split, 0, task)
            for task in Slice(slice, self._spec.slices).of(tasks)
        ]
        if not keys:
            return {}
        point = self._placement.vector(meta)
        parts = self._collector(slice, it).scores(point, keys, it, steps=steps, mode=mode)
        return {
            name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]
        }

    def _collector(self, slice: int, it: int) -> Collector:
        """What collects a slice; what does so for slices that others have now is let go of."""
        known = self._collectors.pop(slice, None)
        for number, (last, _) in list(self._collectors.items()):
            if last < it - 1:
                del self._collectors[number]
                self._products.pop(number, None)
        collector = known[1] if known else self._collects(slice)
        self._collectors[slice] = it, collector
        return collector

    def _counted(self, it: int, meta: np.ndarray, slice: int) -> tuple[Episode, list[int]]:
        """The episodes of a slice's tasks that count at meta, and whose they are."""
        again = partial(self.gradient, meta, it, slice=slice)
        return self._collector(slice, it).counted(it, meta, again=again)

    def _skipped(self, it: int, tasks: list[int], finite: Tensor) -> tuple[int, ...]:
        """The tasks whose loss or gradient is not finite, if such are to be skipped."""
        each = zip(tasks, finite.tolist(), strict=True)
        skipped = tuple(task for task, fine in each if not fine)
        if skipped and not self._spec.skip:
            raise FloatingPointError(
                f"the meta-gradient of iteration {it} is not finite (tasks {skipped} of the "
                "meta-batch): a smaller learner.alpha may help, or on_divergence=skip"
            )
        return skipped

    def _penalty(self, at: np.ndarray, it: int, episodes: Episode) -> Tensor:
        """The gradient [size] of the weighted KL divergence from the policies that acted first."""
        point, number = self._placement.vector(at), self._placement.number(it)
        gradient = self._policy_terms.kl_penalty_gradient(point, episodes, number)
        gradient = self._spec.source.penalty * gradient
        if not gradient.isfinite().all():
            raise FloatingPointError(
                f"the gradient of iteration {it}'s penalty is not finite: the policy has gone "
                "too far from the one that acted; a smaller outer.beta may help"
            )
        return gradient
