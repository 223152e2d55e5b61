"""What the plain actors do besides on Ray: fetch their spec, answer while they work, and warn.

Each answers `pulse` in a thread of its own, and tells its metrics (ray_actor.py). Whoever needs the
spec of the run finds the server by its name and asks: of references and actors among the arguments
of actors Ray warns each time.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.outer.optimizers import Gather, OuterOptimizer
from maml_dist.loggers.lines import Seldom, say
from maml_dist.runtime.linked import Linked
from maml_dist.runtime.messages import Contribution, RowValues, ShardSpec
from maml_dist.runtime.meter import SENT, STEPS, TASKS, Reading
from maml_dist.runtime.ray_actor import RayActor, paced
from maml_dist.runtime.remote import remote, remote_pair
from maml_dist.runtime.rollout_worker import RolloutWorker, Weights
from maml_dist.runtime.server import ParameterServer, Saved
from maml_dist.runtime.shard import TaskShard
from maml_dist.runtime.worker_pool import WorkerPool

SERVER = "ParameterServer"  # its name, in the namespace of the run


class RayServer(RayActor, ParameterServer):
    """A parameter server that holds a reference to what the shards of the run are given."""

    def __init__(
        self,
        meta: np.ndarray,
        outer: OuterOptimizer,
        *,
        learned: int,
        spec: list[Any],
        labels: Mapping[str, str],
    ) -> None:
        self._enter(SERVER, "0")
        super().__init__(meta, outer, learned=learned)
        self._spec = spec
        self._hands, self._takes = Seldom(), Seldom()
        self._started(labels, f"holds {len(meta)} numbers, of which {learned} are learned")
        self.keeps_gradient = self._watched

    def spec(self) -> list[Any]:
        """The reference, in a list: Ray hands it over as it is."""
        return self._spec

    @remote_pair
    def update(
        self,
        *contributions: Contribution,
        gather: Gather | None = None,
        facts: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """As in this process."""
        with self._pace.of("update"):
            meta, metrics = super().update(*contributions, gather=gather, facts=facts)
        self._count(SENT, meta.nbytes)
        return meta, metrics

    @remote_pair
    def next_request(
        self, *contributions: Contribution
    ) -> tuple[tuple[str, dict[str, Any]], np.ndarray]:
        """As in this process."""
        with self._pace.of("update"):
            request, at = super().next_request(*contributions)
        self._count(SENT, at.nbytes)
        return request, at

    @remote_pair
    def finish_update(self) -> tuple[np.ndarray, dict[str, Any]]:
        """As in this process."""
        with self._pace.of("update"):
            meta, metrics = super().finish_update()
        self._count(SENT, meta.nbytes)
        return meta, metrics

    @remote
    def state(self) -> Saved:
        """As in this process."""
        saved = super().state()
        self._hands.say(f"hands the state of iteration {saved[0]} over", clock=True)
        return saved

    @remote
    def restore(self, saved: Saved) -> None:
        """As in this process."""
        super().restore(saved)
        self._takes.say(f"has taken the state of iteration {saved[0]}", clock=True)

    def _gradient(self) -> Tensor | None:
        """The last meta-gradient of which it has made the update."""
        return self.gradient


def _asked(method: Any) -> Any:
    """A method of a shard by which an update asks back."""
    answer = paced(method)

    @wraps(method)
    def counted(shard: "RayShard", *given: Any, **options: Any) -> Contribution:
        return shard._counted_in(answer(shard, *given, **options), tasks=False)

    return counted


class RayShard(Linked, TaskShard):
    """A shard that asks for its spec itself, and acts by its workers."""

    def __init__(self, namespace: str, *, rank: str, device: str, workers: list[str]) -> None:
        self._enter("TaskShard", rank)
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"{os.uname().nodename} has no GPU that torch {torch.__version__} can use, though "
                "Ray was told of one"
            )
        given = _spec_of(namespace)
        pool = self._alone = None
        if workers:
            most = given.max_parallel_envs
            self._alone = RolloutWorker(given.source, given.model, max_parallel_envs=most)
            pool = WorkerPool(workers, namespace=namespace, alone=self._alone)
        super().__init__(
            given,
            device=device,
            roll=pool.roll if pool else None,
            returns=pool.returns if pool else None,
        )
        self._slices, self._learned, self._tables = given.slices, given.learned, given.tables
        self._begun: set[int] = set()  # slices whose gradient has been taken here
        self._warned: set[str] = set()
        acting = f", whose rollout workers are {len(workers)}" if workers else ""
        self._started(given.labels, f"computes on {device}, in {given.slices} slices{acting}")

    @remote
    def gradient(
        self,
        meta: np.ndarray,
        it: int,
        at: np.ndarray | None = None,
        *,
        slice: int = 0,
        rows: RowValues | None = None,
    ) -> Contribution:
        """As in this process; what is warned of the first time is told to the driver."""
        if at is not None:
            with self._pace.of("later gradient"):
                return self._counted_in(super().gradient(meta, it, at, slice=slice), tasks=False)
        if slice in self._begun:
            with self._pace.of("gradient", timed=True):
                return self._counted_in(super().gradient(meta, it, at, slice=slice, rows=rows))
        with self._pace.of("first gradient"), _caught() as caught:  # it may compile
            contribution = super().gradient(meta, it, at, slice=slice, rows=rows)
        self._counted_in(contribution)
        say(f"has begun with slice {slice}, at iteration {it}", clock=True)
        self._begun.add(slice)
        texts = dict.fromkeys(text for text in caught if text.startswith("engine."))
        new = tuple(text for text in texts if text not in self._warned)
        self._warned.update(new)
        return contribution._replace(warnings=new)

    objective = _asked(TaskShard.objective)
    curvature = _asked(TaskShard.curvature)
    scores = paced(TaskShard.scores)

    def _counted_in(self, given: Contribution, *, tasks: bool = True) -> Contribution:
        """What a slice contributes, once it is counted; with its `tasks`, or they were before."""
        if self._peer is None or self._left:  # else its links count
            self._count(SENT, given.gradient.nbytes)
        if tasks:
            self._count(TASKS, given.tasks)
        if tasks and self._alone is None and (steps := given.metrics.get("steps/after")):
            self._count(STEPS, steps)
        return given

    def _reading(self) -> Reading:
        alone = {(STEPS, self._whose): self._alone.steps} if self._alone else {}
        return super()._reading() | alone


class RayServerPart(Linked):
    """One that owns a range of the vector, and computes nothing else."""

    def __init__(self, namespace: str, *, rank: str) -> None:
        self._enter(SERVER, rank)
        given = _spec_of(namespace)
        self._slices, self._learned, self._tables = given.slices, given.learned, given.tables
        self._started(given.labels, "owns a part of the parameters")


class RayWorker(RayActor, RolloutWorker):
    """A rollout worker that asks for the spec of its shard itself."""

    def __init__(self, namespace: str, *, rank: str) -> None:
        self._enter("RolloutWorker", rank)
        given = _spec_of(namespace)
        super().__init__(given.source, given.model, max_parallel_envs=given.max_parallel_envs)
        self._started(given.labels, f"acts in {type(given.source).__name__}")

    def roll(self, weights: Weights, tasks: Sequence[Any], *, stage: int) -> Trajectories:
        """As in this process."""
        with self._pace.of("roll"):
            return super().roll(weights, tasks, stage=stage)

    def returns(self, weights: Weights, tasks: Sequence[Any], *, stage: int) -> np.ndarray:
        """As in this process."""
        with self._pace.of("roll"):
            return super().returns(weights, tasks, stage=stage)

    def _reading(self) -> Reading:
        return super()._reading() | {(STEPS, self._whose): self.steps}


def _spec_of(namespace: str) -> ShardSpec:
    """What the shards of the run are given: the server knows where it lies."""
    import ray

    references: list[Any] = ray.get(
        ray.get_actor(SERVER, namespace=namespace).spec.options(concurrency_group="health").remote()
    )
    spec: ShardSpec = ray.get(references[0])
    return spec


@contextmanager
def _caught() -> Iterator[list[str]]:
    """Inside, warnings are caught; their texts stand in the list afterwards."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught]
