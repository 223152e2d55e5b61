"""RangedPeer: of a large vector, some peers own a range each, with its optimizer's state.

    shards -> owners   the summed meta-gradient's range                        (reduce-scatter)
    owners             its update
    owners -> shards   the new range of the meta-parameters                    (all-gather)

The shards may own the ranges themselves (server=spread), or others, which have no slices
(server=split). Between machines, what shards of one have for an owner on another is added up
before by one of them, the relay, who also hands the others what that owner sends. The owner's
former state is kept until the next: where a group breaks, some may have made one update more. Where
there are tables (sparse parameters), each owner has rows of them besides (row_exchange.py).
"""

import json
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.tables import Table
from maml_dist.runtime.links import Links, Message, bytes_of
from maml_dist.runtime.messages import RowValues
from maml_dist.runtime.partial_sums import PartialSum, add_up, share
from maml_dist.runtime.peer import Peer, Progress, message, received
from maml_dist.runtime.ranges import part_of, whole
from maml_dist.runtime.row_exchange import RowExchange
from maml_dist.runtime.server import ParameterServer, Saved
from maml_dist.runtime.shard import TaskShard


class Roles(NamedTuple):
    """Who does what in a group, by ranks."""

    owners: dict[int, slice]  # the range of each, in the order of ranges; the first is rank 0
    computing: list[int]  # those that have slices, in the order of these
    machines: Sequence[Any]  # of each rank, the machine that it is on

    def shards_on(self, machine: Any) -> list[int]:
        """Those of a machine that compute."""
        return [rank for rank in self.computing if self.machines[rank] == machine]

    def relays(self, machine: Any) -> dict[int, int]:
        """Owners on other machines -> who of this machine's shards deals with them."""
        shards = self.shards_on(machine)
        return {
            owner: shards[number % len(shards)]
            for number, owner in enumerate(self.owners)
            if shards and self.machines[owner] != machine
        }

    def facing(self, owner: int) -> list[int]:
        """The shards with which an owner exchanges: its machine's, and of each other the relay."""
        here = self.machines[owner]
        found = [rank for rank in self.shards_on(here) if rank != owner]
        for machine in dict.fromkeys(self.machines[rank] for rank in self.computing):
            if machine != here:
                found.append(self.relays(machine)[owner])
        return found


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
        tables: Sequence[Table] = (),
    ) -> None:
        """`saved` is the state of the whole vector."""
        super().__init__(links, it=saved[0])
        self._shard, self._roles, self._slices = shard, roles, slices
        self._range = roles.owners.get(links.rank)
        self._clips = outer.clip_norm is not None
        self._meta = saved[1].copy()
        rank, computing = links.rank, roles.computing
        self._share = range(0)
        relays: dict[int, int] = {}
        if rank in computing:
            self._share = share(slices, computing.index(rank), len(computing))
            relays = roles.relays(roles.machines[rank])
        self._mates = [each for each in roles.shards_on(roles.machines[rank]) if each != rank]
        self._relayed = {  # by each shard of this machine: owners
            mate: [owner for owner, by in relays.items() if by == mate]
            for mate in (rank, *self._mates)
        }
        self._facing = roles.facing(rank) if self._range is not None else []
        self._owners = [  # with whom this one exchanges
            owner for owner in roles.owners if rank in roles.facing(owner)
        ]
        self._places = {owner: bytes_of(self._meta[roles.owners[owner]]) for owner in self._owners}
        if self._range is not None:
            own = part_of(saved, self._range, learned=learned)
            inner = max(0, min(learned, self._range.stop) - self._range.start)
            self._server = ParameterServer(own[1], outer, learned=inner)
            self._server.restore(own)
            self._before, self.server = self._server.state(), self._server
        self._count = int(saved[2]["count"])  # updates made, at an owner
        self._exchange = None
        if tables:
            self._exchange = RowExchange(
                *(tables, outer, saved[2], links),
                owners=[*roles.owners],
                computing=computing,
            )

    def iterate(self, it: int) -> None:
        """Make iteration `it`, of one round."""
        rows: list[RowValues] = []  # of each slice, its gradients of rows
        mine = add_up(self._gradients(it, rows), self._slices)
        relayed = self._added_up_here(mine)
        ranges, own = self._roles.owners, self._range
        given = {
            owner: message(relayed[owner]) if owner in relayed else message(mine, [ranges[owner]])
            for owner in self._owners
        }
        got = self._links.exchange(given, of=self._facing)
        of_rows = self._exchange.gathered(rows) if self._exchange else {}
        pieces = {}
        if own is not None:
            parts = [part for each in got.values() for part in received(each)[0]]
            (whole,) = add_up([*_range_of(mine, own), *parts], self._slices)
            before, tasks = self._server.state(), whole.sum.tasks
            if self._exchange:  # first, since this can be undone
                self._exchange.update(of_rows, tasks=tasks, count=self._count)
            piece, metrics = self._server.update(
                whole.sum, gather=self._squares if self._clips else None
            )
            self._count += bool(tasks)
            self._before = before
            self._rows.append(metrics)
            self._meta[own] = piece
            pieces = dict.fromkeys(self._facing, Message(b"", self._meta[own]))
        self._links.exchange(pieces, of=self._places, into=self._places)
        self._hand_on()

    def _added_up_here(self, mine: list[PartialSum]) -> dict[int, list[PartialSum]]:
        """What this machine's shards have for the owners elsewhere that this one is to relay to."""
        ranges = self._roles.owners
        given = {
            mate: message(mine, [ranges[owner] for owner in self._relayed[mate]])
            for mate in self._mates
            if mine and self._relayed[mate]
        }
        own = self._relayed[self._links.rank]
        got = self._links.exchange(given, of=self._mates if own else ())
        theirs = [received(each) for each in got.values()]
        return {
            owner: add_up(
                [*_range_of(mine, ranges[owner]), *(part for each in theirs for part in each[n])],
                self._slices,
            )
            for n, owner in enumerate(own)
        }

    def _hand_on(self) -> None:
        """Give this machine's other shards what was relayed to this one, and take what was not."""
        ranges = self._roles.owners

        def vectors(owners: list[int]) -> list[np.ndarray]:
            return [self._meta[ranges[owner]] for owner in owners]

        own = self._relayed[self._links.rank]
        given = {}
        if own:
            given = dict.fromkeys(self._mates, Message(b"", np.concatenate(vectors(own))))
        others = [mate for mate in self._mates if self._share and self._relayed[mate]]
        for mate, sent in self._links.exchange(given, of=others).items():
            body, start = np.frombuffer(sent.body, self._meta.dtype), 0
            for vector in vectors(self._relayed[mate]):
                vector[:] = body[start : start + len(vector)]
                start += len(vector)

    def saved(self, it: int | None = None) -> Saved:
        """The state of this peer's range, after `it` iterations."""
        assert self._range is not None
        return self._with_rows(self._before if self._before[0] == it else self._server.state())

    def gathered(self) -> tuple[Saved, np.ndarray] | None:
        """All of the state at the first peer, which owns the first range."""
        rank, owners = self._links.rank, self._roles.owners
        if rank and self._range is not None:
            it, meta, state = self._with_rows(self._server.state())
            self._links.exchange({0: Message(json.dumps([it, [*state]]).encode(), meta)}, of=())
            for value in state.values():
                kind = json.dumps([value.dtype.str, value.shape]).encode()
                self._links.exchange({0: Message(kind, np.ascontiguousarray(value))}, of=())
        if rank:
            return None
        own = self._with_rows(self._server.state())
        saved = whole([own, *map(self._sent, [*owners][1:])])
        return saved, saved[2].get("average", saved[1])

    def progress(self) -> Progress:
        """How far this peer has got."""
        if self._range is None:
            return Progress(self._it, self._former + self._rows)
        first, size = self._range.start, self._range.stop - self._range.start
        if self._exchange:
            first, size = map(operator.add, (first, size), self._exchange.elements)
        rows = self._former + self._rows
        return Progress(self._server.state()[0], rows, first, size)

    def _gradients(self, it: int, rows: list[RowValues]) -> Iterator[PartialSum]:
        """Those of this peer's slices; of tables, what it has of their `rows`."""
        shard, exchange = self._shard, self._exchange
        given: list[dict[str, Any]] = [{} for _ in self._share]
        if exchange:
            touched = [shard.touched(it, slice=slice) for slice in self._share if shard]
            given = [{"rows": each} for each in exchange.fetch(touched, count=self._count)]
        for slice, more in zip(self._share, given, strict=True):
            assert shard is not None
            found = shard.gradient(self._meta, it, slice=slice, **more)
            rows.append(found.rows)
            yield PartialSum(slice, slice + 1, found._replace(rows={}))

    def _with_rows(self, saved: Saved) -> Saved:
        """The state of this peer's range, with that of its rows after as many updates."""
        if not self._exchange:
            return saved
        return saved[0], saved[1], saved[2] | self._exchange.state(count=int(saved[2]["count"]))

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


def _range_of(parts: list[PartialSum], range: slice) -> list[PartialSum]:
    """These sums' range."""
    return [
        part._replace(sum=part.sum._replace(gradient=part.sum.gradient[range])) for part in parts
    ]
