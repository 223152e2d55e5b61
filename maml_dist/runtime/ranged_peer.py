"""RangedPeer: of a large vector, some peers own a range each, with its optimizer's state.

    shards -> owners   of each slice the summed meta-gradient's range          (reduce-scatter)
    owners             the sum in the slices' order, and its update
    owners -> shards   the new range of the meta-parameters                    (all-gather)

The shards may own the ranges themselves (server=spread), or others, which have no slices
(server=split). The owner's former state is kept until the next: where a group breaks, some may have
made one update more.
"""

import json
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.runtime.links import Links, Message, bytes_of
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.peer import Peer, Progress, contributions, message
from maml_dist.runtime.ranges import part_of, whole
from maml_dist.runtime.server import ParameterServer, Saved
from maml_dist.runtime.shard import TaskShard


class Roles(NamedTuple):
    """Who does what in a group, by ranks."""

    owners: dict[int, slice]  # the range of each, in the order of ranges; the first is rank 0
    computing: list[int]  # those that have slices


class RangedPeer(Peer):
    """Computes slices, or owns a range of the vector, or both."""

    def __init__(
        self,
        shard: TaskShard | None,
        outer: OuterOptimizer,
        saved: Saved,
        links: Links,
        roles: Roles,
        *,
        slices: int,
        learned: int,
    ) -> None:
        """`saved` is the state of the whole vector."""
        super().__init__(links, it=saved[0])
        self._shard, self._roles, self._slices = shard, roles, slices
        self._range = roles.owners.get(links.rank)
        self._clips = outer.clip_norm is not None
        self._meta = saved[1].copy()
        self._places = {
            rank: bytes_of(self._meta[part])
            for rank, part in roles.owners.items()
            if rank != links.rank
        }
        computing = roles.computing
        self._others = [rank for rank in computing if rank != links.rank]
        self._mine = (
            range(computing.index(links.rank), slices, len(computing))
            if links.rank in computing
            else range(0)
        )
        if self._range is not None:
            own = part_of(saved, self._range, learned=learned)
            inner = max(0, min(learned, self._range.stop) - self._range.start)
            self._server = ParameterServer(own[1], outer, learned=inner)
            self._server.restore(own)
            self._before = self._server.state()

    def iterate(self, it: int) -> None:
        """Make iteration `it`, of one round."""
        mine = []
        if self._shard is not None:
            mine = [self._shard.gradient(self._meta, it, slice=slice) for slice in self._mine]
        rank, owners = self._links.rank, self._roles.owners
        given = {
            owner: message(mine, part) for owner, part in owners.items() if mine and owner != rank
        }
        if self._range is None:
            self._links.exchange(given, of=())
        else:
            got = self._links.exchange(given, of=self._others)
            before = self._server.state()
            piece, metrics = self._server.update(
                *self._in_order(mine, got), gather=self._squares if self._clips else None
            )
            self._before = before
            self._rows.append(metrics)
            self._meta[self._range] = piece
        pieces = {}
        if self._range is not None:
            pieces = dict.fromkeys(self._others, Message(b"", self._meta[self._range]))
        self._links.exchange(pieces, of=self._places if mine else (), into=self._places)

    def saved(self, it: int | None = None) -> Saved:
        """The state of this peer's range, after `it` iterations."""
        assert self._range is not None
        now = self._server.state()
        return self._before if it == self._before[0] else now

    def gathered(self) -> tuple[Saved, np.ndarray] | None:
        """All of the state at the first peer, which owns the first range."""
        rank, owners = self._links.rank, self._roles.owners
        if rank and self._range is not None:
            it, meta, state = self._server.state()
            self._links.exchange({0: Message(json.dumps([it, [*state]]).encode(), meta)}, of=())
            for value in state.values():
                kind = json.dumps([value.dtype.str, value.shape]).encode()
                self._links.exchange({0: Message(kind, np.ascontiguousarray(value))}, of=())
        if rank:
            return None
        saved = whole([self._server.state(), *map(self._sent, [*owners][1:])])
        return saved, saved[2].get("average", saved[1])

    def progress(self) -> Progress:
        """How far this peer has got."""
        if self._range is None:
            return Progress(self._it, self._former + self._rows)
        size = self._range.stop - self._range.start
        rows = self._former + self._rows
        return Progress(self._server.state()[0], rows, self._range.start, size)

    def _sent(self, owner: int) -> Saved:
        """The state that an owner sends."""
        first = self._links.exchange({}, of=[owner])[owner]
        it, names = json.loads(first.head)
        state = {}
        for name in names:
            sent = self._links.exchange({}, of=[owner])[owner]
            kind, shape = json.loads(sent.head)
            state[name] = np.frombuffer(sent.body, np.dtype(kind)).reshape(shape)
        return it, np.frombuffer(first.body, self._meta.dtype), state

    def _in_order(self, mine: list[Contribution], got: dict[int, Message]) -> list[Contribution]:
        """Of all slices, in their order, what they contribute to this peer's range."""
        computing = self._roles.computing
        assert self._range is not None
        own = [each._replace(gradient=each.gradient[self._range]) for each in mine]
        parts = [own if rank not in got else contributions(got[rank]) for rank in computing]
        count = len(computing)
        return [parts[slice % count][slice // count] for slice in range(self._slices)]

    def _squares(self, squares: Tensor) -> Tensor:
        """Those of all owners, in the order of ranges."""
        others = [rank for rank in self._roles.owners if rank != self._links.rank]
        given = dict.fromkeys(others, Message(b"", squares.numpy()))
        got = self._links.exchange(given, of=others)
        return torch.cat(
            [
                squares if rank not in got else torch.from_numpy(np.frombuffer(got[rank].body))
                for rank in self._roles.owners
            ]
        )
