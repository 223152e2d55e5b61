"""RolloutWorker: the actor that acts in the environments of some tasks.

It holds nothing but the task source and the model: given policies, tasks and the number of steps
adapted so far, it always gives the same trajectories, so a lost one is replaced and asked again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from maml_dist.core.compile.tracing import TracedFunction
from maml_dist.core.data.episode import map_tensors
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.data.trajectories import Trajectories, joined
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import Params

Weights = dict[str, np.ndarray]  # of stacked tasks, each [task, …]
Roll = Callable[..., Trajectories]  # (policies [task, …], tasks, stage=) -> what they do
# (weights [candidate, …], the task of each, stage=) -> mean return and steps lived [2, candidate]
Returns = Callable[..., np.ndarray]

CANDIDATES = 2048  # environments of candidates at once, unless said; keeps caches and memory small


class RolloutWorker:
    """Rolls policies out, on a CPU and in float32."""

    def __init__(
        self, source: TaskSource, model: nn.Module, *, max_parallel_envs: int | None = None
    ) -> None:
        """`max_parallel_envs`: simulated at once at the most (whole tasks); all if None."""
        self._source: Any = source
        self._each = getattr(source, "episodes", 1)
        self._at_once = (
            None if max_parallel_envs is None else max(1, max_parallel_envs // self._each)
        )
        self.steps = 0.0  # of environments that it has simulated
        objective = Objective(model, source)
        self._names: tuple[str, ...] = ()

        def outputs(observations: Tensor, *weights: Tensor) -> Tensor:
            def one(observations: Tensor, *weights: Tensor) -> Tensor:
                params = dict(zip(self._names, weights, strict=True))
                return objective.output(params, observations)

            return vmap(one)(observations, *weights)

        self._outputs = TracedFunction(outputs)

    def ping(self) -> None:
        """An answer when the actor is up."""

    def roll(self, weights: Weights, tasks: Sequence[Any], *, stage: int) -> Trajectories:
        """What the policies of `tasks` do after `stage` adaptation steps, as numpy arrays."""
        tensors = {name: torch.tensor(value) for name, value in weights.items()}
        return map_tensors(cast(Any, Tensor.numpy), self.here(tensors, tasks, stage=stage))

    def returns(self, weights: Weights, tasks: Sequence[Any], *, stage: int) -> np.ndarray:
        """The mean return of each policy's episodes, and the steps that it lives: [2, task]."""
        tensors = {name: torch.tensor(value) for name, value in weights.items()}
        many = self._at_once or max(1, CANDIDATES // self._each)
        parts = [
            torch.stack([rolled.rewards.double().sum(2).mean(1), rolled.mask.double().sum((1, 2))])
            for rolled in self._rolled(tensors, tasks, stage=stage, many=many)
        ]
        return torch.cat(parts, 1).numpy()

    def here(self, policies: Params, tasks: Sequence[Any], *, stage: int) -> Trajectories:
        """The same as `roll` with tensors, for whoever is in this process."""
        parts = self._rolled(policies, tasks, stage=stage, many=self._at_once or len(tasks))
        return joined([*parts], torch.cat)

    def _rolled(
        self, policies: Params, tasks: Sequence[Any], *, stage: int, many: int
    ) -> Iterator[Trajectories]:
        """What they do, so many tasks at once."""
        self._names = tuple(policies)
        for start in range(0, len(tasks), many):
            some = slice(start, start + many)
            values = [value.detach()[some].float().contiguous() for value in policies.values()]

            def policy(observations: Tensor, values: list[Tensor] = values) -> Tensor:
                outputs: Tensor = self._outputs(observations, *values)
                return outputs

            rolled: Trajectories = self._source.roll(policy, tasks[some], stage=stage)
            self.steps += float(rolled.mask.sum())
            yield rolled
