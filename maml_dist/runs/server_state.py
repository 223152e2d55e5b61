"""Server state: what the parameter server holds, as the named tensors of a checkpoint and back.

Tables stand in it as their owners have them, `outer/rows/NAME`: some rows wait for updates.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.outer.rates import Rates
from maml_dist.core.params import Layout, Params, flatten, unflatten
from maml_dist.core.tables import Table, is_of_rows, key_of
from maml_dist.runs.checkpoint_header import Kind
from maml_dist.runtime.row_table import UPDATED, RowTable
from maml_dist.runtime.server import Saved

AT_ONCE = 1 << 16  # rows of a table that are brought up to date together


def to_tensors(saved: Saved, into: Layout) -> dict[str, Tensor]:
    """`meta/NAME` of each meta-parameter, `outer/NAME` of what the outer optimizer remembers."""
    _, meta, outer = saved
    split = unflatten(torch.tensor(meta), into)
    named = {f"meta/{name}": value.clone() for name, value in split.items()}
    return named | {f"outer/{name}": _tensor(name, value) for name, value in outer.items()}


def to_saved(tensors: Mapping[str, Tensor], iteration: int, into: Layout) -> Saved:
    """The state that `to_tensors` made these tensors of."""
    meta = {name: tensors[f"meta/{name}"] for name in into.names}
    outer = {n.removeprefix("outer/"): t for n, t in tensors.items() if n.startswith("outer/")}
    rows = (t for name, t in outer.items() if is_of_rows(name) and t.is_floating_point())
    dtype = next((t.dtype for t in rows), None)  # where there are tables alone
    vector = flatten(meta, dtype=dtype).numpy()
    return iteration, vector, {name: value.numpy() for name, value in outer.items()}


def current_tables(saved: Saved, tables: Sequence[Table], outer: OuterOptimizer) -> Params:
    """The values of tables after all updates that were made."""
    found, rates = {}, Rates(outer)
    for table in tables:
        values = torch.tensor(saved[2][key_of(table)])
        updated = saved[2].get(key_of(table, UPDATED))
        if updated is not None:
            order = np.argsort(updated, kind="stable")  # those of one age stand together
            for start in range(0, table.rows, AT_ONCE):
                at = order[start : start + AT_ONCE]
                values[torch.from_numpy(at)] = current_rows(saved, table, rates, at)
        found[table.name] = values
    return found


def current_rows(saved: Saved, table: Table, rates: Rates, ids: np.ndarray) -> Tensor:
    """Some rows [u, dim] of a table after all updates that were made."""
    keys = [key for key in saved[2] if key == key_of(table) or key.startswith(f"{key_of(table)}/")]
    few, every = {key: saved[2][key][ids] for key in keys}, slice(0, len(ids))
    rows = RowTable(table._replace(rows=len(ids)), rates, few, every)
    return rows.peek(torch.arange(len(ids)), count=int(saved[2]["count"]))


def kinds_of_tables(
    tables: Sequence[Table], outer: OuterOptimizer, values: Params
) -> dict[str, Kind]:
    """What a checkpoint holds of tables."""
    kinds: dict[str, Kind] = {}
    for table in tables:
        dtype, shape = values[table.name].dtype, (table.rows, table.dim)
        names = ["", *outer.moments(torch.zeros(0, dtype=dtype))]
        kinds |= {f"outer/{key_of(table, name)}": Kind(dtype, shape) for name in names}
        kinds[f"outer/{key_of(table, UPDATED)}"] = Kind(torch.int64, shape[:1])
    return kinds


def _tensor(name: str, value: np.ndarray) -> Tensor:
    """A copy, but of tables, which are large: where they can be had without."""
    owned = is_of_rows(name) and value.flags.writeable
    return torch.from_numpy(value) if owned else torch.tensor(value)
