"""All actors in this process, one after the other, called as Ray's are."""

from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch

from maml_dist.core.process_lock import EXCLUSIVE
from maml_dist.runtime.backend import ActorGroup, ResourceRequest, Resources
from maml_dist.runtime.messages import Start
from maml_dist.runtime.remote import Get
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard


class LocalBackend:
    """Runs all actors in this process, one after the other."""

    _runs: ClassVar[list[int]] = []  # the threads that each of those under way computes with

    def __enter__(self) -> "LocalBackend":
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

    def resources(self, shards: int | None, request: ResourceRequest, *, most: int) -> Resources:
        """What `shards` and GPUs mean here; null: a single shard, on the GPU if there is one.

        Raises:
            ValueError: a GPU is asked for and there is none.
        """
        devices = torch.cuda.device_count()
        gpus = float(bool(devices)) if request.gpus is None else request.gpus
        if gpus and not devices:
            raise ValueError(f"gpus_per_shard={gpus:g}: this machine has no GPU")
        return Resources(shards or 1, request.cpus, gpus, request.workers, request.worker_cpus)

    def start(self, given: Start, resources: Resources) -> ActorGroup:
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
            TaskShard(given.shard, rank=rank, shards=resources.shards, device=resources.device)
            for rank in range(resources.shards)
        ]
        server = ParameterServer(given.meta, given.outer, learned=given.shard.learned)
        here = [cast(TaskShard, _Here(shard)) for shard in shards]
        get = cast(Get, lambda value: value)
        return ActorGroup(here, cast(ParameterServer, _Here(server)), get, lambda: None)


class _Here:
    """Gives a plain object an actor's way of being called."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, method))
