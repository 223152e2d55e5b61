"""Held-out rows: of sparse parameters, what the tasks of a validation touch, read of a state.

Which rows these are never changes: the shards say so once, by the model's own look-ups.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from maml_dist.core.outer.rates import Rates
from maml_dist.runs.run import Run
from maml_dist.runs.server_state import current_rows
from maml_dist.runtime.backend import ActorGroup
from maml_dist.runtime.messages import RowValues
from maml_dist.runtime.remote import Ref
from maml_dist.runtime.server import Saved


class HeldOutRows:
    """Of a run's validation tasks."""

    def __init__(self, run: Run, actors: ActorGroup) -> None:
        self._run, self._actors = run, actors
        self._rates = Rates(run.experiment.outer)

    def scoring(self, saved: Saved) -> Callable[[], list[Ref[dict[str, np.ndarray]]]]:
        """What has a state scored by the shards."""
        experiment, actors = self._run.experiment, self._actors
        tasks, steps = experiment.validation_tasks, experiment.test_steps
        it = max(0, saved[0] - 1)

        def score() -> list[Ref[dict[str, np.ndarray]]]:
            return [
                actors.shard(slice).scores.remote(
                    saved[1], it, split="val", tasks=tasks, steps=steps, slice=slice, rows=rows
                )
                for slice, rows in enumerate(map(self._rows(saved), self._ids))
            ]

        return score

    @cached_property
    def _ids(self) -> list[dict[str, np.ndarray]]:
        """Of each slice, the ids of the rows that its tasks touch; none where it has none."""
        experiment, actors = self._run.experiment, self._actors
        tasks, steps = experiment.validation_tasks, experiment.test_steps
        return actors.get(
            [
                actors.shard(slice).held_out.remote(
                    split="val", tasks=tasks, steps=steps, slice=slice
                )
                for slice in range(actors.slices)
            ]
        )

    def _rows(self, saved: Saved) -> Callable[[dict[str, np.ndarray]], RowValues]:
        tables, rates = self._run.seeded.tables, self._rates

        def of(ids: dict[str, np.ndarray]) -> RowValues:
            return {
                table.name: (at, current_rows(saved, table, rates, at).numpy())
                for table in tables
                if (at := ids.get(table.name)) is not None
            }

        return of
