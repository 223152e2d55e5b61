"""Tables: sparse parameters [rows, dim], of which a task touches few rows.

A table stands in no vector that travels. Who computes with it is given the rows of some ids, and a
gradient of those comes back. Of shapes there are few: ids are padded with some that no data has.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

NO_ID = 1 << 62  # what ids are padded with; above all others, so that they stay in order
LEAST = 8  # rows in a padded size


class Table(NamedTuple):
    """A sparse parameter."""

    name: str
    rows: int
    dim: int


def key_of(table: Table, what: str = "") -> str:
    """Under which the values of a table, or what is remembered of them, stand in a state."""
    return f"rows/{table.name}/{what}" if what else f"rows/{table.name}"


def is_of_rows(key: str) -> bool:
    """Whether it is such a key."""
    return key.startswith("rows/")


def padded_size(count: int) -> int:
    """A power of two, of so many rows or more."""
    return max(LEAST, 1 << (count - 1).bit_length())


def padded(values: Tensor, size: int) -> Tensor:
    """Ids [u], or the rows of ids [u, dim], made `size` many."""
    fill = 0 if values.is_floating_point() else NO_ID
    rest = values.new_full((size - len(values), *values.shape[1:]), fill)
    return torch.cat([values, rest])


def without(tables: Sequence[Table], model: nn.Module) -> nn.Module:
    """A copy of a model in which tables have no rows; the model itself without tables."""
    if not tables:
        return model
    named = dict(model.named_parameters())
    empty = {id(p): nn.Parameter(p.detach()[:0].clone()) for t in tables for p in [named[t.name]]}
    return copy.deepcopy(model, empty)
