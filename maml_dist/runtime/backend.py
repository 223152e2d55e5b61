"""What a run takes, and the actors that it gets: the same plain classes on Ray, or in this process.

Either way an actor's method is called as `actor.method.remote(…)`, so that one driver loop serves
both; in this process the call runs at once and its result stands in for the reference.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from maml_dist.core.validation import check_range
from maml_dist.runtime.remote import Get, Ref
from maml_dist.runtime.server import ParameterServer, Saved
from maml_dist.runtime.shard import TaskShard

ACTORS = 10_000  # that a run may have; cores and GPUs of one
Spread = Literal["spread", "pack"]
T = TypeVar("T")
ServerMode = Literal["one", "split", "spread"]


@dataclass(frozen=True)
class ShardRange:
    """As many shards as there is room for: never fewer than `min`, never more than `max`."""

    max: int
    min: int = 1

    def __post_init__(self) -> None:
        check_range(self, "shards", min=(1, ACTORS), max=(1, ACTORS))
        if self.min > self.max:
            raise ValueError(f"shards.min={self.min}: more than shards.max={self.max}")


class ResourceRequest(NamedTuple):
    """What each shard is to have, and how the group of them holds together."""

    cpus: float
    gpus: float | None  # null: one where there are GPUs
    workers: int = 0  # that roll out for it
    worker_cpus: float = 1
    placement: Spread = "spread"
    heartbeat_timeout: float = 30.0  # seconds of silence after which an actor is lost
    max_failures: int = 10  # in a row, without an iteration between
    server: ServerMode = "spread"
    servers: int | None = None  # parts of server=split; null: one a machine, two at least

    @property
    def all_cpus(self) -> float:
        """Cores of a shard and its workers."""
        return self.cpus + self.workers * self.worker_cpus


@dataclass(frozen=True)
class Resources:
    """What a run takes: so many shards, each with so many cores and GPUs."""

    shards: int
    gpus: float  # of a shard
    request: ResourceRequest
    least: int = 1  # shards without which nothing is begun

    @property
    def all_cpus(self) -> float:
        """Cores of all shards and their workers."""
        return self.shards * self.request.all_cpus

    @property
    def key(self) -> int | dict[str, int]:
        """The recipe's `shards` that means this number."""
        return self.shards if self.least == self.shards else {"min": self.least, "max": self.shards}

    @property
    def device(self) -> str:
        """Where a shard computes."""
        return "cuda" if self.gpus else "cpu"


class BlockRefs(NamedTuple):
    """What comes of a block of iterations."""

    rows: Ref[list[dict[str, Any]]]  # the metrics of each
    saved: Ref[Saved]  # the state then, and
    weights: Ref[np.ndarray]  # what is validated [size]: None where they were not to be kept


class ActorLost(Exception):
    """An actor or its machine is gone or silent: what was submitted is void, the run is not."""


class ActorGroup(ABC):
    """The actors of a run. Which of them computes a slice changes, and no bit with it.

    What is submitted is lost with any of them: `drain` then says up to where the server is, and
    `reform` finds actors for all slices, to submit again from there.
    """

    server: ParameterServer
    get: Get  # raises ActorLost
    slices: int
    parallel: bool = False  # whether its shards compute at the same time
    linked: bool = False  # whether the shards make the updates among themselves, by blocks
    rows: Mapping[int, dict[str, Any]] = {}  # metrics of a broken block: iteration -> row

    @abstractmethod
    def shard(self, slice: int) -> TaskShard:
        """The one that computes a slice, now."""

    def block(self, count: int, *, keep: bool) -> BlockRefs:
        """Where the shards are linked: have them do the next `count` iterations."""
        raise NotImplementedError

    def shards_up(self) -> list[TaskShard]:
        """Those that compute, now."""
        raise NotImplementedError

    def first(self, references: list[Ref[T]]) -> list[Ref[T]]:
        """Waits until one of them is there, or lost; returns those."""
        raise NotImplementedError

    @abstractmethod
    def submitted(self, it: int) -> None:
        """Called before each update, when `it` have been submitted: a time to take a snapshot.

        Raises:
            ActorLost: it is time to form the group anew.
        """

    @abstractmethod
    def restore(self, saved: Saved) -> None:
        """Let the server go on from a saved state."""

    @abstractmethod
    def drain(self, failure: ActorLost) -> Saved:
        """The server's state when all that was submitted has been applied or has failed."""

    def reached(self) -> Saved:
        """The server's state, when an error has ended the run."""
        return self.get(self.server.state.remote())

    @abstractmethod
    def reform(self, saved: Saved, *, stop: Callable[[], bool]) -> None:
        """Form the group anew, of who answers and what the machines have room for; waits for that.

        Raises:
            ChildProcessError: there were too many failures, or a task ends each process.
        """

    @abstractmethod
    def close(self) -> None:
        """End the actors."""


def how_many(
    shards: int | ShardRange | None,
    request: ResourceRequest,
    *,
    cores: float,
    devices: float,
    most: int,
) -> Resources:
    """What a number of shards means on machines of so many cores and GPUs; null: all of them.

    Raises:
        ValueError: there are fewer GPUs than asked for.
    """
    gpus = request.gpus
    if gpus is None:
        gpus = 1.0 if devices >= 1 else 0.0
    room = int(devices / gpus if gpus else cores / (request.all_cpus or 1))
    if isinstance(shards, ShardRange):
        return Resources(min(shards.max, most), gpus, request, min(shards.min, most))
    count = max(1, min(room, most)) if shards is None else shards
    if count * gpus > devices:
        raise ValueError(
            f"{count} shards with {gpus:g} GPU each need {count * gpus:g} GPUs; "
            f"there are {devices:g}"
        )
    return Resources(count, gpus, request, count)
