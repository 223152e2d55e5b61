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

from maml_dist.core.data.episode import Batch, Episode, chosen, ends, thinned
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.engine.policy_terms import PolicyTerms
from maml_dist.core.model.objective import Mode, Objective
from maml_dist.core.tables import Table
from maml_dist.runtime.allocator import keep_freed
from maml_dist.runtime.collectors import ActingCollector, Collector, Placement, Slice
from maml_dist.runtime.messages import Contribution, RowValues, ShardSpec
from maml_dist.runtime.remote import remote
from maml_dist.runtime.rollout_worker import Returns, Roll
from maml_dist.runtime.sparse_collector import SparseCollector
from maml_dist.runtime.user_errors import user_errors_located
from maml_dist.runtime.which_collector import which_collector

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
        bfloat16 = engine.precision == "bfloat16"
        objective = Objective(model, spec.source, bfloat16=bfloat16, tables=spec.tables)
        self._policy_terms = PolicyTerms(engine, spec.learner, objective, into=spec.layout)
        self._collects = which_collector(
            *(spec, self._placement, engine, objective, self._policy_terms),
            roll=roll,
            returns=returns,
        )
        self._collectors: dict[int, tuple[int, Collector]] = {}  # of a slice, and when asked last
        self._products: dict[int, tuple[Episode, Shares, Callable[[Tensor], Tensor]]] = {}

    @property
    def tables(self) -> tuple[Table, ...]:
        """The parameters of which it is given rows."""
        return self._spec.tables

    @user_errors_located()
    def touched(self, it: int, *, slice: int = 0) -> dict[str, np.ndarray]:
        """Of each table the ids of the rows that a slice's tasks of `it` touch, ascending."""
        return self._sparse(slice, it).touched(it)

    @remote
    @user_errors_located()
    def held_out(
        self, *, split: str, tasks: int, steps: int, slice: int = 0
    ) -> dict[str, np.ndarray]:
        """The same of a slice of `tasks` held-out tasks; none where this slice has no task."""
        keys = self._held_out_keys(split, tasks, slice)
        return self._sparse(slice, 0).held_out(keys, steps=steps) if keys else {}

    @remote
    @user_errors_located()
    def gradient(
        self,
        meta: np.ndarray,
        it: int,
        at: np.ndarray | None = None,
        *,
        slice: int = 0,
        rows: RowValues | None = None,
    ) -> Contribution:
        """The summed meta-gradient of a slice's tasks of iteration `it`.

        Args:
            meta: the parameters [size] with which on-policy episodes are collected.
            it: the meta-iteration.
            at: where to differentiate [size]; at `meta` if None.
            slice: its number.
            rows: of each table, those that these tasks touch.

        Raises:
            FloatingPointError: a task's loss or gradient is not finite, and is not to be skipped;
                or the penalty's gradient is not, of a task whose own is.
        """
        collector = self._collector(slice, it)
        of_rows: list[Tensor] = []
        if rows is not None:
            tasks = list(collector.tasks)
            summed, of_rows = self._sparse(slice, it).gradient_by_rows(meta, it, rows)
            episodes = Episode((), Batch(torch.empty(0), None))
        elif at is None:
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
        given = zip(rows or {}, of_rows, strict=True)
        by_rows = {name: ((rows or {})[name][0], part.cpu().numpy()) for name, part in given}
        return Contribution(
            gradient.numpy(), len(tasks) - len(skipped), sums, skipped, rows=by_rows
        )

    @remote
    @user_errors_located()
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
    @user_errors_located()
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

    @user_errors_located()
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
        rows: RowValues | None = None,
    ) -> dict[str, np.ndarray]:
        """Each score of this slice of `tasks` held-out tasks, after 0 … steps inner steps.

        `rows`: of each table, those that these tasks touch, or more.

        Returns:
            Arrays [task, step]; none where this slice has no task.

        Raises:
            ValueError: a part of the experiment raised; says which.
        """
        keys = self._held_out_keys(split, tasks, slice)
        if not keys:
            return {}
        if rows is not None:
            sparse = self._sparse(slice, it)
            parts = sparse.scores_by_rows(meta, keys, it, rows, steps=steps, mode=mode)
        else:
            point = self._placement.vector(meta)
            parts = self._collector(slice, it).scores(point, keys, it, steps=steps, mode=mode)
        return {
            name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]
        }

    def _held_out_keys(self, split: str, tasks: int, slice: int) -> list[TaskKey]:
        every = Slice(slice, self._spec.slices).of(tasks)
        return [TaskKey(self._spec.seed, split, 0, task) for task in every]

    def _sparse(self, slice: int, it: int) -> SparseCollector:
        collector = self._collector(slice, it)
        assert isinstance(collector, SparseCollector)
        return collector

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
