"""What the plain actors do besides on Ray: fetch their spec, answer while they work, and warn.

Each answers `pulse` in a thread of its own. Whoever needs the spec of the run finds the server by
its name and asks: of references and actors among the arguments of actors Ray warns each time.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch

from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.runtime.linked import Linked
from maml_dist.runtime.messages import Contribution, RowValues, ShardSpec
from maml_dist.runtime.pulse import Pace, Pulse
from maml_dist.runtime.remote import remote
from maml_dist.runtime.rollout_worker import RolloutWorker
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard
from maml_dist.runtime.worker_pool import WorkerPool

SERVER = "ParameterServer"  # its name, in the namespace of the run


class Named:
    """Shows itself by the actor's name: in Ray's dashboard, and before each line of its logs."""

    def __repr__(self) -> str:
        import ray

        name = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else None
        return name or type(self).__name__


class RayServer(Named, ParameterServer):
    """A parameter server that holds a reference to what the shards of the run are given."""

    def __init__(
        self, meta: np.ndarray, outer: OuterOptimizer, *, learned: int, spec: list[Any]
    ) -> None:
        super().__init__(meta, outer, learned=learned)
        self._spec = spec

    def spec(self) -> list[Any]:
        """The reference, in a list: Ray hands it over as it is."""
        return self._spec


def _paced(method: Any) -> Any:
    """A method of a shard whose pulse says that it runs."""

    @wraps(method)
    def paced(shard: "RayShard", *given: Any, **options: Any) -> Any:
        with shard._pace.of(method.__name__):
            return method(shard, *given, **options)

    return paced


class RayShard(Named, Linked, TaskShard):
    """A shard that asks for its spec itself, and acts by its workers."""

    def __init__(self, namespace: str, *, device: str, workers: list[str]) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"{os.uname().nodename} has no GPU that torch {torch.__version__} can use, though "
                "Ray was told of one"
            )
        self._pace = _pace()
        given = _spec_of(namespace)
        pool = None
        if workers:
            most = given.max_parallel_envs
            alone = RolloutWorker(given.source, given.model, max_parallel_envs=most)
            pool = WorkerPool(workers, namespace=namespace, alone=alone)
        super().__init__(
            given,
            device=device,
            roll=pool.roll if pool else None,
            returns=pool.returns if pool else None,
        )
        self._slices, self._learned, self._tables = given.slices, given.learned, given.tables
        self._begun: set[int] = set()  # slices whose gradient has been taken here
        self._warned: set[str] = set()

    def pulse(self) -> Pulse:
        """An answer while anything else runs."""
        return self._pace.pulse()

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
                return super().gradient(meta, it, at, slice=slice)
        if slice in self._begun:
            with self._pace.of("gradient", timed=True):
                return super().gradient(meta, it, at, slice=slice, rows=rows)
        with self._pace.of("first gradient"), _caught() as caught:  # it may compile
            contribution = super().gradient(meta, it, at, slice=slice, rows=rows)
        self._begun.add(slice)
        texts = dict.fromkeys(text for text in caught if text.startswith("engine."))
        new = tuple(text for text in texts if text not in self._warned)
        self._warned.update(new)
        return contribution._replace(warnings=new)

    objective = _paced(TaskShard.objective)
    curvature = _paced(TaskShard.curvature)
    scores = _paced(TaskShard.scores)


class RayServerPart(Named, Linked):
    """One that owns a range of the vector, and computes nothing else."""

    def __init__(self, namespace: str) -> None:
        self._pace = _pace()
        given = _spec_of(namespace)
        self._slices, self._learned, self._tables = given.slices, given.learned, given.tables

    def pulse(self) -> Pulse:
        """An answer while anything else runs."""
        return self._pace.pulse()


class RayWorker(Named, RolloutWorker):
    """A rollout worker that asks for the spec of its shard itself."""

    def __init__(self, namespace: str) -> None:
        self._pace = _pace()
        given = _spec_of(namespace)
        super().__init__(given.source, given.model, max_parallel_envs=given.max_parallel_envs)

    def pulse(self) -> Pulse:
        """An answer while anything else runs."""
        return self._pace.pulse()


def _pace() -> Pace:
    """Of this process, which is an actor of Ray's."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return Pace(node=node, host=ray.util.get_node_ip_address())


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
