"""RowExchange: how the peers of a group come by the rows of tables, and owners by their gradients.

    computing -> owners    the ids that the tasks of an iteration touch
    owners -> computing    those rows, brought up to date
    computing -> owners    of each slice the ids and their summed gradients
    owners                 the sum in the slices' order, and the update of those rows

Each owner has a contiguous range of rows of every table. What travels is as many rows as are
touched, however large a table is.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.outer.rates import Rates
from maml_dist.core.tables import Table
from maml_dist.runtime.links import Links, Message
from maml_dist.runtime.messages import RowValues
from maml_dist.runtime.row_table import RowTable

Ids = dict[str, np.ndarray]  # of each table, ascending


class RowExchange:
    """One peer's part in it."""

    def __init__(
        self,
        tables: Sequence[Table],
        outer: OuterOptimizer,
        state: Mapping[str, np.ndarray],
        links: Links,
        *,
        owners: Sequence[int],
        computing: Sequence[int],
    ) -> None:
        """`state` is of all rows; `owners` and `computing` are ranks, in the order of ranges."""
        self._tables, self._links = tables, links
        self._owners, self._computing = owners, computing
        self._ranges = {
            table.name: [row_range(table, number, len(owners)) for number in range(len(owners))]
            for table in tables
        }
        self.own: list[RowTable] = []
        if links.rank in owners:
            number, rates = owners.index(links.rank), Rates(outer)
            self.own = [
                RowTable(table, rates, state, self._ranges[table.name][number]) for table in tables
            ]

    @property
    def elements(self) -> tuple[int, int]:
        """Of the rows that come before this peer's, and of its own."""
        if self._links.rank not in self._owners:
            return 0, 0
        number = self._owners.index(self._links.rank)
        mine = [(table.dim, self._ranges[table.name][number]) for table in self._tables]
        return (
            sum(dim * part.start for dim, part in mine),
            sum(dim * (part.stop - part.start) for dim, part in mine),
        )

    def fetch(self, wanted: Sequence[Ids], *, count: int) -> list[RowValues]:
        """For each slice of this peer, the rows that it touches; all peers call this."""
        union: Ids = {
            table.name: np.unique(np.concatenate([each[table.name] for each in wanted]))
            for table in self._tables
            if wanted
        }
        parts = [self._cut(union, number) for number in range(len(self._owners))] if union else []
        asked = self._to_owners(parts)
        answers = {
            rank: [table.rows(torch.from_numpy(ids), count=count).numpy() for table, ids in pairs]
            for rank, each in asked.items()
            for pairs in [[*zip(self.own, each, strict=True)]]
        }
        me = self._links.rank
        given = {rank: packed(arrays) for rank, arrays in answers.items() if rank != me}
        others = [rank for rank in self._owners if rank != me] if union else []
        got = {r: unpacked(m) for r, m in self._links.exchange(given, of=others).items()}
        if not union:
            return []
        pieces = [answers[me] if rank == me else got[rank] for rank in self._owners]
        values = {
            table.name: np.concatenate([piece[number] for piece in pieces])
            for number, table in enumerate(self._tables)
        }
        return [
            {
                name: (ids, values[name][np.searchsorted(union[name], ids)])
                for name, ids in each.items()
            }
            for each in wanted
        ]

    def gathered(self, mine: Sequence[RowValues]) -> dict[int, list[np.ndarray]]:
        """Bring the slices' gradients to the owners: what these have, by ranks; all call this."""
        parts = []
        for number in range(len(self._owners) if mine else 0):
            arrays: list[np.ndarray] = []
            for each in mine:
                for table in self._tables:
                    ids, gradient = each[table.name]
                    at = slice(*np.searchsorted(ids, self._ends(table, number)))
                    arrays += [ids[at], gradient[at]]
            parts.append(arrays)
        return self._to_owners(parts)

    def update(self, got: Mapping[int, list[np.ndarray]], *, tasks: int, count: int) -> None:
        """At an owner: the update at what was gathered, summed over so many tasks."""
        if not tasks:  # no update
            return
        by_slice = self._in_order(got)
        for number, table in enumerate(self.own):
            pairs = [each[2 * number : 2 * number + 2] for each in by_slice]
            table.update(*_summed(pairs, tasks), count=count)

    def state(self, *, count: int) -> dict[str, np.ndarray]:
        """Of this peer's rows after `count` updates, the last or the one before."""
        return {k: v for table in self.own for k, v in table.state(count=count).items()}

    def _to_owners(self, parts: list[list[np.ndarray]]) -> dict[int, list[np.ndarray]]:
        """Send each owner its part; at an owner, what all that compute have sent, by ranks."""
        me = self._links.rank
        given = {
            rank: packed(part)
            for rank, part in zip(self._owners, parts, strict=False)
            if rank != me
        }
        others = [rank for rank in self._computing if rank != me] if self.own else []
        got = {rank: unpacked(m) for rank, m in self._links.exchange(given, of=others).items()}
        if self.own and parts:
            got[me] = parts[self._owners.index(me)]
        return got

    def _in_order(self, got: Mapping[int, list[np.ndarray]]) -> list[list[np.ndarray]]:
        """Of all slices, in their order, ids and gradients of each table."""
        each, every = (
            2 * len(self._tables),
            [part for rank in self._computing for part in got[rank]],
        )
        return [every[start : start + each] for start in range(0, len(every), each)]

    def _ends(self, table: Table, owner: int) -> tuple[int, int]:
        part = self._ranges[table.name][owner]
        return part.start, part.stop

    def _cut(self, ids: Ids, owner: int) -> list[np.ndarray]:
        """Those of each table that are an owner's."""
        return [
            ids[table.name][slice(*np.searchsorted(ids[table.name], self._ends(table, owner)))]
            for table in self._tables
        ]


def row_range(table: Table, number: int, owners: int) -> slice:
    """The rows of a table that one of so many owners has."""
    return slice(table.rows * number // owners, table.rows * (number + 1) // owners)


def _summed(pairs: Sequence[Sequence[np.ndarray]], tasks: int) -> tuple[Tensor, Tensor]:
    """The ids of all slices and their mean gradient, added in the slices' order."""
    ids = np.unique(np.concatenate([each for each, _ in pairs]))
    total = np.zeros((len(ids), pairs[0][1].shape[1]), pairs[0][1].dtype)
    for each, gradient in pairs:
        total[np.searchsorted(ids, each)] += gradient
    return torch.from_numpy(ids), torch.from_numpy(total) / tasks


def packed(arrays: Sequence[np.ndarray]) -> Message:
    """Arrays, as they travel."""
    head = json.dumps([[each.dtype.str, each.shape] for each in arrays])
    return Message(head.encode(), bytearray(b"".join(each.tobytes() for each in arrays)))


def unpacked(message: Message) -> list[np.ndarray]:
    """What was sent."""
    arrays, start = [], 0
    for kind, shape in json.loads(message.head):
        size = int(np.prod(shape))
        made = np.frombuffer(message.body, kind, count=size, offset=start).reshape(shape)
        arrays.append(made)
        start += made.nbytes
    return arrays
