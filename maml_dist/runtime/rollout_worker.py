"""RolloutWorker: the actor that acts in the environments of some tasks.

It holds nothing but the task source and the model: given policies, tasks and the number of steps
adapted so far, it always gives the same trajectories, so a lost one is replaced and asked again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from maml_dist.core.objective import Objective
from maml_dist.core.params import Params
from maml_dist.core.replay import Replay
from maml_dist.core.source import TaskSource
from maml_dist.core.trajectories import Trajectories

Weights = dict[str, np.ndarray]  # of stacked tasks, each [task, …]


class RolloutWorker:
    """Rolls policies out, on a CPU and in float32."""

    def __init__(
        self, source: TaskSource, model: nn.Module, *, environments: int | None = None
    ) -> None:
        """`environments`: simulated at once at the most (whole tasks); all if None."""
        self._source: Any = source
        each = getattr(source, "episodes", 1)
        self._at_once = None if environments is None else max(1, environments // each)
        objective = Objective(model, source)
        self._names: tuple[str, ...] = ()

        def outputs(observations: Tensor, *weights: Tensor) -> Tensor:
            def one(observations: Tensor, *weights: Tensor) -> Tensor:
                params = dict(zip(self._names, weights, strict=True))
                return objective.output(params, observations)

            return vmap(one)(observations, *weights)

        self._outputs = Replay(outputs)

    def ping(self) -> None:
        """An answer when the actor is up."""

    def roll(self, weights: Weights, tasks: Sequence[Any], *, stage: int) -> Trajectories:
        """What the policies of `tasks` do after `stage` adaptation steps, as numpy arrays."""
        tensors = {name: torch.tensor(value) for name, value in weights.items()}
        rolled = self.here(tensors, tasks, stage=stage)
        return Trajectories(*(part.numpy() for part in rolled))  # type: ignore[arg-type]

    def here(self, policies: Params, tasks: Sequence[Any], *, stage: int) -> Trajectories:
        """The same with tensors, for whoever is in this process."""
        self._names = tuple(policies)
        many = self._at_once or len(tasks)
        parts = []
        for start in range(0, len(tasks), many):
            some = slice(start, start + many)
            values = [value.detach()[some].float().contiguous() for value in policies.values()]

            def policy(observations: Tensor, values: list[Tensor] = values) -> Tensor:
                outputs: Tensor = self._outputs(observations, *values)
                return outputs

            parts.append(self._source.roll(policy, tasks[some], stage=stage))
        return Trajectories(*map(torch.cat, zip(*parts, strict=True)))
