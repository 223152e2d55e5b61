"""Peers: linked shards have the bits of a server and one shard."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from maml_dist.core.params import flatten
from maml_dist.runtime.links import Links, PeersLost
from maml_dist.runtime.local_backend import LocalGroup
from maml_dist.runtime.messages import Start
from maml_dist.runtime.peer import ReplicatedPeer
from maml_dist.runtime.ranged_peer import RangedPeer, Roles
from maml_dist.runtime.ranges import cut, whole
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard
from maml_dist.training.loop import loop
from maml_dist.training.trainer import prepare
from tests.linked import at_once, linked, same_state

SMALL = {"engine.running": "eager", "iterations": 5, "meta_batch": 6, "slices": 5}
WALK = {"task.episodes": 4, "task.horizon": 6, "iterations": 2}
RECIPES = {
    "sinusoid": ("sinusoid", {}),
    "averaged": ("sinusoid", {"outer.average": 0.9, "outer.clip_norm": 0.5}),
    "epochs": ("sinusoid", {"outer.epochs": 3, "iterations": 3}),
    "trpo": ("navigation", {**WALK, "iterations": 1, "outer.bound": 0.1}),
    "es": ("navigation-es", WALK),
}


def given(name, tmp_path):
    recipe, settings = RECIPES[name]
    run = prepare(recipe, {**SMALL, **settings}, run=tmp_path / name)
    meta, outer = flatten(run.initial).numpy(), run.experiment.outer
    return run, Start(run.shard_spec, meta, outer, multi_round=run.experiment.multi_round)


def peers(start, size):
    """The peers of a group, in this process."""
    return [
        ReplicatedPeer(
            TaskShard(start.shard),
            ParameterServer(start.meta, start.outer, learned=start.shard.learned),
            each,
            slices=start.shard.slices,
            multi_round=start.multi_round,
        )
        for each in linked(size)
    ]


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
    count = run.experiment.iterations
    for rows in at_once(members, lambda peer: peer.block(count)):
        assert len(rows) == count
        for ours, theirs in zip(rows, unread, strict=True):
            np.testing.assert_equal(ours, theirs.metrics)
    for peer in members:
        same_state(peer.saved(), alone.server.state.remote())
    saved, weights = members[0].gathered()
    same_state(saved, members[0].saved())
    assert np.array_equal(weights, alone.server.eval_parameters.remote())
    assert not np.array_equal(weights, start.meta)


def test_blocks_of_any_length_are_one(tmp_path):
    _, start = given("sinusoid", tmp_path)
    members, (alone,) = peers(start, 2), peers(start, 1)
    rows = [
        row
        for count in (1, 0, 3, 1)
        for row in at_once(members, lambda p, count=count: p.block(count))[0]
    ]
    np.testing.assert_equal(rows, alone.block(5))
    same_state(members[1].saved(), alone.saved())


def test_the_rows_of_the_block_before_are_known_too(tmp_path):
    """The driver may not have heard of it, where the first peer is lost."""
    _, start = given("sinusoid", tmp_path)
    members = peers(start, 2)
    first = at_once(members, lambda peer: peer.block(2))[0]
    second = at_once(members, lambda peer: peer.block(2))[0]
    at_once(members, lambda peer: peer.block(0))
    for peer in members:
        np.testing.assert_equal(peer.progress().rows, [*first, *second])


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
            every = [pool.submit(peer.block, 5) for peer in members]
            errors = [type(each.exception()) for each in every]
    assert errors == [PeersLost, ValueError, PeersLost]
    expected = alone.block(3)
    for peer in members:
        progress = peer.progress()
        np.testing.assert_equal(progress.rows, expected)
        assert progress.it == 3
        same_state(peer.saved(), alone.saved())


WIDE = {"model.hidden": [80, 80]}  # 7 blocks
RANGED = {
    "adam": WIDE,
    "clipped": {**WIDE, "outer.clip_norm": 0.5, "outer.clip": 0.1},
    "averaged": {**WIDE, "outer.average": 0.9, "outer.weight_decay": 0.1},
    "momentum": {**WIDE, "outer": "SGD", "outer.beta": 0.1, "outer.momentum": 0.9},
}


def ranged(start, parts, shards, machines=None):
    """Peers of which `parts` own ranges, or all do, and `shards` compute."""
    size = parts + shards
    owners = dict(enumerate(cut(len(start.meta), parts or shards)))
    roles = Roles(owners, [*range(parts, size)], machines or "a" * size)
    saved = ParameterServer(start.meta, start.outer, learned=start.shard.learned).state()
    return [
        RangedPeer(
            TaskShard(start.shard) if rank >= parts else None,
            start.outer,
            saved,
            each,
            roles,
            slices=start.shard.slices,
            learned=start.shard.learned,
        )
        for rank, each in enumerate(linked(size))
    ]


@pytest.mark.parametrize(
    ("name", "parts", "shards", "machines"),
    [
        *(("adam", parts, shards, "") for parts in (0, 1, 3) for shards in (1, 2, 5)),
        *((name, parts, 3, "") for name in [*RANGED][1:] for parts in (0, 2)),
        *(("adam", 0, len(on), on) for on in ("aabb", "abbbc", "aaabb", "abc")),
        *(("adam", parts, 4, on) for parts, on in ((2, "abaabb"), (2, "ccaabb"), (1, "baabb"))),
        ("clipped", 2, 3, "abaab"),
    ],
)
def test_ranges_have_the_bits_and_rows_of_one_server(tmp_path, name, parts, shards, machines):
    torch.set_num_threads(1)
    run = prepare("sinusoid", {**SMALL, **RANGED[name]}, run=tmp_path / name)
    start = Start(run.shard_spec, flatten(run.initial).numpy(), run.experiment.outer)
    (alone,), members = peers(start, 1), ranged(start, parts, shards, machines)
    expected = alone.block(5)
    for rank, rows in enumerate(at_once(members, lambda peer: peer.block(5))):
        if rank in members[0]._roles.owners:
            np.testing.assert_equal(rows, expected)
    (saved, weights), *others = at_once(members, lambda peer: peer.gathered())
    assert others == [None] * (parts + shards - 1)
    same_state(saved, alone.saved())
    assert np.array_equal(weights, alone.gathered()[1])
    owners = [member for member in members if member.progress().size]
    same_state(whole([owner.saved(5) for owner in owners]), saved)
    before = whole([owner.saved(4) for owner in owners])
    (again,) = peers(start, 1)
    again.block(4)
    same_state(before, again.saved())


def test_between_machines_travels_what_one_shard_has(tmp_path, monkeypatch):
    """Two shards of a machine send another machine no more than one would."""
    run = prepare("sinusoid", {**SMALL, **WIDE, "slices": 4}, run=tmp_path / "run")
    start = Start(run.shard_spec, flatten(run.initial).numpy(), run.experiment.outer)
    crossed = []
    exchange = Links.exchange

    def counted(links, given, **options):
        for rank, sent in given.items():
            if "aabb"[rank] != "aabb"[links.rank]:
                crossed.append(len(bytes(sent.body)))
        return exchange(links, given, **options)

    monkeypatch.setattr(Links, "exchange", counted)
    at_once(ranged(start, 0, 4, "aabb"), lambda peer: peer.block(3))
    # of each machine half the gradient, to the owners there, and the half that it owns
    assert sum(crossed) == 3 * 2 * start.meta.nbytes
