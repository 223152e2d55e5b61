"""Collectors: how a shard comes by the episodes of a slice, and by what is made of them.

    SupervisedCollector   of stored examples, some iterations at once and ahead
    OnPolicyCollector     of policies that adapt as they act, once an iteration
    ZerothOrderCollector  the same for learners without derivatives (zeroth_order.py)

What they remember can all be collected again, to the same bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.episode import Batch, Episode, Tree, chosen, map_tensors, split
from maml_dist.core.data.task_source import TaskKey, keys_of
from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.engine.gradient_sum import GradientSum
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.engine.policy_terms import PolicyTerms
from maml_dist.core.model.objective import Mode
from maml_dist.runtime.messages import ShardSpec
from maml_dist.runtime.prefetch import EpisodePrefetcher
from maml_dist.runtime.rollout_worker import Roll

SCORED_AT_ONCE = 4_000_000  # input numbers of held-out tasks in one vmap; bounds memory
SCORED_TASKS = 250  # in one vmap: small tasks' weights stay in the cache


class Placement(NamedTuple):
    """Where a shard computes, and how precisely."""

    device: torch.device
    dtype: torch.dtype

    def data(self, data: Tree) -> Tree:
        """Episodes or batches, there; whole numbers as they are."""
        return map_tensors(self._moved, data)

    def vector(self, value: np.ndarray) -> Tensor:
        """A copy, since what Ray hands out is shared and read-only."""
        return self._moved(torch.from_numpy(value.copy()))  # ten times faster than torch.tensor

    def number(self, value: int) -> Tensor:
        """A scalar, which a trace does not take for a constant."""
        return torch.full((), float(value), device=self.device)

    def host(self, *tensors: Tensor) -> list[Tensor]:
        """These on the CPU; a GPU is waited for once."""
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return copies

    def _moved(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # so that the copy waits for nothing computed there
        return tensor.to(self.device, non_blocking=True)


class Slice(NamedTuple):
    """The tasks range(number, all, slices) of every meta-batch, and of held-out tasks."""

    number: int
    slices: int

    def of(self, tasks: int) -> range:
        """Which of so many tasks."""
        return range(self.number, tasks, self.slices)


class Collector(ABC):
    """The episodes of a slice's tasks; and of an iteration's tasks, which of them count."""

    def __init__(
        self, spec: ShardSpec, slice: Slice, placement: Placement, gradient: MetaGradient
    ) -> None:
        """`gradient` differentiates episodes."""
        self._spec = spec
        self._placement = placement
        self._gradient = gradient
        self.tasks = slice.of(spec.meta_batch)  # of every meta-batch
        self._left_out: tuple[int, np.ndarray, tuple[int, ...]] | None = None  # at (it, meta)
        self._counted: tuple[int, np.ndarray, Episode] | None = None

    def keys(self, it: int) -> list[TaskKey]:
        """The keys of this slice's tasks of iteration `it`."""
        return [TaskKey(self._spec.seed, "train", it, task) for task in self.tasks]

    @abstractmethod
    def episodes(self, it: int, meta: np.ndarray) -> Episode:
        """The stacked episodes of the tasks of `it`; on-policy those of the policies of `meta`."""

    @abstractmethod
    def scores(
        self, meta: Tensor, keys: Sequence[TaskKey], it: int, *, steps: int, mode: Mode
    ) -> list[dict[str, Tensor]]:
        """Each score [task, step] of held-out tasks at meta [size], some tasks at once."""

    def gradient(self, meta: np.ndarray, it: int) -> tuple[GradientSum, Episode]:
        """The summed meta-gradient of the tasks of `it` at meta [size], and their episodes."""
        self._counted = None  # makes room for new episodes
        episodes = self.episodes(it, meta)
        return self.gradient_at(self._placement.vector(meta), episodes, it), episodes

    def gradient_at(self, point: Tensor, episodes: Episode, it: int) -> GradientSum:
        """The summed meta-gradient of episodes at `point` [size]."""
        return self._gradient(point, episodes, self._placement.number(it))

    def leave_out(self, it: int, meta: np.ndarray, tasks: tuple[int, ...]) -> None:
        """Remember which tasks of `it` had no finite gradient at `meta`."""
        self._left_out = it, np.array(meta), tasks

    def counted(
        self, it: int, meta: np.ndarray, *, again: Callable[[], object]
    ) -> tuple[Episode, list[int]]:
        """The episodes of `it` without the tasks left out at `meta`, and whose they are.

        Args:
            it: the meta-iteration.
            meta: [size].
            again: takes the gradient, which says what is left out: a restarted shard has forgotten.
        """
        episodes, tasks = self.episodes(it, meta), list(self.tasks)
        if not self._spec.skip:
            return episodes, tasks
        if not _same(self._left_out, it, meta):
            again()
        assert self._left_out is not None
        out = self._left_out[2]
        if not _same(self._counted, it, meta):
            kept = [task not in out for task in tasks]
            counts = torch.tensor(kept, device=self._placement.device)
            self._counted = it, np.array(meta), chosen(episodes, counts)
        assert self._counted is not None
        return self._counted[2], [task for task in tasks if task not in out]


