"""RowTable: some rows of a sparse parameter, with the optimizer's moments of each.

An update at a zero gradient moves a row too: by momentum, Adam's first moment, weight decay. A row
that no task touches is brought up to date when it is next looked at, by all the updates that it has
missed at once, so that it is what it would be in a vector. Whoever reads rows beside the iterations
leaves the table as it is: bits depend on when a row was touched alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.outer.idle import Waiting
from maml_dist.core.outer.optimizers import State, in_blocks
from maml_dist.core.outer.rates import Rates
from maml_dist.core.tables import Table, key_of

UPDATED = "updated"  # by state: of each row, the updates that it has seen


class Rows(NamedTuple):
    """Some rows, and what is remembered of them."""

    values: Tensor  # [u, dim]
    moments: State  # each [u, dim]

    def of(self, some: Tensor) -> "Rows":
        """Some of them."""
        return Rows(self.values[some], {name: v[some] for name, v in self.moments.items()})


class RowTable:
    """The rows first … first + n - 1 of a table."""

    def __init__(
        self, table: Table, rates: Rates, state: Mapping[str, np.ndarray], part: slice
    ) -> None:
        """`state`: of the whole table, as `state` gives it; the values alone before any update."""
        self._table, self._rates, self._outer, self._part = table, rates, rates.outer, part
        self._values = torch.tensor(state[key_of(table)][part])
        known = {name: state.get(key_of(table, name)) for name in self._fresh(self._values[:0])}
        if all(value is not None for value in known.values()):
            self._moments = {n: torch.tensor(v[part]) for n, v in known.items() if v is not None}
        else:
            self._moments = self._fresh(self._values)
        updated = state.get(key_of(table, UPDATED))
        self._updated = (
            torch.zeros(len(self._values), dtype=torch.int64)
            if updated is None
            else torch.tensor(updated[part])
        )
        # What was there before the last update and what came after it, the latest last.
        self._former: list[tuple[Tensor, Rows, Tensor]] = []
        self._made = 0  # updates, of those that this object has made the last

    def rows(self, ids: Tensor, *, count: int) -> Tensor:
        """The rows [u, dim] of ascending ids, after `count` updates; from now on they are these."""
        at = ids - self._part.start
        late = self._updated[at] < count
        if late.any():
            at = at[late]
            self._former.append((at, self._stored(at), self._updated[at]))
            self._put(at, self._current(at, count), count)
        return self._values[ids - self._part.start]

    def update(self, ids: Tensor, gradient: Tensor, *, count: int) -> None:
        """Update `count` + 1 at a gradient [u, dim] of the rows of ids; that of others is zero."""
        at, outer = ids - self._part.start, self._outer
        before = self._current(at, count)
        if outer.clip is not None:
            gradient = gradient.clamp(-outer.clip, outer.clip)
        flat, shape = _flat(before), before.values.shape
        rate = float(self._rates.to(count + 1)[count])
        step = outer.step(
            flat.values, in_blocks(gradient), flat.moments, rate=rate, count=count + 1.0
        )
        self._former, self._made = [(at, before, torch.full_like(at, count))], count + 1
        self._put(at, _shaped(Rows(*step), shape), count + 1)

    def state(self, *, count: int) -> dict[str, np.ndarray]:
        """Of these rows after `count` updates, by name: the last may be undone."""
        assert count >= self._made - 1
        state = {"": self._values, **self._moments, UPDATED: self._updated}
        for at, rows, updated in reversed(self._former) if count < self._made else ():
            old = {"": rows.values, **rows.moments, UPDATED: updated}
            state = {name: value.index_copy(0, at, old[name]) for name, value in state.items()}
        return {key_of(self._table, name): value.numpy() for name, value in state.items()}

    def peek(self, ids: Tensor, *, count: int) -> Tensor:
        """The rows [u, dim] of ids after `count` updates; nothing changes."""
        return self._current(ids - self._part.start, count).values

    def _current(self, at: Tensor, count: int) -> Rows:
        """Rows after `count` updates."""
        rows, since = self._stored(at), self._updated[at]
        late = torch.nonzero(since < count).squeeze(1)
        if len(late):
            waiting = Waiting(since[late], count, self._rates.to(count))
            missed = rows.of(late)
            values, moments = self._outer.caught_up(missed.values, missed.moments, waiting)
            rows.values[late] = values
            for name, value in moments.items():
                rows.moments[name][late] = value
        return rows

    def _stored(self, at: Tensor) -> Rows:
        return Rows(self._values, self._moments).of(at)

    def _put(self, at: Tensor, rows: Rows, count: int) -> None:
        self._values[at] = rows.values
        for name, value in rows.moments.items():
            self._moments[name][at] = value
        self._updated[at] = count

    def _fresh(self, like: Tensor) -> State:
        """The moments of rows before the first update."""
        moments = self._outer.moments(like.view(-1))
        return {name: value.reshape(like.shape) for name, value in moments.items()}


def _flat(rows: Rows) -> Rows:
    moments = {name: in_blocks(value) for name, value in rows.moments.items()}
    return Rows(in_blocks(rows.values), moments)


def _shaped(rows: Rows, shape: torch.Size) -> Rows:
    size = shape.numel()
    moments = {name: value[:size].view(shape) for name, value in rows.moments.items()}
    return Rows(rows.values[:size].view(shape), moments)
