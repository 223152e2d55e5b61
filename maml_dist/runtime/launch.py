"""Launching: the same plain classes as Ray actors, or in this process.

Either way an actor's method is called as `actor.method.remote(…)`, so that one driver loop serves
both; in this process the call runs at once and its result stands in for the reference.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from maml_dist.core.exclusive import EXCLUSIVE
from maml_dist.core.outer import Outer
from maml_dist.runtime.join import join
from maml_dist.runtime.own_ray import own_ray
from maml_dist.runtime.ray_actors import RayShard, RayWorker
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard
from maml_dist.runtime.work import Work

PLACED_WITHIN = 120  # seconds for the cluster to place all actors
RETRIES = 3  # of one call; a task that kills every process that tries it ends the run


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


class Asked(NamedTuple):
    """What each shard is to have."""

    cpus: float
    gpus: float | None  # null: one where there are GPUs
    workers: int = 0  # that roll out for it
    worker_cpus: float = 1


@dataclass(frozen=True)
class Crew:
    """The actors of a run."""

    shards: Sequence[Any]
    server: Any
    get: Callable[[Any], Any]  # a reference, or a list of them -> the values
    close: Callable[[], None]
    workers: Sequence[Any] = ()  # of all shards


class InProcess:
    """Runs all actors in this process, one after the other."""

    _runs: ClassVar[list[int]] = []  # the threads that each of those under way computes with

    def __enter__(self) -> "InProcess":
        self._threads = torch.get_num_threads()
        self._tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        self._own: list[int] = []
        return self

    def __exit__(self, *exception: object) -> None:
        with EXCLUSIVE:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._tf32
            torch.set_num_threads(self._threads)
            for threads in self._own:
                self._runs.remove(threads)
            if self._runs:  # OpenMP has a number for each thread, MKL one for all
                other = Thread(target=torch.set_num_threads, args=(self._runs[0],))
                other.start()
                other.join()

    def resources(self, shards: int | None, asked: Asked, *, most: int) -> Resources:
        """What `shards` and GPUs mean here; null: a single shard, on the GPU if there is one.

        Raises:
            ValueError: a GPU is asked for and there is none.
        """
        devices = torch.cuda.device_count()
        gpus = float(bool(devices)) if asked.gpus is None else asked.gpus
        if gpus and not devices:
            raise ValueError(f"gpus_per_shard={gpus:g}: this machine has no GPU")
        return Resources(shards or 1, asked.cpus, gpus, asked.workers, asked.worker_cpus)

    def crew(
        self,
        work: Work,
        meta: np.ndarray,
        *,
        outer: Outer,
        resources: Resources,
        modules: object = None,
    ) -> Crew:
        """The actors; they compute with as many threads as a shard on Ray.

        Raises:
            ValueError: a run in another thread of this process computes with another number.
        """
        threads = max(1, int(resources.cpus))
        with EXCLUSIVE:
            if {*self._runs} - {threads}:
                raise ValueError(
                    f"cpus_per_shard={resources.cpus:g}: another run in this process computes with "
                    f"{self._runs[0]}, which is one number for all: use that, or another process"
                )
            self._runs.append(threads)
            self._own.append(threads)
            torch.set_num_threads(threads)
        shards = [
            TaskShard(work, rank=rank, shards=resources.shards, device=resources.device)
            for rank in range(resources.shards)
        ]
        server = _Here(ParameterServer(meta, outer, learned=work.learned))
        return Crew([_Here(shard) for shard in shards], server, lambda value: value, lambda: None)


class _Here:
    """Gives a plain object an actor's way of being called."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, method))


