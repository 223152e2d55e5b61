"""Linked: what an actor does as a peer of a group; the driver's side is ray_peers.py."""

import time
from typing import NamedTuple

import numpy as np
from torch import Tensor

from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.tables import Table
from maml_dist.loggers.lines import Seldom, say
from maml_dist.runtime.allocator import spare
from maml_dist.runtime.links import Address, Door
from maml_dist.runtime.peer import Peer, Progress, ReplicatedPeer, Row
from maml_dist.runtime.ranged_peer import RangedPeer, Roles
from maml_dist.runtime.ray_actor import RayActor
from maml_dist.runtime.server import ParameterServer, Saved
from maml_dist.runtime.shard import TaskShard


class Meeting(NamedTuple):
    """What all peers of a new group are told."""

    addresses: list[Address]  # by ranks
    key: bytes  # of this group alone
    outer: OuterOptimizer
    multi_round: bool  # whether an update asks the tasks back
    roles: Roles | None  # who owns which range; None: each holds everything


class Linked(RayActor):
    """An actor that can be a peer."""

    _slices: int
    _learned: int
    _tables: tuple[Table, ...]
    _door: Door | None = None
    _peer: Peer | None = None
    _spared = False
    _left = False  # its last group
    _seldom = Seldom()

    def open_door(self, *, together: bool) -> Address:
        """Where others of a new group reach this actor; `together`: all are on this machine."""
        import ray

        if self._door:
            self._door.close()
        self._peer = None  # of a group that is no more
        self._door = Door(None if together else ray.util.get_node_ip_address())
        return self._door.address

    def meet(self, rank: int, meeting: Meeting, saved: Saved) -> None:
        """Link up with a group, whose server is in this state.

        Raises:
            PeersLost: not all are there in time.
        """
        assert self._door is not None
        links = self._door.meet(rank, meeting.addresses, meeting.key)
        self._left = False
        links.traffic = self._traffic
        shard = self if isinstance(self, TaskShard) else None
        slices, learned, outer = self._slices, self._learned, meeting.outer
        if meeting.roles is not None:
            self._peer = RangedPeer(
                *(shard, outer, saved, links, meeting.roles),
                slices=slices,
                learned=learned,
                tables=self._tables,
            )
        else:
            assert shard is not None
            server = ParameterServer(saved[1], outer, learned=learned)
            server.restore(saved)
            self._peer = ReplicatedPeer(
                shard, server, links, slices=slices, multi_round=meeting.multi_round
            )
        answers = meeting.roles is not None or rank == 0  # where all hold everything, one does
        if self._peer.server and answers:
            self._peer.server.keeps_gradient = self._watched
        owned = self._peer.progress()
        say(
            f"is linked as {rank + 1} of {links.size} at iteration {saved[0]}, and holds "
            f"{owned.size} numbers from {owned.first} on",
            clock=True,
        )

    def block(
        self, count: int, after: object, *, tell: bool, keep: bool
    ) -> tuple[list[Row] | None, Saved | None, np.ndarray | None]:
        """The next `count` iterations, as a peer, after what the block before has returned.

        Returns:
            The metrics of each where it is to `tell` them; where all are to `keep` them, at the
            first the state then, and what is to be validated [size].
        """
        assert self._peer is not None
        began, busy, waited = time.monotonic(), self._pace.busy, self._traffic.waited
        rows = self._peer.block(count)
        kept = self._peer.gathered() if keep else None
        if kept:
            self._seldom.say(f"hands the state of iteration {kept[0][0]} over", clock=True)
        passed = time.monotonic() - began - (self._traffic.waited - waited)
        self._pace.add("update", passed - (self._pace.busy - busy))
        if not self._spared:  # what lives on after the first, in which it has compiled
            spare()
            self._spared = True
        return rows if tell else None, *(kept or (None, None))

    def progress(self) -> Progress | None:
        """How far this actor has got as a peer; None where it has met nobody yet."""
        return self._peer.progress() if self._peer else None

    def saved(self, it: int) -> Saved:
        """Its part of the state, after `it` iterations."""
        assert self._peer is not None
        return self._peer.saved(it)

    def leave(self) -> None:
        """Break its group up, though it be waiting for the others."""
        if self._door:  # at which it may be waiting
            self._door.close()
        if self._peer:
            self._peer.leave()
        if self._peer and not self._left:
            say("has left its group, which breaks up", clock=True)
        self._left = True

    def _gradient(self) -> Tensor | None:
        """The part that this actor answers for of the last meta-gradient."""
        server = self._peer.server if self._peer and not self._left else None
        return server.gradient if server else None
