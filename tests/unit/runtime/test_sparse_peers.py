"""Peers with tables: the bits of one that owns all rows; where one fails, one state is left."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from maml_dist.core.outer.optimizers import Adam
from maml_dist.runs.server_state import current_tables
from maml_dist.runtime.links import Message, PeersLost, bytes_of
from maml_dist.runtime.local_peer import LocalPeer
from maml_dist.runtime.messages import Start
from maml_dist.runtime.ranged_peer import RangedPeer, Roles
from maml_dist.runtime.ranges import cut_evenly, whole
from maml_dist.runtime.row_exchange import packed, unpacked
from maml_dist.runtime.server import first_state
from maml_dist.runtime.shard import TaskShard
from maml_dist.training.trainer import prepare
from tests.linked import at_once, linked, same_state

SMALL = {"engine.running": "eager", "meta_batch": 6, "slices": 5, "outer.weight_decay": 0.1}
SMALL |= {"task.items": 30, "model.rows": 31, "model.dim": 3, "outer.beta": 0.05}
SIZES = [(0, 1), (0, 2), (0, 5), (1, 1), (3, 2)]  # parts that own rows alone, and shards


@pytest.fixture(autouse=True)
def single_threaded():
    torch.set_num_threads(1)


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(31, 3)

    def forward(self, x):
        return self.items(x).prod(-1)


@pytest.fixture
def start(tmp_path):
    run = prepare("ratings", SMALL, run=tmp_path / "run")
    outer, tables = run.experiment.outer, run.initial_tables
    return Start(run.shard_spec, run.initial_vector, outer, tables=tables)


def peers(start, parts, shards, saved=None):
    """Peers of which `parts` own everything, or all do, and `shards` compute."""
    size, given = parts + shards, start.shard
    owners = dict(enumerate(cut_evenly(len(start.meta), parts or shards)))
    roles = Roles(owners, [*range(parts, size)], ("ab" * size)[:size])
    return [
        RangedPeer(
            TaskShard(given) if rank >= parts else None,
            *(start.outer, saved or first_state(start), each, roles),
            slices=given.slices,
            learned=given.learned,
            tables=given.tables,
        )
        for rank, each in enumerate(linked(size))
    ]


@pytest.mark.parametrize(("parts", "shards"), SIZES)
def test_whoever_owns_rows_they_have_the_same_bits(start, parts, shards):
    alone = LocalPeer(start, "cpu")
    expected = alone.get(alone.block(6, keep=False).rows)
    members = peers(start, parts, shards)
    owners = members[: parts or shards]
    for peer, rows in zip(members, at_once(members, lambda peer: peer.block(6)), strict=True):
        np.testing.assert_equal(rows, expected if peer in owners else [])
    (saved, weights), *others = at_once(members, lambda peer: peer.gathered())
    same_state(saved, alone.state())
    assert np.array_equal(weights, saved[1]) and others == [None] * (len(members) - 1)
    same_state(whole([owner.saved(6) for owner in owners]), saved)
    assert saved[2]["rows/embedding.weight"].shape == (31, 3)
    sizes = [peer.progress().size for peer in owners]
    assert sum(sizes) == len(start.meta) + 31 * 3 and all(sizes)


def test_rows_may_be_all_that_there_is(start):
    """Of a vector of no elements, which has its owners."""
    empty = np.zeros(0, np.float32)
    into = start.shard.layout._replace(names=(), shapes=())
    shard = start.shard._replace(model=Factors(), layout=into, learned=0)
    tables = [t._replace(name="items.weight") for t in shard.tables]
    alone_start = start._replace(meta=empty, shard=shard._replace(tables=tables))
    alone_start = alone_start._replace(tables={"items.weight": [*start.tables.values()][0]})
    alone = LocalPeer(alone_start, "cpu")
    alone.block(4, keep=False)
    for parts, shards in ((0, 2), (1, 2)):
        members = peers(alone_start, parts, shards)
        at_once(members, lambda peer: peer.block(4))
        same_state(at_once(members, lambda peer: peer.gathered())[0][0], alone.state())


def test_where_one_fails_the_update_before_is_known_of_all_rows(start, monkeypatch):
    alone, members = LocalPeer(start, "cpu"), peers(start, 0, 3)
    alone.block(6, keep=False)
    gradient = TaskShard.gradient

    def failing(shard, meta, it, at=None, *, slice=0, rows=None):
        if it == 4 and slice == 1:
            raise ValueError("of the user's own")
        return gradient(shard, meta, it, at, slice=slice, rows=rows)

    with monkeypatch.context() as patched:
        patched.setattr(TaskShard, "gradient", failing)
        with ThreadPoolExecutor(3) as pool:
            every = [pool.submit(peer.block, 9) for peer in members]
            errors = [type(each.exception()) for each in every]
    assert errors == [PeersLost, ValueError, PeersLost]
    assert [peer.progress().it for peer in members] == [4, 4, 4]
    for it in (3, 4):
        again = peers(start, 1, 2, saved=whole([peer.saved(it) for peer in members]))
        at_once(again, lambda peer, count=6 - it: peer.block(count))
        same_state(at_once(again, lambda peer: peer.gathered())[0][0], alone.state())


@pytest.mark.parametrize("updating", ["rows", "the vector"])
def test_where_an_update_fails_the_rows_left_are_those_of_the_vector(start, monkeypatch, updating):
    alone, peer, step, calls = *(LocalPeer(start, "cpu") for _ in range(2)), Adam.step, []

    def failing(outer, meta, gradient, state, *, rate, count):
        of_vector = len(meta) == len(start.meta)
        calls.append(of_vector)
        if count == 4 and of_vector == (updating == "the vector"):
            raise MemoryError("of the user's machine")
        return step(outer, meta, gradient, state, rate=rate, count=count)

    with monkeypatch.context() as patched:
        patched.setattr(Adam, "step", failing)
        with pytest.raises(MemoryError):
            peer.block(9, keep=False)
    assert len({*calls}) == 2
    alone.block(3, keep=False)
    left, expected = peer.reached(), alone.state()
    assert left[0] == left[2]["count"] == 3 and np.array_equal(left[1], expected[1])
    tables = [current_tables(state, start.shard.tables, start.outer) for state in (left, expected)]
    assert torch.equal(*(each["embedding.weight"] for each in tables))
    assert [*peer.rows] == [1, 2, 3]
    peer.restore(left)
    for each in (alone, peer):
        each.block(4, keep=False)
    same_state(peer.state(), alone.state())


def test_the_values_at_the_start_are_not_kept(start):
    given = start._replace(tables={name: value.copy() for name, value in start.tables.items()})
    kept = [weakref.ref(value) for value in given.tables.values()]
    peer = LocalPeer(given, "cpu")
    del given
    assert [each() for each in kept] == [None]
    values = [state[2]["rows/embedding.weight"] for state in (peer.state(), first_state(start))]
    assert np.array_equal(*values)


def test_arrays_arrive_as_they_were_sent():
    arrays = [np.arange(3), np.zeros((0, 4), np.float32), np.ones((2, 2), np.float32)]
    message = packed(arrays)
    for one, other in zip(arrays, unpacked(message), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    assert len(bytes_of(Message(b"", np.zeros(0)).body)) == 0