class SupervisedCollector(Collector):
    """Stored examples: whatever the parameters, a task has the same episode."""

    def __init__(self, *given: Any, scores: PathScores) -> None:
        """What every collector is given, and what scores episodes."""
        super().__init__(*given)
        self._scores = scores
        self._prefetcher = EpisodePrefetcher(self._block)

    def episodes(self, it: int, meta: np.ndarray) -> Episode:
        """The stacked episodes of the tasks of `it`."""
        return self._prefetcher.of(it)

    def scores(
        self, meta: Tensor, keys: Sequence[TaskKey], it: int, *, steps: int, mode: Mode
    ) -> list[dict[str, Tensor]]:
        """Each score [task, step] of held-out tasks at meta [size], some tasks at once."""
        some, number = max(1, steps), self._placement.number(it)
        return [  # the inductive score needs a support set, adapted to or not
            {name: by[:, : steps + 1] for name, by in scores.items()}
            for episodes in self._held_out(keys, steps=some)
            for scores in [self._scores(meta, episodes, number, mode=mode)]
        ]

    def _held_out(self, keys: Sequence[TaskKey], *, steps: int) -> Iterator[Episode]:
        """The episodes of held-out tasks, as many at once as memory allows."""
        source = self._spec.source
        one = source.collect([source.sample(keys[0])], steps=steps)
        size = one.support[0].x.numel() + one.query.x.numel()
        at_once = self._at_once(size)
        for start in range(0, len(keys), at_once):
            yield self._collect(keys[start : start + at_once], steps)

    def _at_once(self, size: int) -> int:
        """How many held-out tasks of so many numbers."""
        return min(SCORED_TASKS, max(1, SCORED_AT_ONCE // size))

    def _block(self, first: int, count: int) -> list[Episode]:
        """The episodes of each of `count` iterations from `first` on."""
        keys = [key for it in range(first, first + count) for key in self.keys(it)]
        return split(self._collect(keys, self._spec.learner.steps), len(self.tasks))

    def _collect(self, keys: Sequence[TaskKey], steps: int) -> Episode:
        source = self._spec.source
        episodes = source.collect([source.sample(key) for key in keys], steps=steps)
        return self._placement.data(episodes._replace(key=keys_of(keys)))


class ActingCollector(Collector):
    """Of episodes that depend on the parameters: policies act, and so their scores come about."""

    @abstractmethod
    def collect(self, meta: Tensor, keys: Sequence[TaskKey], it: int, *, steps: int) -> Episode:
        """Episodes of policies that start at meta [size], before and after each of their steps."""

    def scores(
        self, meta: Tensor, keys: Sequence[TaskKey], it: int, *, steps: int, mode: Mode
    ) -> list[dict[str, Tensor]]:
        """Each score [task, step] of held-out tasks at meta [size], of their policies' episodes."""
        return [self.collect(meta, keys, it, steps=steps).scores or {}]


class OnPolicyCollector(ActingCollector):
    """Policies that act in their tasks' environments and adapt to that, stage by stage."""

    def __init__(self, *given: Any, terms: PolicyTerms, roll: Roll) -> None:
        """What every collector is given; what adapts policies, and what acts by them."""
        super().__init__(*given)
        self._terms = terms
        self._roll = roll
        self._last: tuple[int, np.ndarray, Episode] | None = None

    def episodes(self, it: int, meta: np.ndarray) -> Episode:
        """The stacked episodes of the tasks of `it`, as the policies of `meta` [size] act."""
        if not _same(self._last, it, meta):
            steps, start = self._spec.learner.steps, self._placement.vector(meta)
            episodes = self.collect(start, self.keys(it), it, steps=steps)
            self._last = it, np.array(meta), episodes
        assert self._last is not None
        return self._last[2]

    def collect(self, meta: Tensor, keys: Sequence[TaskKey], it: int, *, steps: int) -> Episode:
        """Episodes of policies that start at meta [size], before and after each of their steps."""
        source, number = self._spec.source, self._placement.number(it)
        tasks = [source.sample(key) for key in keys]
        drawn = keys_of(keys).to(self._placement.device)

        def adapt(support: tuple[Batch, ...]) -> Trajectories:
            moved = tuple(self._placement.data(batch) for batch in support)
            policies = self._terms.policies(meta, moved, drawn, number)
            here = self._placement.host(*policies.values())
            return self._roll(dict(zip(policies, here, strict=True)), tasks, stage=len(support))

        episodes = source.collect(tasks, steps=steps, adapt=adapt)
        return self._placement.data(episodes._replace(key=drawn))


def _same(kept: tuple[int, np.ndarray, object] | None, it: int, meta: np.ndarray) -> bool:
    """Whether something is kept, of this iteration at these parameters."""
    return kept is not None and kept[0] == it and np.array_equal(kept[1], meta)
