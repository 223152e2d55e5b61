"""RowTable: rows that are seldom touched are those of a vector that is updated every time."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from maml_dist.core.outer.adagrad import Adagrad
from maml_dist.core.outer.optimizers import SGD, Adam
from maml_dist.core.outer.rates import Rates
from maml_dist.core.outer.schedules import Cosine, Schedule
from maml_dist.core.tables import Table
from maml_dist.runs.server_state import current_tables
from maml_dist.runtime.row_table import RowTable

TABLE = Table("embed.weight", 30, 3)
FALLING = Cosine(until=60, end=0.1, warm_up=5)
RULES = {
    "descent": SGD(beta=0.1, clip=0.5),
    "momentum": SGD(beta=0.1, momentum=0.9, schedule=FALLING),
    "nesterov": SGD(beta=0.1, momentum=0.5, nesterov=True),
    "adam": Adam(beta=0.1, schedule=FALLING),
    "adamw": Adam(beta=0.1, weight_decay=0.3, schedule=FALLING, clip=0.2),
    "adagrad": Adagrad(beta=0.1, initial=0.1),
}


@dataclass(frozen=True, kw_only=True)
class Listed(Schedule):
    """A user's own, which knows the rates of a run's updates and no others."""

    asked = []  # by anyone

    def factor(self, count):
        self.asked.append(count)
        return [1 / (1 + number) for number in range(80)][int(count)]


def touched(count=80):
    """Of each update the ids and the gradient of some rows; some rows are never among them."""
    draw = torch.Generator().manual_seed(0)
    for it in range(count):
        most = 25 if it % 7 else 5
        ids = torch.randperm(most, generator=draw)[:4].sort().values
        yield ids, torch.randn(4, TABLE.dim, generator=draw, dtype=torch.float64)


def initial(dtype=np.float64):
    values = np.random.default_rng(1).normal(size=(TABLE.rows, TABLE.dim))
    return {"rows/embed.weight": values.astype(dtype)}


def updated(outer, table, start=0, stop=80, part=slice(0, TABLE.rows), dtype=torch.float64):
    for count, (ids, gradient) in enumerate(touched()):
        if start <= count < stop:
            mine = (ids >= part.start) & (ids < part.stop)
            table.rows(ids[mine], count=count)
            table.update(ids[mine], gradient[mine].to(dtype), count=count)
    return table


@pytest.mark.parametrize("name", RULES)
def test_rows_are_those_of_a_vector(name):
    outer = RULES[name]
    values = torch.tensor(initial()["rows/embed.weight"])
    meta, state = values.flatten(), outer.init(values.flatten())
    table = RowTable(TABLE, Rates(outer), initial(), slice(0, TABLE.rows))
    for count, (ids, rows) in enumerate(touched()):
        torch.testing.assert_close(
            table.peek(ids, count=count), meta.view(-1, 3)[ids], rtol=1e-12, atol=1e-13
        )
        gradient = torch.zeros(TABLE.rows, TABLE.dim, dtype=torch.float64)
        gradient[ids] = rows
        meta, state = outer.update(meta, gradient.flatten(), state)
        table.rows(ids, count=count)
        table.update(ids, rows, count=count)
    every = table.peek(torch.arange(TABLE.rows), count=80)
    torch.testing.assert_close(every, meta.view(-1, 3), rtol=1e-12, atol=1e-13)
    saved = 80, np.zeros(0), {**table.state(count=80), "count": np.array(80.0)}
    current = current_tables(saved, [TABLE], outer)
    assert torch.equal(current["embed.weight"], every)


@pytest.mark.parametrize("name", RULES)
def test_bits_do_not_depend_on_who_owns_a_row_or_when_it_is_saved(name):
    outer, every, single = RULES[name], slice(0, TABLE.rows), torch.float32
    one = updated(outer, RowTable(TABLE, Rates(outer), initial(np.float32), every), dtype=single)
    parts = [slice(0, 11), slice(11, 30)]
    apart = [
        updated(
            outer, RowTable(TABLE, Rates(outer), initial(np.float32), part), part=part, dtype=single
        )
        for part in parts
    ]
    for key, value in one.state(count=80).items():
        assert np.array_equal(np.concatenate([each.state(count=80)[key] for each in apart]), value)
    half = updated(
        outer, RowTable(TABLE, Rates(outer), initial(np.float32), every), 0, 41, dtype=single
    )
    half.peek(torch.arange(TABLE.rows), count=41)  # who reads changes nothing
    again = RowTable(TABLE, Rates(outer), half.state(count=41), every)
    for key, value in updated(outer, again, 41, dtype=single).state(count=80).items():
        assert np.array_equal(value, one.state(count=80)[key])


def test_the_state_before_the_last_update_is_known():
    outer = RULES["adam"]
    one, other = (RowTable(TABLE, Rates(outer), initial(), slice(0, TABLE.rows)) for _ in range(2))
    updated(outer, one, stop=80)
    updated(outer, other, stop=79)
    ids, _ = [*touched()][79]
    other.rows(ids, count=79)
    one.rows(torch.arange(TABLE.rows), count=80)  # of the next iteration
    for key, value in one.state(count=79).items():
        assert np.array_equal(value, other.state(count=79)[key])


def test_each_rate_of_the_run_is_asked_for_once_and_no_other():
    outer, every = SGD(beta=0.1, momentum=0.9, schedule=Listed()), slice(0, TABLE.rows)
    Listed.asked.clear()
    table = updated(outer, RowTable(TABLE, Rates(outer), initial(), every))
    assert Listed.asked == [*range(80)]
    Listed.asked.clear()
    saved = 80, np.zeros(0), {**table.state(count=80), "count": np.array(80.0)}
    tables = [TABLE, Table("other.weight", 30, 3)]
    saved[2].update({key.replace("embed", "other"): v for key, v in table.state(count=80).items()})
    assert len(current_tables(saved, tables, outer)) == 2
    assert Listed.asked == [*range(80)]