class OnRay:
    """Runs the actors on a Ray cluster; where none is named, on one started on this machine."""

    def __init__(self, address: str | None = None) -> None:
        self._given = address
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"

    def __enter__(self) -> "OnRay":
        import ray

        self._joined = ray.is_initialized()  # inside a Tune trial, say
        self._own = ExitStack()
        return self

    def __exit__(self, *exception: Any) -> None:
        import ray

        if not self._joined:
            self._own.__exit__(*exception)
            ray.shutdown()

    def resources(self, shards: int | None, asked: Asked, *, most: int) -> Resources:
        """Join the cluster; `shards` null: one a GPU, or one a core, `most` at the most.

        A Ray started on this machine declares as many CPUs as the shards need.

        Raises:
            ValueError: nothing answers at the address, or there are fewer GPUs or CPUs than asked.
        """
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not self._joined and self._address == "local":
            cores, devices = os.cpu_count() or 1, torch.cuda.device_count()
            resources = _decide(asked, shards, cores=cores, devices=devices, most=most)
            self._own.enter_context(own_ray(max(cores, math.ceil(resources.all_cpus))))
            return resources
        if not self._joined:
            join(self._address)
        here = ray.get_runtime_context().gcs_address
        if self._joined and self._given not in (None, "auto", here):
            raise ValueError(f"--address {self._given}: this process is on the cluster at {here}")
        there = ray.cluster_resources()
        cores, devices = there.get("CPU", 0), there.get("GPU", 0)
        resources = _decide(asked, shards, cores=cores, devices=devices, most=most)
        if resources.all_cpus > cores:
            workers = f" and {asked.workers} rollout workers" if asked.workers else ""
            raise ValueError(
                f"{resources.shards} shards with {asked.cpus:g} CPU{workers} each need "
                f"{resources.all_cpus:g} CPUs; the cluster has {cores:g}"
            )
        return resources

    def crew(
        self,
        work: Work,
        meta: np.ndarray,
        *,
        outer: Outer,
        resources: Resources,
        modules: object = None,
    ) -> Crew:
        """The actors, all of them up; `modules`, the user's own, are unpickled before the rest.

        Raises:
            ValueError: the cluster has no room for the actors.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        shared = ray.put(_With(modules, work))
        # A shard can always compute its part again: a lost one is restarted, its call repeated.
        shard_actor = ray.remote(RayShard).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        worker_actor = ray.remote(RayWorker).options(
            num_cpus=resources.worker_cpus, max_restarts=-1, max_task_retries=RETRIES
        )
        workers = [
            [worker_actor.remote([shared]) for _ in range(resources.workers)]
            for _ in range(resources.shards)
        ]
        shards = [
            shard_actor.remote(
                [shared],
                rank=rank,
                shards=resources.shards,
                device=resources.device,
                workers=workers[rank],
            )
            for rank in range(resources.shards)
        ]
        for method in (ParameterServer.update, ParameterServer.ask, ParameterServer.settle):
            ray.method(num_returns=2)(method)
        # The server stays beside the driver: they live and die together, shards come and go.
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        server = (
            ray.remote(ParameterServer)
            .options(num_cpus=0, scheduling_strategy=beside)
            .remote(meta, _With(modules, outer), learned=work.learned)
        )
        rolling = [worker for own in workers for worker in own]
        actors: list[Any] = [*shards, *rolling, server]

        def close(_needed_by_restarted_shards: Any = shared) -> None:
            for actor in actors:
                ray.kill(actor)

        pings = [actor.ping.options(max_task_retries=0).remote() for actor in actors[:-1]]
        _, waiting = ray.wait(pings, num_returns=len(pings), timeout=PLACED_WITHIN)
        if waiting:
            free = ray.available_resources()
            close()
            raise ValueError(
                f"{len(waiting)} of {len(pings)} actors found no room in {PLACED_WITHIN} s: each "
                f"needs {resources.cpus:g} CPU and {resources.gpus:g} GPU, the cluster has "
                f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free"
            )
        _get(pings)
        return Crew(shards, server, _get, close, rolling)


class _With:
    """Arrives as `value`, after `modules`, which make it possible to unpickle that."""

    def __init__(self, modules: object, value: object) -> None:
        self._both = modules, value

    def __reduce__(self) -> tuple[Any, ...]:
        return _second, self._both


def _second(modules: object, value: object) -> object:
    return value


def _get(references: Any) -> Any:
    """Values; what a user's code raised in an actor is raised here as it was."""
    import ray

    try:
        return ray.get(references)
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if not isinstance(cause, ray.exceptions.RayError):
        raise cause
    said = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if "creation task" in said[0]:
        raise ValueError(f"an actor could not be made: {said[-1]}")
    raise ChildProcessError(f"an actor was lost (--resume goes on): {said[0]}")


def _decide(
    asked: Asked, shards: int | None, *, cores: float, devices: float, most: int
) -> Resources:
    gpus = asked.gpus
    if gpus is None:
        gpus = 1.0 if devices >= 1 else 0.0
    if shards is None:
        each = asked.cpus + asked.workers * asked.worker_cpus
        room = devices / gpus if gpus else cores / (each or 1)
        shards = max(1, min(int(room), most))
    if shards * gpus > devices:
        raise ValueError(
            f"{shards} shards with {gpus:g} GPU each need {shards * gpus:g} GPUs; "
            f"there are {devices:g}"
        )
    return Resources(shards, asked.cpus, gpus, asked.workers, asked.worker_cpus)
