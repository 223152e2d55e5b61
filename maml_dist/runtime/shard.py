"""TaskShard: the actor that owns a share of every meta-batch.

Shard r of n owns the tasks range(r, meta_batch, n): it draws them, adapts to them and returns the
sum of their meta-gradients. It keeps nothing that it cannot compute again, so a restarted shard
gives the same bits.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from maml_dist.core.engine import Engine, MetaGradient, PathScores
from maml_dist.core.episode import Episode, map_tensors
from maml_dist.core.learner import Learner
from maml_dist.core.objective import Objective
from maml_dist.core.params import Layout
from maml_dist.core.source import TaskKey, TaskSource

SCORED_AT_ONCE = 4_000_000  # input numbers of held-out tasks in one vmap; bounds memory


class Contribution(NamedTuple):
    """What a shard gives to one meta-update: sums over its tasks."""

    gradient: np.ndarray  # [size], summed
    tasks: int
    metrics: dict[str, float]  # summed


class Work(NamedTuple):
    """What every shard of a run is given."""

    source: TaskSource
    model: nn.Module
    learner: Learner
    engine: Engine
    layout: Layout
    seed: int
    meta_batch: int


class TaskShard:
    """Collects and differentiates the tasks of one share."""

    def __init__(self, work: Work, *, rank: int, shards: int, device: str = "cpu") -> None:
        self._work = work
        self._rank = rank
        self._shards = shards
        self._device = torch.device(device)
        model = work.model.to(self._device)
        objective = Objective(model, work.source)
        engine = work.engine.resolve(model, device)
        self._gradient = MetaGradient(engine, work.learner, objective, into=work.layout)
        self._scores = {
            inductive: PathScores(
                engine, work.learner, objective, into=work.layout, inductive=inductive
            )
            for inductive in (False, True)
        }
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="collect")
        self._next: dict[int, Future[Episode]] = {}

    def gradient(self, meta: np.ndarray, it: int) -> Contribution:
        """The summed meta-gradient of this shard's tasks of iteration `it` at meta [size].

        Raises:
            FloatingPointError: a loss or the gradient is not finite; names the tasks.
        """
        episodes = self._episodes(it)
        gradient, metrics = self._gradient(self._tensor(meta), episodes, self._tensor(it))
        if not gradient.isfinite().all():
            losses = metrics["loss/after"].isfinite().tolist()
            bad = [task for task, fine in zip(self._tasks(), losses, strict=True) if not fine]
            raise FloatingPointError(
                f"the meta-gradient of iteration {it} is not finite"
                f" (tasks whose loss is not: {bad or 'none'}); a smaller learner.alpha may help"
            )
        sums = {name: float(value.sum()) for name, value in metrics.items()}
        return Contribution(gradient.cpu().numpy(), len(self._tasks()), sums)

    def scores(
        self,
        meta: np.ndarray,
        it: int,
        *,
        split: str,
        tasks: int,
        steps: int,
        inductive: bool = False,
    ) -> dict[str, np.ndarray]:
        """Each score of this share of `tasks` held-out tasks, after 0 … steps inner steps.

        Returns:
            Arrays [task, step]; none where this shard has no task.
        """
        work = self._work
        keys = [TaskKey(work.seed, split, 0, i) for i in range(self._rank, tasks, self._shards)]
        if not keys:
            return {}
        some = max(1, steps)  # the inductive score needs a support set, adapted to or not
        one = work.source.collect([work.source.sample(keys[0])], steps=some)
        size = one.support[0].x.numel() + one.query.x.numel()
        at_once = min(500, max(1, SCORED_AT_ONCE // size))
        parts = []
        for start in range(0, len(keys), at_once):
            drawn = [work.source.sample(key) for key in keys[start : start + at_once]]
            episodes = self._here(work.source.collect(drawn, steps=some))
            scores = self._scores[inductive](self._tensor(meta), episodes, self._tensor(it))
            parts.append({name: by[:, : steps + 1].cpu().numpy() for name, by in scores.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def ping(self) -> int:
        """The rank: an answer when the actor is up."""
        return self._rank

    def _tasks(self) -> range:
        return range(self._rank, self._work.meta_batch, self._shards)

    def _episodes(self, it: int) -> Episode:
        """The episodes of `it`, collected ahead of time; starts on those of `it + 1`."""
        ready = self._next.pop(it, None) or self._ahead.submit(self._collect, it)
        episodes = ready.result()
        self._next = {it + 1: self._ahead.submit(self._collect, it + 1)}
        return episodes

    def _collect(self, it: int) -> Episode:
        work = self._work
        keys = (TaskKey(work.seed, "train", it, index) for index in self._tasks())
        tasks = [work.source.sample(key) for key in keys]
        episodes = work.source.collect(tasks, steps=work.learner.steps)
        return self._here(episodes)

    def _here(self, episodes: Episode) -> Episode:
        return map_tensors(lambda tensor: tensor.to(self._device), episodes)

    def _tensor(self, value: np.ndarray | int) -> torch.Tensor:
        """A copy, since what Ray hands out is shared and read-only."""
        number = float(value) if isinstance(value, int) else value
        return torch.tensor(number, device=self._device)
