"""Making a run's actors on Ray: their names, what each reserves, and where it is placed."""

from functools import partial
from typing import Any, cast
from uuid import uuid4

from maml_dist.runtime.backend import Resources
from maml_dist.runtime.messages import Start
from maml_dist.runtime.ray_actors import SERVER, RayServer, RayShard, RayWorker
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.watch import Seat


class Maker:
    """Makes the actors of one run, which find each other in a namespace of its own."""

    def __init__(self, given: Start, resources: Resources) -> None:
        import ray

        self._given, self._resources = given, resources
        self._namespace = f"maml_dist-{uuid4().hex}"
        self._title = f" · {given.title}" if given.title else ""
        self._spec = ray.put(Second(given.modules, given.shard))

    def server(self) -> ParameterServer:
        """Beside the driver: they live and die together, shards come and go."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for method in (
            ParameterServer.update,
            ParameterServer.next_request,
            ParameterServer.finish_update,
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
            Seat(name, partial(self._worker, name))
            for rank in range(self._resources.shards)
            for name in self._workers_of(rank)
        ]

    def _shard(self, name: str, rank: int) -> Any:
        resources = self._resources
        make = self._actor(
            RayShard,
            name,
            num_cpus=resources.request.cpus,
            num_gpus=resources.gpus,
            allow_out_of_order_execution=True,  # else a pulse is asked for after all that waits
            scheduling_strategy=self._placement(),
        )
        workers = self._workers_of(rank)
        return make.remote(self._namespace, device=resources.device, workers=workers)

    def _worker(self, name: str) -> Any:
        cpus = self._resources.request.worker_cpus
        make = self._actor(RayWorker, name, num_cpus=cpus, allow_out_of_order_execution=True)
        return make.remote(self._namespace)

    def _workers_of(self, rank: int) -> list[str]:
        count = self._resources.request.workers
        return [
            f"RolloutWorker {number + 1} of {count} of shard {rank + 1}{self._title}"
            for number in range(count)
        ]

    def _placement(self) -> str | None:
        """Inside a placement group, as of a Tune trial, actors stay in it."""
        import ray

        if ray.util.get_current_placement_group():
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
