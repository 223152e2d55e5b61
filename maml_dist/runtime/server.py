"""ParameterServer: the actor that adds the gradients up and applies the beta update."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from maml_dist.core.outer.optimizers import Gather, OuterOptimizer, Response, State, UpdateRounds
from maml_dist.core.tables import key_of
from maml_dist.runtime.messages import Contribution, Start
from maml_dist.runtime.partial_sums import total
from maml_dist.runtime.remote import remote, remote_pair

# iteration, meta [size], the outer optimizer's state
Saved = tuple[int, np.ndarray, dict[str, np.ndarray]]


def first_state(given: Start) -> Saved:
    """The state that a run begins with: a server's, and the values of tables."""
    server = ParameterServer(given.meta, given.outer, learned=given.shard.learned)
    it, meta, state = server.state()
    tables = {key_of(table): given.tables[table.name] for table in given.shard.tables}
    return it, meta, state | tables


class ParameterServer:
    """Holds one flat vector [size], and the outer optimizer's state.

    The vector's first `learned` elements are the meta-parameters, which the optimizer updates; the
    rest is kept (running statistics) and becomes the mean of what the tasks return. Where the
    optimizer averages, the whole vector is averaged: statistics belong to the weights that they are
    of.
    """

    def __init__(
        self, meta: np.ndarray, outer: OuterOptimizer, *, learned: int | None = None
    ) -> None:
        self.gradient: torch.Tensor | None = None  # the last mean, where it `keeps_gradient`
        self.keeps_gradient = False
        self._outer = outer
        self._learned = len(meta) if learned is None else learned
        self._it = 0
        self._meta = torch.tensor(meta)
        self._state = outer.init(self._meta[: self._learned])
        if outer.average is not None:
            self._state["average"] = self._meta.clone()
        self._rounds: UpdateRounds | None = None  # an update that asks back
        self._metrics: dict[str, Any] = {}  # of the update that is talked over
        self._kept = self._meta[self._learned :]  # as the tasks of that update return it
        self._result: tuple[torch.Tensor, State] | None = None  # of that update, to be taken

    @remote
    def meta(self) -> np.ndarray:
        """The meta-parameters [size]; never changed afterwards."""
        return self._meta.numpy()

    @remote
    def eval_parameters(self) -> np.ndarray:
        """What is validated [size]: `meta`, averaged where the optimizer averages."""
        return self._state.get("average", self._meta).numpy()

    @remote_pair
    def update(
        self,
        *contributions: Contribution,
        gather: Gather | None = None,
        facts: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """One meta-update from the contributions of all shards.

        Args:
            contributions: in the order of slices.
            gather: where this server has a part of the vector: knows the other parts' blocks.
            facts: go to the metrics.

        Returns:
            The new vector [size], and the means of the shards' metrics over the tasks that were
            not skipped; `skipped/tasks` names those, as "iteration:task".
        """
        mean, metrics = self._mean(contributions)
        if mean is not None:
            end = self._learned
            self._note(mean[:end])
            known = {} if gather is None else {"gather": gather}
            meta, state = self._outer.update(self._meta[:end], mean[:end], self._state, **known)
            self._take(meta, mean[end:], state)
        self._it += 1
        return self.meta(), metrics | dict(facts)

    @remote_pair
    def next_request(
        self, *contributions: Contribution
    ) -> tuple[tuple[str, dict[str, Any]], np.ndarray]:
        """One turn of an update that asks back, with all shards' answers to the question before.

        Returns:
            The method of the shards that answers, its options, and the vector [size] that it is
            given; no name where the update is ready to be settled.
        """
        mean, metrics = self._mean(contributions)
        end = self._learned
        kept = self._meta[end:]
        try:
            if self._rounds is None:
                self._metrics = metrics
                if mean is None:  # all tasks were skipped
                    return ("", {}), np.zeros(0, np.float32)
                self._kept = mean[end:]
                self._note(mean[:end])
                meta = self._meta[:end]
                self._rounds = self._outer.update_in_rounds(meta, mean[:end], metrics, self._state)
                question = next(self._rounds)
            else:
                also = f"{self._metrics['skipped/tasks']} {metrics['skipped/tasks']}".split()
                self._metrics["skipped/tasks"] = " ".join(dict.fromkeys(also))
                question = self._rounds.send(
                    Response(None if mean is None else mean[:end], metrics)
                )
        except StopIteration as ended:
            meta, state, found = ended.value
            self._result = meta, state
            self._metrics |= found
            return ("", {}), np.zeros(0, np.float32)
        return (question.what, question.options), torch.cat([question.at, kept]).numpy()

    @remote_pair
    def finish_update(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The update that was talked over; returns as `update` does."""
        if self._result is not None:
            self._take(self._result[0], self._kept, self._result[1])
        self._rounds = self._result = None
        self._it += 1
        return self.meta(), self._metrics

    def _note(self, gradient: torch.Tensor) -> None:
        if self.keeps_gradient:
            self.gradient = gradient

    def _take(self, meta: torch.Tensor, kept: torch.Tensor, state: State) -> None:
        """Put the new meta-parameters, what is kept, and the optimizer's state in place."""
        self._meta = torch.cat([meta, kept]) if len(kept) else meta
        if "average" in self._state:
            average = self._state["average"]
            average = self._outer.averaged(average, self._meta, before=self._state, state=state)
            state = state | {"average": average}
        self._state = state

    def _mean(
        self, contributions: tuple[Contribution, ...]
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """The mean over all tasks of what is summed; no vector where all were skipped."""
        vector, tasks, sums, skipped, warnings = total(contributions)[:5]
        metrics: dict[str, Any] = {
            name: value / tasks if tasks else math.nan for name, value in sums.items()
        }
        metrics["skipped/tasks"] = " ".join(f"{self._it}:{task}" for task in skipped)
        metrics["warnings"] = "\n".join(warnings)
        return torch.from_numpy(vector / vector.dtype.type(tasks)) if tasks else None, metrics

    @remote
    def state(self) -> Saved:
        """Everything that an update changes."""
        return self._it, self.meta(), {name: value.numpy() for name, value in self._state.items()}

    @remote
    def restore(self, saved: Saved) -> None:
        """Go on from a saved state, to the same bits; an update under way is forgotten."""
        self._it, meta, state = saved
        self._meta = torch.tensor(meta)
        self._state = {name: torch.tensor(value) for name, value in state.items()}
        self._rounds = self._result = self.gradient = None
        self._kept = self._meta[self._learned :]
