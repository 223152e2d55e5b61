"""TaskShard: the actor that owns a share of every meta-batch.

Shard r of n owns the tasks range(r, meta_batch, n): it collects their episodes, adapts to them and
returns the sum of their meta-gradients. It keeps nothing that it cannot compute again, so a
restarted shard gives the same bits.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.episode import Episode, chosen, ends, thinned
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.gradient_sum import GradientSum
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.engine.policy_terms import PolicyTerms
from maml_dist.core.model.objective import Mode, Objective
from maml_dist.runtime.allocator import keep_freed
from maml_dist.runtime.collectors import (
    ActingCollector,
    Collector,
    OnPolicyCollector,
    Placement,
    Share,
    SupervisedCollector,
)
from maml_dist.runtime.messages import Contribution, ShardSpec
from maml_dist.runtime.remote import remote
from maml_dist.runtime.rollout_worker import Returns, Roll, RolloutWorker
from maml_dist.runtime.user_errors import user_errors_located
from maml_dist.runtime.zeroth_order import ZerothOrderCollector

Shares = tuple[float, float]  # of the episodes after adapting, and of those adapted to


class TaskShard:
    """Collects and differentiates the tasks of one share."""

    def __init__(
        self,
        spec: ShardSpec,
        *,
        rank: int,
        shards: int,
        device: str = "cpu",
        roll: Roll | None = None,
        returns: Returns | None = None,
    ) -> None:
        """`roll` and `returns` act in the environments; without, the shard does it itself."""
        self._spec = spec
        self._share = Share(rank, shards)
        if device == "cpu":
            keep_freed()
        model = spec.model.to(torch.device(device))
        engine = spec.engine.resolve(model, spec.learner, device, on_policy=spec.source.on_policy)
        engine.set_rounding()
        self._placement = Placement(torch.device(device), engine.dtype)
        objective = Objective(model, spec.source, bfloat16=engine.precision == "bfloat16")
        self._policy_terms = PolicyTerms(engine, spec.learner, objective, into=spec.layout)
        self._collector = self._collects(engine, objective, roll, returns)
        self._product: tuple[Episode, Shares, Callable[[Tensor], Tensor]] | None = None

    def _collects(
        self,
        engine: Engine,
        objective: Objective,
        roll: Roll | None,
        returns: Returns | None,
    ) -> Collector:
        """What collects the episodes of these tasks for this learner."""
        spec = self._spec
        gradient = MetaGradient(engine, spec.learner, objective, into=spec.layout)
        given = spec, self._share, self._placement, gradient
        if not spec.source.on_policy:
            scores = PathScores(engine, spec.learner, objective, into=spec.layout)
            return SupervisedCollector(*given, scores=scores)
        alone = RolloutWorker(spec.source, spec.model, max_parallel_envs=spec.max_parallel_envs)
        roll, returns = roll or alone.here, returns or alone.returns
        if spec.learner.zeroth_order:
            return ZerothOrderCollector(*given, roll=roll, returns=returns, kept=objective.kept)
        return OnPolicyCollector(*given, terms=self._policy_terms, roll=roll)

    @remote
    def gradient(self, meta: np.ndarray, it: int, at: np.ndarray | None = None) -> Contribution:
        """The summed meta-gradient of this shard's tasks of iteration `it`.

        Args:
            meta: the parameters [size] with which on-policy episodes are collected.
            it: the meta-iteration.
            at: where to differentiate [size]; at `meta` if None.

        Raises:
            FloatingPointError: a task's loss or gradient is not finite, and is not to be skipped;
                or the penalty's gradient is not, of a task whose own is.
        """
        if at is None:
            self._product = None  # what it holds makes room for new episodes
            tasks = list(self._collector.tasks)
            summed, episodes = self._collector.gradient(meta, it)
        else:
            episodes, tasks = self._counted(it, meta)
            if not tasks:
                return Contribution(np.zeros_like(meta), 0, {})
            summed = self._collector.gradient_at(self._placement.vector(at), episodes, it)
        skipped = self._skipped(it, tasks, summed)
        if at is None:
            self._collector.leave_out(it, meta, skipped)
        gradient = summed.gradient
        if self._spec.source.penalty and len(skipped) < len(tasks):
            counted = chosen(episodes, summed.finite)
            gradient = gradient + self._penalty(meta if at is None else at, it, counted)
        metrics = summed.metrics
        if episodes.scores:
            metrics = metrics | self._placement.data(ends(episodes))
        if skipped:
            metrics = {name: torch.where(summed.finite, by, 0) for name, by in metrics.items()}
        sums = torch.stack([value.sum() for value in metrics.values()]).tolist()
        means = dict(zip(metrics, sums, strict=True))
        return Contribution(gradient.cpu().numpy(), len(tasks) - len(skipped), means, skipped)

    @remote
    def objective(self, meta: np.ndarray, it: int, at: np.ndarray) -> Contribution:
        """The summed outer loss and KL divergence of the tasks of `it`, at `at` [size]."""
        episodes, tasks = self._counted(it, meta)
        self._product = None  # of the direction that is now followed
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
    ) -> Contribution:
        """The KL divergence's curvature times `vector` [size], summed over the tasks of `it`.

        `share` of each task's episodes after adapting are looked at, and `support_share` of those
        adapted to; one at least.
        """
        episodes, tasks = self._counted(it, meta)
        if not tasks:
            return Contribution(np.zeros_like(vector), 0, {})
        shares = share, support_share
        if self._product is None or self._product[0] is not episodes or self._product[1] != shares:
            self._product = None  # what it holds makes room first
            thin = thinned(episodes, *shares)
            point, number = self._placement.vector(meta), self._placement.number(it)
            found = self._policy_terms.curvature(point, thin, number)
            self._product = episodes, shares, found
        product = self._product[2](self._placement.vector(vector))
        return Contribution(product.cpu().numpy(), len(tasks), {})

    def collect(self, meta: np.ndarray, keys: Sequence[TaskKey], it: int, *, steps: int) -> Episode:
        """On-policy: episodes of policies that adapt to them, stage by stage, at meta [size]."""
        assert isinstance(self._collector, ActingCollector)
        return self._collector.collect(self._placement.vector(meta), keys, it, steps=steps)

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
    ) -> dict[str, np.ndarray]:
        """Each score of this share of `tasks` held-out tasks, after 0 … steps inner steps.

        Returns:
            Arrays [task, step]; none where this shard has no task.

        Raises:
            ValueError: a part of the experiment raised; says which.
        """
        keys = [TaskKey(self._spec.seed, split, 0, task) for task in self._share.of(tasks)]
        if not keys:
            return {}
        point = self._placement.vector(meta)
        parts = self._collector.scores(point, keys, it, steps=steps, mode=mode)
        return {
            name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]
        }

    @remote
    def ping(self) -> int:
        """The rank: an answer when the actor is up."""
        return self._share.rank

    def _counted(self, it: int, meta: np.ndarray) -> tuple[Episode, list[int]]:
        """The episodes of the tasks that count at meta, and whose they are."""
        return self._collector.counted(it, meta, again=lambda: self.gradient(meta, it))

    def _skipped(self, it: int, tasks: list[int], summed: GradientSum) -> tuple[int, ...]:
        """The tasks whose loss or gradient is not finite, if such are to be skipped."""
        finite = summed.finite.tolist()
        skipped = tuple(task for task, fine in zip(tasks, finite, strict=True) if not fine)
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
