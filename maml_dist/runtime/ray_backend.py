"""The actors on a Ray cluster, or on a Ray that is started on this machine."""

import math
import os
from contextlib import ExitStack
from typing import Any, cast
from uuid import uuid4

import torch

from maml_dist.runtime.backend import ActorGroup, ResourceRequest, Resources
from maml_dist.runtime.messages import Start
from maml_dist.runtime.private_ray import own_ray
from maml_dist.runtime.ray_actors import RayServer, RayShard, RayWorker
from maml_dist.runtime.ray_cluster import join
from maml_dist.runtime.rollout_worker import RolloutWorker
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard

PLACED_WITHIN = 120  # seconds for the cluster to place all actors
RETRIES = 3  # of one call; a task that kills every process that tries it ends the run


class RayBackend:
    """Runs the actors on a Ray cluster; where none is named, on one started on this machine."""

    def __init__(self, address: str | None = None) -> None:
        self._given = address
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"

    def __enter__(self) -> "RayBackend":
        import ray

        self._joined = ray.is_initialized()  # inside a Tune trial, say
        self._own = ExitStack()
        return self

    def __exit__(self, *exception: Any) -> None:
        import ray

        if not self._joined:
            self._own.__exit__(*exception)
            ray.shutdown()

    def resources(self, shards: int | None, request: ResourceRequest, *, most: int) -> Resources:
        """Join the cluster; `shards` null: one a GPU, or one a core, `most` at the most.

        A Ray started on this machine declares as many CPUs as the shards need.

        Raises:
            ValueError: nothing answers at the address, or there are fewer GPUs or CPUs than asked.
        """
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not self._joined and self._address == "local":
            cores, devices = os.cpu_count() or 1, torch.cuda.device_count()
            resources = _decide(request, shards, cores=cores, devices=devices, most=most)
            self._own.enter_context(own_ray(max(cores, math.ceil(resources.all_cpus))))
            return resources
        if not self._joined:
            join(self._address)
        here = ray.get_runtime_context().gcs_address
        if self._joined and self._given not in (None, "auto", here):
            raise ValueError(f"--address {self._given}: this process is on the cluster at {here}")
        there = ray.cluster_resources()
        cores, devices = there.get("CPU", 0), there.get("GPU", 0)
        resources = _decide(request, shards, cores=cores, devices=devices, most=most)
        if resources.all_cpus > cores:
            workers = f" and {request.workers} rollout workers" if request.workers else ""
            raise ValueError(
                f"{resources.shards} shards with {request.cpus:g} CPU{workers} each need "
                f"{resources.all_cpus:g} CPUs; the cluster has {cores:g}"
            )
        return resources

    def start(self, given: Start, resources: Resources) -> ActorGroup:
        """The actors, all of them up.

        Raises:
            ValueError: the cluster has no room for the actors.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        shared = ray.put(_With(given.modules, given.shard))
        name = f"maml_dist-{uuid4().hex}"  # by which the actors of this run find each other
        for method in (
            ParameterServer.update,
            ParameterServer.next_request,
            ParameterServer.finish_update,
        ):
            ray.method(num_returns=2)(cast(Any, method))
        # The server stays beside the driver: they live and die together, shards come and go.
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        server = (
            ray.remote(RayServer)
            .options(name=name, num_cpus=0, scheduling_strategy=beside)
            .remote(
                given.meta,
                _With(given.modules, given.outer),
                learned=given.shard.learned,
                spec=[shared],
            )
        )
        # A shard can always compute its part again: a lost one is restarted, its call repeated.
        shard_actor = ray.remote(RayShard).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        names = [
            [f"{name}-{rank}-{number}" for number in range(resources.workers)]
            for rank in range(resources.shards)
        ]
        worker_actor = ray.remote(RayWorker)
        rolling = [
            worker_actor.options(
                name=each,
                num_cpus=resources.worker_cpus,
                max_restarts=-1,
                max_task_retries=RETRIES,
            ).remote(name)
            for own in names
            for each in own
        ]
        shards = [
            shard_actor.remote(
                name,
                rank=rank,
                shards=resources.shards,
                device=resources.device,
                workers=names[rank],
            )
            for rank in range(resources.shards)
        ]
        actors: list[Any] = [*shards, *rolling, server]

        def close() -> None:
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
        return ActorGroup(
            cast(list[TaskShard], shards),
            cast(ParameterServer, server),
            _get,
            close,
            cast(list[RolloutWorker], rolling),
        )


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
    request: ResourceRequest, shards: int | None, *, cores: float, devices: float, most: int
) -> Resources:
    gpus = request.gpus
    if gpus is None:
        gpus = 1.0 if devices >= 1 else 0.0
    if shards is None:
        each = request.cpus + request.workers * request.worker_cpus
        room = devices / gpus if gpus else cores / (each or 1)
        shards = max(1, min(int(room), most))
    if shards * gpus > devices:
        raise ValueError(
            f"{shards} shards with {gpus:g} GPU each need {shards * gpus:g} GPUs; "
            f"there are {devices:g}"
        )
    return Resources(shards, request.cpus, gpus, request.workers, request.worker_cpus)
