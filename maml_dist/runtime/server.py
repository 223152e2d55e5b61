"""ParameterServer: the actor that adds the gradients up and applies the beta update."""

import numpy as np
import torch

from maml_dist.core.outer import Outer
from maml_dist.runtime.shard import Contribution

Saved = tuple[int, np.ndarray, dict[str, np.ndarray]]  # iteration, meta [size], the rule's state


class ParameterServer:
    """Holds the meta-parameters as one flat vector [size], and the outer rule's state."""

    def __init__(self, meta: np.ndarray, outer: Outer) -> None:
        self._outer = outer
        self._it = 0
        self._meta = torch.tensor(meta)
        self._state = outer.init(self._meta)

    def meta(self) -> np.ndarray:
        """The meta-parameters [size]; never changed afterwards."""
        return self._meta.numpy()

    def update(self, *contributions: Contribution) -> tuple[np.ndarray, dict[str, float]]:
        """One meta-update from the contributions of all shards.

        Returns:
            The new meta-parameters [size], and the means of the shards' metrics over tasks.
        """
        tasks = sum(part.tasks for part in contributions)
        gradient = torch.tensor(contributions[0].gradient)
        for part in contributions[1:]:
            gradient = gradient + torch.tensor(part.gradient)
        self._meta, self._state = self._outer.update(self._meta, gradient / tasks, self._state)
        self._it += 1
        names = contributions[0].metrics
        metrics = {
            name: sum(part.metrics[name] for part in contributions) / tasks for name in names
        }
        return self.meta(), metrics

    def state(self) -> Saved:
        """Everything that an update changes."""
        return self._it, self.meta(), {name: value.numpy() for name, value in self._state.items()}

    def restore(self, saved: Saved) -> None:
        """Go on from a saved state, to the same bits."""
        self._it, meta, state = saved
        self._meta = torch.tensor(meta)
        self._state = {name: torch.tensor(value) for name, value in state.items()}
