"""TaskShard: the actor that owns a share of every meta-batch.

Shard r of n owns the tasks range(r, meta_batch, n): it draws them, adapts to them and returns the
sum of their meta-gradients. It keeps nothing that it cannot compute again, so a restarted shard
gives the same bits.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from maml_dist.core.data.episode import (
    Batch,
    Episode,
    Tree,
    chosen,
    ends,
    map_tensors,
    split,
    thinned,
)
from maml_dist.core.data.task_source import TaskKey, keys_of
from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.engine.policy_terms import PolicyTerms
from maml_dist.core.model.objective import Mode, Objective
from maml_dist.runtime.allocator import keep_freed
from maml_dist.runtime.messages import Contribution, ShardSpec
from maml_dist.runtime.prefetch import EpisodePrefetcher
from maml_dist.runtime.rollout_worker import RolloutWorker
from maml_dist.runtime.user_errors import user_errors_located
from maml_dist.runtime.zeroth_order import Returns, Roll, ZerothOrderCollector

SCORED_AT_ONCE = 4_000_000  # input numbers of held-out tasks in one vmap; bounds memory
SCORED_TASKS = 250  # in one vmap: small tasks' weights stay in the cache

Shares = tuple[float, float]  # of the episodes after adapting, and of those adapted to
Product = Callable[[torch.Tensor], torch.Tensor]


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
        self._rank = rank
        self._shards = shards
        self._device = torch.device(device)
        if device == "cpu":
            keep_freed()
        model = spec.model.to(self._device)
        engine = spec.engine.resolve(model, spec.learner, device, on_policy=spec.source.on_policy)
        engine.set_rounding()
        objective = Objective(model, spec.source, bfloat16=engine.precision == "bfloat16")
        self._dtype = engine.dtype
        self._gradient = MetaGradient(engine, spec.learner, objective, into=spec.layout)
        self._scores = PathScores(engine, spec.learner, objective, into=spec.layout)
        self._prefetcher = EpisodePrefetcher(self._collect)
        self._policy_terms = PolicyTerms(engine, spec.learner, objective, into=spec.layout)
        alone = RolloutWorker(spec.source, spec.model, max_parallel_envs=spec.max_parallel_envs)
        self._roll = roll or alone.here
        self._zeroth_order: ZerothOrderCollector | None = None
        if spec.source.on_policy and spec.learner.zeroth_order:
            self._zeroth_order = ZerothOrderCollector(
                spec.source,
                spec.learner,
                roll=self._roll,
                returns=returns or alone.returns,
                into=spec.layout,
                kept=objective.kept,
            )
        self._seen: tuple[int, np.ndarray, Episode] | None = None  # on-policy: the last episodes
        self._product: tuple[Shares, Product] | None = None  # with the curvature over those shares
        self._out: tuple[int, np.ndarray, tuple[int, ...]] | None = None  # tasks left out at meta

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
        tasks, point = list(self._tasks()), self._tensor(meta if at is None else at)
        if self._zeroth_order:
            (gradient, finite, metrics), episodes = self._zeroth_order.gradient(
                point, self._named(it)
            )
        else:
            if at is None:
                episodes = self._episodes(it, meta)
            else:
                episodes, tasks = self._counted(it, meta)
            if not tasks:
                return Contribution(np.zeros_like(meta), 0, {})
            gradient, finite, metrics = self._gradient(point, episodes, self._tensor(it))
        metrics = metrics | (self._here(ends(episodes)) if episodes.scores else {})
        judged = zip(tasks, finite.tolist(), strict=True)
        skipped = tuple(task for task, is_finite in judged if not is_finite)
        if skipped and not self._spec.skip:
            raise FloatingPointError(
                f"the meta-gradient of iteration {it} is not finite (tasks {skipped} of the "
                "meta-batch): a smaller learner.alpha may help, or on_divergence=skip"
            )
        if at is None:
            self._out = it, np.array(meta), skipped
        penalty = self._spec.source.penalty
        if penalty and len(skipped) < len(tasks):
            counted = chosen(episodes, finite)
            kl_penalty_gradient = self._policy_terms.kl_penalty_gradient(
                point, counted, self._tensor(it)
            )
            gradient = gradient + penalty * kl_penalty_gradient
            if not gradient.isfinite().all():
                raise FloatingPointError(
                    f"the gradient of iteration {it}'s penalty is not finite: the policy has gone "
                    "too far from the one that acted; a smaller outer.beta may help"
                )
        if skipped:
            metrics = {name: torch.where(finite, value, 0) for name, value in metrics.items()}
        sums = torch.stack([value.sum() for value in metrics.values()]).tolist()
        return Contribution(
            gradient.cpu().numpy(),
            len(tasks) - len(skipped),
            dict(zip(metrics, sums, strict=True)),
            skipped,
        )

    def objective(self, meta: np.ndarray, it: int, at: np.ndarray) -> Contribution:
        """The summed outer loss and divergence of the tasks of `it`, at parameters `at` [size]."""
        episodes, tasks = self._counted(it, meta)
        self._product = None  # of the direction that is now followed
        if not tasks:
            return Contribution(np.zeros(0, np.float32), 0, {})
        found = self._policy_terms.objective(self._tensor(at), episodes, self._tensor(it))
        sums = {name: float(value.sum()) for name, value in found.items()}
        return Contribution(np.zeros(0, np.float32), len(tasks), sums)

    def curvature(
        self,
        meta: np.ndarray,
        it: int,
        vector: np.ndarray,
        share: float = 1.0,
        support_share: float = 1.0,
    ) -> Contribution:
        """The divergence's curvature times `vector` [size], summed over the tasks of `it`.

        `share` of each task's episodes after adapting are looked at, and `support_share` of those
        adapted to; one at least.
        """
        episodes, tasks = self._counted(it, meta)
        if not tasks:
            return Contribution(np.zeros_like(vector), 0, {})
        shares = share, support_share
        if self._product is None or self._product[0] != shares:
            self._product = None  # what it holds makes room first
            thin = thinned(episodes, *shares)
            found = self._policy_terms.curvature(self._tensor(meta), thin, self._tensor(it))
            self._product = shares, found
        product = self._product[1](self._tensor(vector))
        return Contribution(product.cpu().numpy(), len(tasks), {})

    def collect(
        self, meta: np.ndarray, named: Sequence[TaskKey], it: int, *, steps: int
    ) -> Episode:
        """On-policy: episodes of policies that adapt to them, stage by stage, at meta [size]."""
        source, number, start = self._spec.source, self._tensor(it), self._tensor(meta)
        if self._zeroth_order:
            return self._zeroth_order.collect(start, named, steps=steps)
        tasks = [source.sample(key) for key in named]
        drawn = keys_of(named).to(self._device)

        def adapt(support: tuple[Batch, ...]) -> Trajectories:
            moved = tuple(self._here(batch) for batch in support)
            policies = self._policy_terms.policies(start, moved, drawn, number)
            policies = {name: value.cpu() for name, value in policies.items()}
            return self._roll(policies, tasks, stage=len(support))

        episodes = source.collect(tasks, steps=steps, adapt=adapt)
        return self._here(episodes._replace(key=drawn))

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
        spec = self._spec
        named = [TaskKey(spec.seed, split, 0, i) for i in range(self._rank, tasks, self._shards)]
        if not named:
            return {}
        if spec.source.on_policy:
            episodes = self.collect(meta, named, it, steps=steps)
            assert episodes.scores is not None
            return {name: value.cpu().numpy() for name, value in episodes.scores.items()}
        some = max(1, steps)  # the inductive score needs a support set, adapted to or not
        one = spec.source.collect([spec.source.sample(named[0])], steps=some)
        size = one.support[0].x.numel() + one.query.x.numel()
        at_once = min(SCORED_TASKS, max(1, SCORED_AT_ONCE // size))
        parts = []
        for start in range(0, len(named), at_once):
            shown = named[start : start + at_once]
            drawn = [spec.source.sample(key) for key in shown]
            collected = spec.source.collect(drawn, steps=some)
            episodes = self._here(collected._replace(key=keys_of(shown)))
            scores = self._scores(self._tensor(meta), episodes, self._tensor(it), mode=mode)
            parts.append({name: by[:, : steps + 1].cpu().numpy() for name, by in scores.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def ping(self) -> int:
        """The rank: an answer when the actor is up."""
        return self._rank

    def _tasks(self) -> range:
        return range(self._rank, self._spec.meta_batch, self._shards)

    def _named(self, it: int) -> list[TaskKey]:
        return [TaskKey(self._spec.seed, "train", it, index) for index in self._tasks()]

    def _episodes(self, it: int, meta: np.ndarray) -> Episode:
        """The episodes of `it`; on-policy, those that the policies of `meta` live through."""
        if not self._spec.source.on_policy:
            return self._prefetcher.of(it)
        if self._seen is None or self._seen[0] != it or not np.array_equal(self._seen[1], meta):
            self._product = None  # what it holds makes room first
            episodes = self.collect(meta, self._named(it), it, steps=self._spec.learner.steps)
            self._seen = it, np.array(meta), episodes
        return self._seen[2]

    def _counted(self, it: int, meta: np.ndarray) -> tuple[Episode, list[int]]:
        """The episodes of `it`, and whose: without the tasks left out of its gradient at `meta`.

        A restarted shard takes that gradient again to know them.
        """
        episodes, tasks = self._episodes(it, meta), list(self._tasks())
        if not self._spec.skip:
            return episodes, tasks
        if self._out is None or self._out[0] != it or not np.array_equal(self._out[1], meta):
            self.gradient(meta, it)
            assert self._out is not None
        counts = torch.tensor([task not in self._out[2] for task in tasks], device=self._device)
        return chosen(episodes, counts), [task for task in tasks if task not in self._out[2]]

    def _collect(self, first: int, count: int) -> list[Episode]:
        """The episodes of each of `count` iterations from `first` on."""
        spec, its, own = self._spec, range(first, first + count), self._tasks()
        named = [TaskKey(spec.seed, "train", it, index) for it in its for index in own]
        tasks = [spec.source.sample(key) for key in named]
        episodes = spec.source.collect(tasks, steps=spec.learner.steps)
        return split(self._here(episodes._replace(key=keys_of(named))), len(own))

    def _here(self, data: Tree) -> Tree:
        """Episodes or batches on this shard's device, in its precision."""
        return map_tensors(self._move, data)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, dtype)

    def _tensor(self, value: np.ndarray | int) -> torch.Tensor:
        """A copy, since what Ray hands out is shared and read-only."""
        if isinstance(value, int):
            return torch.full((), float(value), device=self._device)
        return self._move(torch.from_numpy(value.copy()))  # ten times faster than torch.tensor
