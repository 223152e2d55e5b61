"""What the plain actors do besides on Ray: fetch their spec, tell what was warned of, fan out."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.params import Params
from maml_dist.runtime.messages import Contribution, ShardSpec
from maml_dist.runtime.remote import remote
from maml_dist.runtime.rollout_worker import RolloutWorker, Weights
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard


class RayServer(ParameterServer):
    """A parameter server that holds a reference to what the shards of the run are given.

    They find it by its name, and ask: of references and actors among the arguments of what is
    restarted Ray warns each time.
    """

    def __init__(
        self, meta: np.ndarray, outer: OuterOptimizer, *, learned: int, spec: list[Any]
    ) -> None:
        super().__init__(meta, outer, learned=learned)
        self._spec = spec

    def spec(self) -> list[Any]:
        """The reference, in a list: Ray hands it over as it is."""
        return self._spec


class RayShard(TaskShard):
    """A shard that asks for its spec itself, at each start."""

    def __init__(
        self, server: str, *, rank: int, shards: int, device: str, workers: list[str]
    ) -> None:
        import ray

        given = _spec_of(server)
        rolling = [ray.get_actor(name) for name in workers]
        roll = partial(roll_on, rolling) if workers else None
        returns = partial(returns_on, rolling) if workers else None
        super().__init__(given, rank=rank, shards=shards, device=device, roll=roll, returns=returns)
        self._listens = True

    @remote
    def gradient(self, meta: np.ndarray, it: int, at: np.ndarray | None = None) -> Contribution:
        """As in this process; what is warned of the first time is told to the driver."""
        if not self._listens:
            return super().gradient(meta, it, at)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            contribution = super().gradient(meta, it, at)
        self._listens = False
        texts = (str(warning.message) for warning in caught)
        return contribution._replace(warnings=tuple(t for t in texts if t.startswith("engine.")))


class RayWorker(RolloutWorker):
    """A rollout worker that asks for the spec of its shard itself."""

    def __init__(self, server: str) -> None:
        given = _spec_of(server)
        super().__init__(given.source, given.model, max_parallel_envs=given.max_parallel_envs)


def _spec_of(server: str) -> ShardSpec:
    """What the shards of the run are given: the server of this name knows where it lies."""
    import ray

    references: list[Any] = ray.get(ray.get_actor(server).spec.remote())
    spec: ShardSpec = ray.get(references[0])
    return spec


def roll_on(workers: list[Any], policies: Params, tasks: Sequence[Any], *, stage: int) -> Any:
    """What the policies do, whole tasks a worker."""
    weights = {name: value.numpy() for name, value in policies.items()}
    parts = zip(*_fan_out(workers, "roll", weights, tasks, stage), strict=True)
    return Trajectories(*(torch.from_numpy(np.concatenate(part)) for part in parts))


def returns_on(
    workers: list[Any], weights: Weights, tasks: Sequence[Any], *, stage: int
) -> np.ndarray:
    """The returns of candidates, whole candidates a worker: only these and the weights travel."""
    return np.concatenate(_fan_out(workers, "returns", weights, tasks, stage), 1)


def _fan_out(
    workers: list[Any], method: str, weights: Weights, tasks: Sequence[Any], stage: int
) -> list[Any]:
    """The workers' answers, each for its share of the tasks."""
    import ray

    shares = [part for part in np.array_split(np.arange(len(tasks)), len(workers)) if len(part)]
    references = []
    for worker, share in zip(workers, shares, strict=False):
        own = {name: value[share[0] : share[-1] + 1] for name, value in weights.items()}
        call = getattr(worker, method)
        references.append(call.remote(own, [tasks[i] for i in share], stage=stage))
    answers: list[Any] = ray.get(references)
    return answers
