"""Making a run's actors on Ray: their names, what each reserves, and where it is placed."""

import os
from functools import partial
from typing import Any, cast
from uuid import uuid4

from maml_dist.runtime.allocator import ONE_HEAP
from maml_dist.runtime.backend import Resources
from maml_dist.runtime.messages import Start
from maml_dist.runtime.ranges import cut
from maml_dist.runtime.ray_actors import SERVER, RayServer, RayServerPart, RayShard, RayWorker
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.watch import Seat


def _one_heap() -> dict[str, Any]:
    """The options of an actor that computes; nothing where a Ray of our own gives it that."""
    if os.environ.items() >= ONE_HEAP.items():
        return {}
    return {"runtime_env": {"env_vars": ONE_HEAP}}


class Maker:
    """Makes the actors of one run, which find each other in a namespace of its own."""

    def __init__(self, given: Start, resources: Resources) -> None:
        import ray

        self._given, self._resources = given, resources
        self._namespace = f"maml_dist-{uuid4().hex}"
        self._title = f" · {given.title}" if given.title else ""
        self._spec = ray.put(Second(given.modules, given.shard))
        self._rooms: list[Any] = []  # placement groups, each of a shard and its workers
        request, inside = resources.request, ray.util.get_current_placement_group()
        reserves = request.worker_cpus and (request.cpus or resources.gpus)
        if request.workers and reserves and request.placement == "spread" and not inside:
            self._rooms = [self._room() for _ in range(resources.shards)]

    def server(self) -> ParameterServer:
        """Beside the driver: they live and die together, shards come and go."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for method in (
            RayServer.update,
            RayServer.next_request,
            RayServer.finish_update,
        ):
            ray.method(num_returns=2)(cast(Any, method))
        here = ray.get_runtime_context().get_node_id()
        given = self._given
        server = self._actor(
            RayServer,
            SERVER,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        ).remote(
            given.meta,
            Second(given.modules, given.outer),
            learned=given.shard.learned,
            spec=[self._spec],
            labels=given.shard.labels,
        )
        return cast(ParameterServer, server)

    def shards(self) -> list[Seat]:
        """The seats of the shards."""
        count = self._resources.shards
        names = [f"TaskShard {rank + 1} of {count}{self._title}" for rank in range(count)]
        return [Seat(name, partial(self._shard, name, rank)) for rank, name in enumerate(names)]

    def workers(self) -> list[Seat]:
        """The seats of the rollout workers of all shards."""
        return [
            Seat(name, partial(self._worker, name, rank, number))
            for rank in range(self._resources.shards)
            for number, name in enumerate(self._workers_of(rank), 1)
        ]

    def server_parts(self) -> list[Seat]:
        """The seats of those who own a range of the vector each; they reserve nothing."""
        import ray

        request = self._resources.request
        if request.server != "split":
            return []
        machines = sum(node["Alive"] for node in ray.nodes())
        count = request.servers or max(2, machines)
        if not self._given.shard.tables:  # of which each may have rows
            count = len(cut(len(self._given.meta), count))
        names = [f"{SERVER} {rank + 1} of {count}{self._title}" for rank in range(count)]
        return [
            Seat(name, partial(self._server_part, name, rank)) for rank, name in enumerate(names)
        ]

    def close(self) -> None:
        """Let go of the room that is held."""
        from ray.util import remove_placement_group

        for room in self._rooms:
            remove_placement_group(room)

    def _shard(self, name: str, rank: int) -> Any:
        resources = self._resources
        make = self._actor(
            RayShard,
            name,
            num_cpus=resources.request.cpus,
            num_gpus=resources.gpus,
            allow_out_of_order_execution=True,  # else a pulse is asked for after all that waits
            scheduling_strategy=self._placement(rank, 0),
            **_one_heap(),
        )
        workers = self._workers_of(rank)
        return make.remote(
            self._namespace, rank=f"{rank + 1}", device=resources.device, workers=workers
        )

    def _worker(self, name: str, rank: int, number: int) -> Any:
        make = self._actor(
            RayWorker,
            name,
            num_cpus=self._resources.request.worker_cpus,
            allow_out_of_order_execution=True,
            scheduling_strategy=self._placement(rank, number),
        )
        return make.remote(self._namespace, rank=f"{rank + 1}.{number}")

    def _server_part(self, name: str, rank: int) -> Any:
        import ray

        inside = ray.util.get_current_placement_group()
        make = self._actor(
            RayServerPart,
            name,
            num_cpus=0,
            allow_out_of_order_execution=True,
            scheduling_strategy=None if inside else "SPREAD",
        )
        return make.remote(self._namespace, rank=f"{rank + 1}")

    def _workers_of(self, rank: int) -> list[str]:
        count = self._resources.request.workers
        return [
            f"RolloutWorker {number + 1} of {count} of shard {rank + 1}{self._title}"
            for number in range(count)
        ]

    def _room(self) -> Any:
        """For a shard and its workers, all of it or nothing: shards alone would leave them none.

        Together where there is one machine for them, and on the one with the most room.
        """
        from ray.util import placement_group

        request = self._resources.request
        shard = {"CPU": request.cpus, "GPU": self._resources.gpus}
        bundles = [shard, *[{"CPU": request.worker_cpus}] * request.workers]
        named = [{key: value for key, value in each.items() if value} for each in bundles]
        return placement_group(named, strategy="PACK")

    def _placement(self, rank: int, bundle: int) -> Any:
        """Inside a placement group, as of a Tune trial, actors stay in it."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if self._rooms:
            return PlacementGroupSchedulingStrategy(
                self._rooms[rank], placement_group_bundle_index=bundle
            )
        if bundle or ray.util.get_current_placement_group():
            return None
        return "SPREAD" if self._resources.request.placement == "spread" else "DEFAULT"

    def _actor(self, kind: type, name: str, **options: Any) -> Any:
        """An actor class that answers in a thread of its own besides."""
        import ray

        made = cast(Any, ray.remote)(concurrency_groups={"health": 1})(kind)
        return made.options(name=name, namespace=self._namespace, **options)


class Second:
    """Arrives as `value`, after `modules`, which make it possible to unpickle that."""

    def __init__(self, modules: object, value: object) -> None:
        self._both = modules, value

    def __reduce__(self) -> tuple[Any, ...]:
        return _second, self._both


def _second(modules: object, value: object) -> object:
    return value
