"""Peers: linked shards have the bits of a server and one shard."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from maml_dist.core.params import flatten
from maml_dist.runtime.links import Door, PeersLost
from maml_dist.runtime.local_backend import LocalGroup
from maml_dist.runtime.messages import Start
from maml_dist.runtime.peer import Peer
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard
from maml_dist.training.loop import loop
from maml_dist.training.trainer import prepare

SMALL = {"engine.running": "eager", "iterations": 5, "meta_batch": 6, "slices": 5}
WALK = {"task.episodes": 4, "task.horizon": 6, "iterations": 2}
RECIPES = {
    "sinusoid": ("sinusoid", {}),
    "averaged": ("sinusoid", {"outer.average": 0.9, "outer.clip_norm": 0.5}),
    "epochs": ("sinusoid", {"outer.epochs": 3, "iterations": 3}),
    "trpo": ("navigation", {**WALK, "iterations": 1, "outer.iterations": 2, "outer.tries": 2}),
    "es": ("navigation-es", WALK),
}


def given(name, tmp_path):
    recipe, settings = RECIPES[name]
    run = prepare(recipe, {**SMALL, **settings}, run=tmp_path / name)
    meta, outer = flatten(run.initial).numpy(), run.experiment.outer
    return run, Start(run.shard_spec, meta, outer)


def peers(start, size):
    """The peers of a group, in this process."""
    doors = [Door(None) for _ in range(size)]
    addresses = [door.address for door in doors]
    with ThreadPoolExecutor(size) as pool:
        links = pool.map(lambda rank: doors[rank].meet(rank, addresses, b"key"), range(size))
        return [
            Peer(
                TaskShard(start.shard),
                ParameterServer(start.meta, start.outer, learned=start.shard.learned),
                each,
                slices=start.shard.slices,
            )
            for each in links
        ]


def at_once(members, call):
    with ThreadPoolExecutor(len(members)) as pool:
        return [each.result() for each in [pool.submit(call, one) for one in members]]


def same(one, other):
    assert one[0] == other[0] and np.array_equal(one[1], other[1])
    assert one[2].keys() == other[2].keys()
    for name in one[2]:
        assert np.array_equal(one[2][name], other[2][name])


@pytest.mark.parametrize(
    ("name", "size"),
    [*(("sinusoid", size) for size in (1, 2, 3, 5)), *((name, 3) for name in [*RECIPES][1:])],
)
def test_the_bits_and_rows_of_one_server(tmp_path, name, size):
    torch.set_num_threads(1)
    run, start = given(name, tmp_path)
    alone, unread = LocalGroup(start, "cpu"), []
    for _ in loop(run.experiment, alone, unread, start=0, stop=lambda: False):
        pass
    members = peers(start, size)
    count, multi_round = run.experiment.iterations, run.experiment.multi_round
    for rows in at_once(members, lambda peer: peer.block(count, multi_round=multi_round)):
        assert len(rows) == count
        for ours, theirs in zip(rows, unread, strict=True):
            np.testing.assert_equal(ours, theirs.metrics)
    for peer in members:
        same(peer.saved(), alone.server.state.remote())
        assert np.array_equal(peer.eval_parameters(), alone.server.eval_parameters.remote())
    assert not np.array_equal(members[0].saved()[1], start.meta)


def test_blocks_of_any_length_are_one(tmp_path):
    _, start = given("sinusoid", tmp_path)
    members, (alone,) = peers(start, 2), peers(start, 1)
    rows = [
        row
        for count in (1, 0, 3, 1)
        for row in at_once(members, lambda p, count=count: p.block(count, multi_round=False))[0]
    ]
    np.testing.assert_equal(rows, alone.block(5, multi_round=False))
    same(members[1].saved(), alone.saved())


def test_where_one_fails_the_others_know_how_far_they_got(tmp_path, monkeypatch):
    _, start = given("sinusoid", tmp_path)
    members, (alone,) = peers(start, 3), peers(start, 1)
    gradient = TaskShard.gradient

    def failing(shard, meta, it, at=None, *, slice=0):
        if it == 3 and slice == 1:
            raise ValueError("of the user's own")
        return gradient(shard, meta, it, at, slice=slice)

    with monkeypatch.context() as patched:
        patched.setattr(TaskShard, "gradient", failing)
        with ThreadPoolExecutor(3) as pool:
            every = [pool.submit(peer.block, 5, multi_round=False) for peer in members]
            errors = [type(each.exception()) for each in every]
    assert errors == [PeersLost, ValueError, PeersLost]
    expected = alone.block(3, multi_round=False)
    for peer in members:
        progress = peer.progress()
        np.testing.assert_equal(progress.rows, expected)
        same(progress.saved, alone.saved())
