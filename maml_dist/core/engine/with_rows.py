"""With rows: meta-gradients and scores where some parameters are tables.

A slice's vector is [learned | rows of each table | kept]: the meta-parameters that travel, between
what is learned of them and what is kept the rows that its tasks touch, padded. The engine knows
nothing of it; there is one of its functions for each padded size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.params import Layout
from maml_dist.core.tables import Table, padded, padded_size

Made = TypeVar("Made", bound=Callable[..., Any])


class RowsVector:
    """How the vector of a slice is built of the one that travels, and of rows."""

    def __init__(self, into: Layout, tables: Sequence[Table], *, learned: int) -> None:
        """`into`: of the vector that travels, of which `learned` elements are meta-learned."""
        self._tables, self._learned = tables, learned
        count, size = 0, 0
        while size < learned:
            size += into.sizes[count]
            count += 1
        self._before = Layout(into.names[:count], into.shapes[:count])
        self._after = Layout(into.names[count:], into.shapes[count:])

    def layout(self, sizes: Sequence[int]) -> Layout:
        """Of a vector with so many rows of each table."""
        shapes = ((size, table.dim) for size, table in zip(sizes, self._tables, strict=True))
        return Layout(
            (*self._before.names, *(table.name for table in self._tables), *self._after.names),
            (*self._before.shapes, *shapes, *self._after.shapes),
        )

    def join(self, vector: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """The vector [size] and rows [u, dim] of each table, these padded."""
        between = [
            padded(rows[table.name], padded_size(len(rows[table.name]))).reshape(-1)
            for table in self._tables
        ]
        return torch.cat([vector[: self._learned], *between, vector[self._learned :]])

    def split(self, joined: Tensor, ids: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A gradient of such a vector: of the one that travels, and of each table's rows of ids."""
        sizes = [padded_size(len(ids[table.name])) * table.dim for table in self._tables]
        rest = len(joined) - self._learned - sum(sizes)
        learned, *between, kept = joined.split([self._learned, *sizes, rest])
        rows = [
            part.reshape(-1, table.dim)[: len(ids[table.name])]
            for part, table in zip(between, self._tables, strict=True)
        ]
        return torch.cat([learned, kept]), rows


class BySize(Generic[Made]):
    """Computes with episodes that name rows: by a function made for as many of these."""

    def __init__(self, make: Callable[[Layout], Made], vector: RowsVector) -> None:
        self._make, self._vector = make, vector
        self._made: dict[tuple[int, ...], Made] = {}

    def __call__(self, joined: Tensor, episodes: Episode, it: Tensor, **options: Any) -> Any:
        """As what is made does, at a joined vector."""
        assert episodes.query.rows is not None
        sizes = tuple(ids.shape[-1] for ids in episodes.query.rows.values())
        if sizes not in self._made:
            self._made[sizes] = self._make(self._vector.layout(sizes))
        return self._made[sizes](joined, episodes, it, **options)


def with_rows(
    episodes: Episode, ids: Mapping[str, Tensor], *, sizes: Mapping[str, int] | None = None
) -> Episode:
    """Stacked episodes that name the rows that are there: ids [u] of each table, here padded.

    `sizes`: to so many; to the least padded sizes if None.
    """
    tasks = len(episodes.query.x)
    known: dict[int, Batch] = {}
    rows = {
        name: padded(each, (sizes or {}).get(name) or padded_size(len(each)))
        .expand(tasks, -1)
        .contiguous()
        for name, each in ids.items()
    }

    def named(batch: Batch) -> Batch:
        return known.setdefault(id(batch), batch._replace(rows=rows))

    support = tuple(map(named, episodes.support))
    return episodes._replace(support=support, query=named(episodes.query))


def inputs_of(episodes: Episode) -> list[Tensor]:
    """All that a model is given of stacked episodes, each once: [task, n, …]."""
    return [*{id(batch.x): batch.x for batch in (*episodes.support, episodes.query)}.values()]
