"""Reduced: an experiment with tables (sparse parameters) as it computes, with few rows of each.

What is tried before a run is tried on this: no check sees a whole table. The values of the rows are
not those of the ids, which decides nothing of what is checked.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from maml_dist.config.experiment import Experiment
from maml_dist.config.sparse import tables_of
from maml_dist.core.data.episode import Episode
from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource
from maml_dist.core.engine.with_rows import inputs_of, with_rows
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import Params
from maml_dist.core.tables import Table, padded_size, without
from maml_dist.preflight.error_messages import FAILURES, in_words

# The tasks that are tried, each by itself: split, iteration, number.
TRIED = (("train", 0, 0), ("train", 1000, 1), ("val", 0, 0), ("val", 0, 1))
EXACT = 1 << 24  # ids below this are whole numbers in float32


@dataclass(frozen=True)
class Reduced(Experiment):
    """An experiment whose model has no rows of its tables, and whose episodes name some."""

    tables: tuple[Table, ...] = ()


def reduced(experiment: Experiment, meta: Params, *, tasks: int = 1) -> tuple[Experiment, Params]:
    """The experiment, and its meta-parameters with rows for so many tasks; itself without tables.

    For one task there is room for a row more than any that is tried touches.

    Raises:
        ValueError: the model does not look rows up as a table's are.
    """
    tables = tables_of(experiment)
    if not tables or isinstance(experiment, Reduced):
        return experiment, meta
    model, source = without(tables, experiment.model), experiment.task
    touching = _Touching(Objective(model, source, tables=tables), tables, dict(meta))
    steps = max(1, experiment.learner.steps + 1)  # of a validation; those of training or more
    keys = [TaskKey(experiment.seed, *tried) for tried in TRIED]
    each = [touching.ids(source.collect([source.sample(key)], steps=steps)) for key in keys]
    most = {table.name: max(len(ids[table.name]) for ids in each) for table in tables}
    sizes = {
        name: padded_size(max(count + 1, min(tasks * count, table.rows)))
        for (name, count), table in zip(most.items(), tables, strict=True)
    }
    few = {
        table.name: torch.zeros(sizes[table.name], table.dim, dtype=meta[table.name].dtype)
        for table in tables
    }
    for name, rows in few.items():
        some = meta[name][: len(rows)]
        rows[: len(some)] = some
    given = {each.name: getattr(experiment, each.name) for each in fields(Experiment)}
    task = _naming_rows(source, touching, sizes)
    return Reduced(**{**given, "model": model, "task": task}, tables=tables), {**meta, **few}


class _Touching:
    """Which rows episodes touch."""

    def __init__(self, objective: Objective, tables: Sequence[Table], meta: Params) -> None:
        self._objective, self._tables = objective, tables
        self._params = meta

    def ids(self, episodes: Episode) -> dict[str, torch.Tensor]:
        """Of each table, ascending.

        Raises:
            ValueError: as of a model that does not take its inputs.
        """
        found = []
        for x in inputs_of(episodes):
            if x.is_floating_point() and max(table.rows for table in self._tables) > EXACT:
                raise ValueError(
                    f"sparse={self._tables[0].name!r}: the tasks' x are {x.dtype}, which has no "
                    f"whole numbers above {EXACT}: give ids as int64"
                )
            try:
                found.append(self._objective.touched(self._params, x))
            except ValueError:
                raise
            except FAILURES as error:
                raise ValueError(
                    f"the model does not take x {list(x.shape[1:])}: {in_words(error)}"
                ) from None
        return {
            table.name: torch.cat([each[table.name] for each in found]).unique()
            for table in self._tables
        }


def _naming_rows(source: TaskSource, touching: _Touching, sizes: dict[str, int]) -> TaskSource:
    """The source, whose episodes name the rows that they touch."""
    made: Any = copy.copy(source)

    def collect(tasks: Sequence[Any], *, steps: int, adapt: Adapt | None = None) -> Episode:
        episodes = source.collect(tasks, steps=steps, adapt=adapt)
        return with_rows(episodes, touching.ids(episodes), sizes=sizes)

    object.__setattr__(made, "collect", collect)  # so that its class stays what it is
    source_of_rows: TaskSource = made
    return source_of_rows
