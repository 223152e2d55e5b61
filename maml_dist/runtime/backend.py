"""What a run takes, and the actors that it gets: the same plain classes on Ray, or in this process.

Either way an actor's method is called as `actor.method.remote(…)`, so that one driver loop serves
both; in this process the call runs at once and its result stands in for the reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from maml_dist.runtime.remote import Get
from maml_dist.runtime.rollout_worker import RolloutWorker
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard


@dataclass(frozen=True)
class Resources:
    """What a run takes: so many shards, each with so many cores and GPUs."""

    shards: int
    cpus: float
    gpus: float
    workers: int = 0  # that roll out for each shard; 0: the shard itself does
    worker_cpus: float = 1

    @property
    def all_cpus(self) -> float:
        """Cores of all shards and their workers."""
        return self.shards * (self.cpus + self.workers * self.worker_cpus)

    @property
    def device(self) -> str:
        """Where a shard computes."""
        return "cuda" if self.gpus else "cpu"


class ResourceRequest(NamedTuple):
    """What each shard is to have."""

    cpus: float
    gpus: float | None  # null: one where there are GPUs
    workers: int = 0  # that roll out for it
    worker_cpus: float = 1


@dataclass(frozen=True)
class ActorGroup:
    """The actors of a run."""

    shards: Sequence[TaskShard]
    server: ParameterServer
    get: Get
    close: Callable[[], None]
    workers: Sequence[RolloutWorker] = ()  # of all shards
