"""Lookup: how the model's embeddings find the rows of a table that are there, by their ids.

    embedding(ids, table)  =  embedding(searchsorted(rows, ids), values)       values = table[rows]

`Noted` computes nothing: it takes down which ids a pass of the model looks up. Ids that depend on
what was looked up, or drawn, are others than it notes: what is then not there is NaN, and so is the
model's output, or an error is raised.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maml_dist.core.tables import Table

Lookup = Callable[..., Tensor]  # takes the place of torch.nn.functional.embedding for one table


class Among:
    """Looks up among `rows` [u], ascending ids, whose values [u, dim] are given as the weight."""

    def __init__(self, table: Table, rows: Tensor, *, strict: bool = False) -> None:
        """`strict`: what is not there raises; not in a vmap."""
        self._table, self._rows, self._strict = table, rows, strict
        self.there: list[Tensor] = []  # of each look-up, whether all of it was

    def __call__(self, input: Tensor, weight: Tensor, *options: Any, **named: Any) -> Tensor:
        """The rows, NaN where they are not there.

        Raises:
            ValueError: there are not all of them, and this is strict.
        """
        padding = _padding(self._table, *options, **named)
        place = torch.searchsorted(self._rows, input.contiguous()).clamp(max=len(self._rows) - 1)
        found = functional.embedding(place, weight)
        if padding is not None:  # has no gradient
            found = torch.where((input == padding).unsqueeze(-1), found.detach(), found)
        there = self._rows[place] == input
        self.there.append(there.all())
        if self._strict and not self.there[-1]:
            name, other = self._table.name, int(input[~there][0])
            raise ValueError(
                f"sparse={name!r}: id {other} is looked up, which the data alone do not say: ids "
                "may not depend on what the model computes or draws; leave it out of sparse"
            )
        return torch.where(there.unsqueeze(-1), found, torch.nan)


class Noted:
    """Takes down what is looked up in a table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._seen: list[Tensor] = []

    def __call__(self, input: Tensor, weight: Tensor, *options: Any, **named: Any) -> Tensor:
        """Zeros in the rows' place."""
        _padding(self._table, *options, **named)
        self._seen.append(input.detach().reshape(-1).long())
        return weight.new_zeros((*input.shape, self._table.dim))

    def ids(self) -> Tensor:
        """All of it [looked up]."""
        return torch.cat(self._seen) if self._seen else torch.zeros(0, dtype=torch.int64)


def each_once(table: Table, ids: Tensor) -> Tensor:
    """Ids […] of a table's rows [u], ascending.

    Raises:
        ValueError: there are no such rows.
    """
    found: Tensor = ids.unique()
    if len(found) and (found[0] < 0 or found[-1] >= table.rows):
        wrong = int(found[0] if found[0] < 0 else found[-1])
        raise ValueError(f"{table.name}: id {wrong} is looked up: must be 0 … {table.rows - 1}")
    return found


def _padding(
    table: Table,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> int | None:
    """The id that has no gradient.

    Raises:
        ValueError: a table is looked up as none can be.
    """
    for option, value in (
        ("max_norm", max_norm),
        ("scale_grad_by_freq", scale_grad_by_freq),
        ("sparse", sparse),
    ):
        if value:
            raise ValueError(
                f"sparse={table.name!r}: an embedding with {option}={value} is not learned by "
                f"rows; leave {option} out"
            )
    if padding_idx is None or padding_idx >= 0:
        return padding_idx
    return padding_idx + table.rows
