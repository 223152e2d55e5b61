"""SparseCollector: of models with tables, the episodes of a slice and the rows that they touch.

What a task touches is known before it is learned from: the model passes its inputs once, and its
embeddings take down what they look up. The rows come from their owners. Tasks that are computed
together have the same ones, so that of a large slice they are not all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.episode import Episode, chosen, split
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.engine.gradient_sum import GradientSum, add_sums
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.engine.with_rows import BySize, RowsVector, inputs_of, with_rows
from maml_dist.core.model.objective import Mode, Objective
from maml_dist.core.params import Params, real_of
from maml_dist.runtime.collectors import SupervisedCollector
from maml_dist.runtime.messages import RowValues

TOGETHER = 128  # tasks of which each adapts the rows of all
SCORED_TOGETHER = 16  # held-out ones, which keep the rows of every step


class SparseCollector(SupervisedCollector):
    """Stored examples whose tasks touch some rows of tables each."""

    def __init__(self, *given: Any, vector: RowsVector, objective: Objective, **more: Any) -> None:
        """What every collector is given; how a slice's vector is built, and what looks rows up."""
        super().__init__(*given, **more)
        self._vector, self._objective = vector, objective
        named = self._spec.model.named_parameters()
        self._params: Params = {name: real_of(p.detach()) for name, p in named}

    def touched(self, it: int) -> dict[str, np.ndarray]:
        """The ids of the rows of each table that the tasks of `it` touch, ascending."""
        return _numpy(self._ids([self._prefetcher.of(it)]))

    def held_out(self, keys: Sequence[TaskKey], *, steps: int) -> dict[str, np.ndarray]:
        """The ids of the rows that held-out tasks touch, ascending."""
        return _numpy(self._ids([*self._held_out(keys, steps=max(1, steps))]))

    def gradient_by_rows(
        self, meta: np.ndarray, it: int, rows: RowValues
    ) -> tuple[GradientSum, list[Tensor]]:
        """The summed meta-gradient of the tasks of `it`, and that of the rows of each table.

        `rows` are those that they touch.

        Raises:
            ValueError: others are looked up.
        """
        every = split(self.episodes(it, meta), TOGETHER)
        parts = []
        whole = [
            torch.zeros(values.shape, dtype=self._placement.dtype) for _, values in rows.values()
        ]
        for episodes in every:
            few = rows if len(every) == 1 else self._touched_of(episodes, rows)
            ids, joined, seen = self._seen(episodes, meta, few)
            found = self.gradient_at(joined, seen, it)
            if not found.finite.all():
                self._refuse_unnamed(MetaGradient, joined, chosen(seen, ~found.finite), it)
            gradient, of_rows = self._vector.split(found.gradient, ids)
            parts.append(found._replace(gradient=gradient))
            for total, name, part in zip(whole, few, of_rows, strict=True):
                total[np.searchsorted(rows[name][0], few[name][0])] += part.cpu()
        return add_sums(parts), whole

    def scores_by_rows(
        self,
        meta: np.ndarray,
        keys: Sequence[TaskKey],
        it: int,
        rows: RowValues,
        *,
        steps: int,
        mode: Mode,
    ) -> list[dict[str, Tensor]]:
        """Each score [task, step] of held-out tasks; `rows` are those that they touch, or more.

        Raises:
            ValueError: others are looked up, and a score is not finite.
        """
        some, number = max(1, steps), self._placement.number(it)
        found = []
        for episodes in self._held_out(keys, steps=some):
            _, joined, seen = self._seen(episodes, meta, self._touched_of(episodes, rows))
            scores = self._scores(joined, seen, number, mode=mode)
            if not all(by.isfinite().all() for by in scores.values()):
                self._refuse_unnamed(PathScores, joined, seen, it)
            found.append({name: by[:, : steps + 1] for name, by in scores.items()})
        return found

    def _refuse_unnamed(
        self, kind: type[MetaGradient] | type[PathScores], joined: Tensor, seen: Episode, it: int
    ) -> None:
        """Compute again, one by one, where a row that is not there raises ValueError."""
        spec = self._spec
        engine = replace(spec.engine.singly, running="eager", memory="graph")
        objective = Objective(
            spec.model,
            spec.source,
            bfloat16=engine.precision == "bfloat16",
            tables=spec.tables,
            named=True,
        )
        again = BySize(lambda into: kind(engine, spec.learner, objective, into=into), self._vector)
        again(joined, seen, self._placement.number(it))

    def _touched_of(self, episodes: Episode, rows: RowValues) -> RowValues:
        """Of rows those that these tasks touch."""
        return {
            name: (each, rows[name][1][np.searchsorted(rows[name][0], each)])
            for name, each in _numpy(self._ids([episodes])).items()
        }

    def _seen(
        self, episodes: Episode, meta: np.ndarray, rows: RowValues
    ) -> tuple[dict[str, Tensor], Tensor, Episode]:
        """The ids of rows, the vector that has these, and the episodes that name them."""
        ids = {name: torch.from_numpy(each.copy()) for name, (each, _) in rows.items()}
        moved = {name: self._placement.vector(values) for name, (_, values) in rows.items()}
        joined = self._vector.join(self._placement.vector(meta), moved)
        return ids, joined, with_rows(episodes, self._placement.data(ids))

    def _ids(self, episodes: Sequence[Episode]) -> dict[str, Tensor]:
        found = [
            self._objective.touched(self._params, x) for each in episodes for x in inputs_of(each)
        ]
        return {
            table.name: torch.cat([each[table.name] for each in found]).unique().cpu()
            for table in self._spec.tables
        }

    def _at_once(self, size: int) -> int:
        return min(SCORED_TOGETHER, super()._at_once(size))


def _numpy(ids: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: each.numpy() for name, each in ids.items()}
