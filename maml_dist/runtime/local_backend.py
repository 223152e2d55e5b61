"""All actors in this process, one after the other, called as Ray's are."""

from collections.abc import Callable
from threading import Thread
from typing import ClassVar, NoReturn, cast

import torch

from maml_dist.core.process_lock import EXCLUSIVE
from maml_dist.runtime.backend import ActorGroup, ActorLost, ResourceRequest, Resources, ShardRange
from maml_dist.runtime.local_peer import LocalPeer
from maml_dist.runtime.messages import Start
from maml_dist.runtime.remote import Get, Here
from maml_dist.runtime.server import ParameterServer, Saved
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

    def resources(
        self, shards: int | ShardRange | None, request: ResourceRequest, *, most: int
    ) -> Resources:
        """What `shards` and GPUs mean here: so many slices, computed one after the other.

        Raises:
            ValueError: a GPU is asked for and there is none.
        """
        devices = torch.cuda.device_count()
        gpus = float(bool(devices)) if request.gpus is None else request.gpus
        if gpus and not devices:
            raise ValueError(f"gpus_per_shard={gpus:g}: this machine has no GPU")
        count = min(shards.max, most) if isinstance(shards, ShardRange) else shards or 1
        return Resources(count, gpus, request, count)

    def start(self, given: Start, resources: Resources) -> ActorGroup:
        """The actors; they compute with as many threads as a shard on Ray.

        Raises:
            ValueError: a run in another thread of this process computes with another number.
        """
        threads = max(1, int(resources.request.cpus))
        with EXCLUSIVE:
            if {*self._runs} - {threads}:
                raise ValueError(
                    f"cpus_per_shard={resources.request.cpus:g}: another run in this process "
                    f"computes with {self._runs[0]}, which is one number for all: use that, or "
                    "another process"
                )
            self._runs.append(threads)
            self._own.append(threads)
            torch.set_num_threads(threads)
        kind = LocalPeer if given.shard.tables else LocalGroup
        return kind(given, resources.device)


class LocalGroup(ActorGroup):
    """One shard and the server, in this process."""

    def __init__(self, given: Start, device: str) -> None:
        self.slices = given.shard.slices
        server = ParameterServer(given.meta, given.outer, learned=given.shard.learned)
        self.server = cast(ParameterServer, Here(server))
        self.get = cast(Get, lambda value: value)
        self._shard = cast(TaskShard, Here(TaskShard(given.shard, device=device)))

    def shard(self, slice: int) -> TaskShard:
        """The only one."""
        return self._shard

    def submitted(self, it: int) -> None:
        """No snapshot is needed: the server lives as long as this process."""

    def restore(self, saved: Saved) -> None:
        """Let the server go on from a saved state."""
        self.server.restore.remote(saved)

    def drain(self, failure: ActorLost) -> NoReturn:
        """Nothing is lost here."""
        raise failure

    def reform(self, saved: Saved, *, stop: Callable[[], bool]) -> None:
        """Nothing is lost here."""

    def close(self) -> None:
        """There is nothing to end."""
