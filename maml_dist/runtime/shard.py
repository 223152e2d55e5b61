"""TaskShard: the actor that owns a share of every meta-batch.

Shard r of n owns the tasks range(r, meta_batch, n): it draws them, adapts to them and returns the
sum of their meta-gradients. It keeps nothing that it cannot compute again, so a restarted shard
gives the same bits.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import nn

from maml_dist.core.engine import Engine
from maml_dist.core.episode import Episode, map_tensors, split
from maml_dist.core.learner import Learner
from maml_dist.core.meta_gradient import MetaGradient, PathScores
from maml_dist.core.objective import Mode, Objective
from maml_dist.core.params import Layout
from maml_dist.core.random import keys
from maml_dist.core.source import TaskKey, TaskSource

QUICK = 0.005  # seconds within which a meta-batch is collected inline
AT_ONCE = 16  # iterations collected together at the most
BLOCK = 20_000  # input numbers collected together, about
SCORED_AT_ONCE = 4_000_000  # input numbers of held-out tasks in one vmap; bounds memory


class Contribution(NamedTuple):
    """What a shard gives to one meta-update: sums over its tasks."""

    gradient: np.ndarray  # [size], summed; for what is kept (running statistics) its new values
    tasks: int  # that were summed
    metrics: dict[str, float]  # summed
    skipped: tuple[int, ...] = ()  # tasks left out: their loss or gradient is not finite
    said: tuple[str, ...] = ()  # by the engine, to the user


class Work(NamedTuple):
    """What every shard of a run is given."""

    source: TaskSource
    model: nn.Module
    learner: Learner
    engine: Engine
    layout: Layout
    seed: int
    meta_batch: int
    learned: int  # elements of the vector that are meta-learned; the rest is kept
    skip: bool = False  # leave a task that is not finite out, instead of stopping


class TaskShard:
    """Collects and differentiates the tasks of one share."""

    def __init__(self, work: Work, *, rank: int, shards: int, device: str = "cpu") -> None:
        self._work = work
        self._rank = rank
        self._shards = shards
        self._device = torch.device(device)
        model = work.model.to(self._device)
        engine = work.engine.resolve(model, work.learner, device)
        objective = Objective(model, work.source, bfloat16=engine.precision == "bfloat16")
        self._dtype = engine.dtype
        self._gradient = MetaGradient(engine, work.learner, objective, into=work.layout)
        self._scores: dict[Mode, PathScores] = {
            mode: PathScores(engine, work.learner, objective, into=work.layout, mode=mode)
            for mode in get_args(Mode)
        }
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="collect")
        self._next: dict[int, Future[list[Episode]]] = {}
        self._block: list[Episode] = []  # of the iterations from _first on
        self._first = 0
        self._per_block = 0
        self._waits = False

    def gradient(self, meta: np.ndarray, it: int) -> Contribution:
        """The summed meta-gradient of this shard's tasks of iteration `it` at meta [size].

        Raises:
            FloatingPointError: a task's loss or gradient is not finite, and is not to be skipped.
        """
        episodes = self._episodes(it)
        gradient, fine, metrics = self._gradient(self._tensor(meta), episodes, self._tensor(it))
        skipped: tuple[int, ...] = ()
        if not fine.all():
            told = zip(self._tasks(), fine.tolist(), strict=True)
            skipped = tuple(task for task, is_fine in told if not is_fine)
            if not self._work.skip:
                raise FloatingPointError(
                    f"the meta-gradient of iteration {it} is not finite (tasks {skipped} of the "
                    "meta-batch): a smaller learner.alpha may help, or diverged=skip"
                )
            metrics = {name: torch.where(fine, value, 0) for name, value in metrics.items()}
        sums = torch.stack([value.sum() for value in metrics.values()]).tolist()
        return Contribution(
            gradient.cpu().numpy(),
            len(self._tasks()) - len(skipped),
            dict(zip(metrics, sums, strict=True)),
            skipped,
        )

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
        """
        work = self._work
        named = [TaskKey(work.seed, split, 0, i) for i in range(self._rank, tasks, self._shards)]
        if not named:
            return {}
        some = max(1, steps)  # the inductive score needs a support set, adapted to or not
        one = work.source.collect([work.source.sample(named[0])], steps=some)
        size = one.support[0].x.numel() + one.query.x.numel()
        at_once = min(500, max(1, SCORED_AT_ONCE // size))
        parts = []
        for start in range(0, len(named), at_once):
            shown = named[start : start + at_once]
            drawn = [work.source.sample(key) for key in shown]
            collected = work.source.collect(drawn, steps=some)
            drawn_keys = keys(work.seed, split, 0, [key.index for key in shown])
            episodes = self._here(collected._replace(key=drawn_keys))
            scores = self._scores[mode](self._tensor(meta), episodes, self._tensor(it))
            parts.append({name: by[:, : steps + 1].cpu().numpy() for name, by in scores.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def ping(self) -> int:
        """The rank: an answer when the actor is up."""
        return self._rank

    def _tasks(self) -> range:
        return range(self._rank, self._work.meta_batch, self._shards)

    def _episodes(self, it: int) -> Episode:
        """The episodes of `it`, collected with those of a block of iterations.

        Collecting that takes its time (files, simulators) goes on ahead in a thread; where it is
        quick, the thread would cost more than it saves.
        """
        if not self._per_block:
            clock = time.monotonic()
            one = self._collect(it, 1)[0]
            self._waits = time.monotonic() - clock > QUICK
            numbers = one.query.x.numel() + sum(batch.x.numel() for batch in one.support[:1])
            self._per_block = min(AT_ONCE, max(1, BLOCK // numbers))
        first = it - it % self._per_block  # so that a resumed run collects the same blocks
        if first != self._first or not self._block:
            ready = self._next.pop(first, None)
            self._block = ready.result() if ready else self._collect(first, self._per_block)
            self._first = first
            if self._waits:
                after = first + self._per_block
                self._next = {after: self._ahead.submit(self._collect, after, self._per_block)}
        return self._block[it - first]

    def _collect(self, first: int, count: int) -> list[Episode]:
        """The episodes of each of `count` iterations from `first` on."""
        work, its, own = self._work, range(first, first + count), self._tasks()
        named = [TaskKey(work.seed, "train", it, index) for it in its for index in own]
        tasks = [work.source.sample(key) for key in named]
        episodes = work.source.collect(tasks, steps=work.learner.steps)
        drawn = torch.cat([keys(work.seed, "train", it, own) for it in its])
        return split(self._here(episodes._replace(key=drawn)), len(own))

    def _here(self, episodes: Episode) -> Episode:
        """The episodes on this shard's device, in its precision."""
        return map_tensors(self._move, episodes)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, dtype)

    def _tensor(self, value: np.ndarray | int) -> torch.Tensor:
        """A copy, since what Ray hands out is shared and read-only."""
        if isinstance(value, int):
            return torch.tensor(float(value), device=self._device)
        return torch.tensor(value, device=self._device, dtype=self._dtype)
