"""The machines: a Ray cluster, or a Ray that is started on this machine."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from maml_dist.runtime.backend import ActorGroup, ResourceRequest, Resources, ShardRange, how_many
from maml_dist.runtime.messages import Start
from maml_dist.runtime.private_ray import own_ray
from maml_dist.runtime.ray_cluster import join, machines, may_grow
from maml_dist.runtime.ray_group import RayGroup


class RayBackend:
    """Runs the actors on a Ray cluster; where none is named, on one started on this machine."""

    def __init__(self, address: str | None = None) -> None:
        self._given = address
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._grows = False

    def __enter__(self) -> "RayBackend":
        import ray

        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of what is submitted again
        self._joined = ray.is_initialized()  # inside a Tune trial, say
        self._own = ExitStack()
        return self

    def __exit__(self, *exception: Any) -> None:
        import ray

        if not self._joined:
            self._own.__exit__(*exception)
            ray.shutdown()

    def resources(
        self, shards: int | ShardRange | None, request: ResourceRequest, *, most: int
    ) -> Resources:
        """Join the cluster; `shards` null: one a GPU, or one a core, `most` at the most.

        A Ray started on this machine declares as many CPUs as the shards need.

        Raises:
            ValueError: nothing answers at the address, or there are fewer GPUs or CPUs than asked,
                and none can come.
        """
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not self._joined and self._address == "local":
            cores, devices = os.cpu_count() or 1, torch.cuda.device_count()
            if isinstance(shards, ShardRange):  # nothing else will come
                room = how_many(None, request, cores=cores, devices=devices, most=shards.max)
                shards = min(max(shards.min, room.shards), most)
            resources = how_many(shards, request, cores=cores, devices=devices, most=most)
            self._own.enter_context(own_ray(max(cores, math.ceil(resources.all_cpus))))
            return resources
        if not self._joined:
            join(self._address)
        here = ray.get_runtime_context().gcs_address
        if self._joined and self._given not in (None, "auto", here):
            raise ValueError(f"--address {self._given}: this process is on the cluster at {here}")
        there, found = ray.cluster_resources(), machines()
        cores, devices = there.get("CPU", 0), there.get("GPU", 0)
        if may_grow() and shards is None and cores < request.cpus:  # nothing is there yet
            shards = ShardRange(most)
        self._grows = may_grow() or isinstance(shards, ShardRange)
        if self._grows:
            cores, devices = max(cores, _sum(found, "CPU")), max(devices, _sum(found, "GPU"))
        resources = how_many(shards, request, cores=cores, devices=devices, most=most)
        self._refuse_small(resources, found)
        if resources.all_cpus > cores and not self._grows:
            workers = f" and {request.workers} rollout workers" if request.workers else ""
            raise ValueError(
                f"{resources.shards} shards with {request.cpus:g} CPU{workers} each need "
                f"{resources.all_cpus:g} CPUs; the cluster has {cores:g}"
            )
        return resources

    def start(self, given: Start, resources: Resources) -> ActorGroup:
        """The actors, as many of them up as the run begins with.

        Raises:
            ValueError: the cluster has no room for the actors, or they cannot be made.
        """
        group = RayGroup(given, resources, grows=self._grows)
        try:
            group.open()
        except BaseException:
            group.close()
            raise
        return group

    def _refuse_small(self, resources: Resources, found: Sequence[Mapping[str, float]]) -> None:
        """Raise ValueError where no machine that is there, or is known to come, holds an actor."""
        request = resources.request
        for key, cpus, gpus in (
            ("cpus_per_shard", request.cpus, 0.0),
            ("gpus_per_shard", 0.0, resources.gpus),
            ("cpus_per_shard, gpus_per_shard", request.cpus, resources.gpus),
            ("cpus_per_worker", request.worker_cpus if request.workers else 0.0, 0.0),
        ):
            if found and not any(
                each.get("CPU", 0) >= cpus and each.get("GPU", 0) >= gpus for each in found
            ):
                needs = " and ".join(
                    f"{number:g} {what}"
                    for number, what in ((cpus, "CPU"), (gpus, "GPU"))
                    if number
                )
                largest = max(found, key=lambda each: (each.get("GPU", 0), each.get("CPU", 0)))
                raise ValueError(
                    f"no machine of the cluster has {needs} ({key}): the largest has "
                    f"{largest.get('CPU', 0):g} CPU and {largest.get('GPU', 0):g} GPU"
                )


def _sum(machines: Sequence[Mapping[str, float]], resource: str) -> float:
    return sum(each.get(resource, 0) for each in machines)
