"""Peer: a member of a group that is linked, and makes the beta update among itself.

In each round the peers exchange what their slices contribute, so that a meta-iteration passes
neither the driver nor a server's actor. `block` is some iterations in one call. Of a small vector
each peer holds all of the server's state, and makes the whole update (ReplicatedPeer); of a large
one some peers own a range each (ranged_peer.py). Either way the sums are those of partial_sums.py.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from maml_dist.runtime.links import Links, Message
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.meta_iteration import Ask, meta_iteration
from maml_dist.runtime.partial_sums import PartialSum, add_up, share
from maml_dist.runtime.remote import Get, Here
from maml_dist.runtime.server import ParameterServer, Saved
from maml_dist.runtime.shard import TaskShard

Row = dict[str, Any]


class Progress(NamedTuple):
    """How far a peer has got."""

    it: int  # iterations made
    rows: list[Row]  # the metrics of those of its last two blocks
    first: int = 0  # the element that its state begins with
    size: int = 0  # elements of its state; 0: it has none


class Peer(ABC):
    """One of a group."""

    def __init__(self, links: Links, *, it: int) -> None:
        """`it`: iterations that have been made."""
        self._links, self._it = links, it
        self.server: ParameterServer | None = None  # of what this peer owns
        self._rows: list[Row] = []  # of the last block
        self._former: list[Row] = []  # of the one before, which the driver may not have read

    @abstractmethod
    def iterate(self, it: int) -> None:
        """Make iteration `it`; its metrics go to `_rows`, where this peer knows them."""

    @abstractmethod
    def saved(self, it: int | None = None) -> Saved:
        """The state that this peer has, after `it` iterations: as many as it has made."""

    @abstractmethod
    def gathered(self) -> tuple[Saved, np.ndarray] | None:
        """All of the state, and what is validated [size], at the first peer; all call this."""

    @abstractmethod
    def progress(self) -> Progress:
        """How far this peer has got; an update under way has not been made."""

    def block(self, count: int) -> list[Row]:
        """The metrics of each of the next `count` iterations.

        Raises:
            PeersLost: another has failed; `progress` says where this one is.
        """
        if count:
            self._rows, self._former = [], self._rows
        try:
            for _ in range(count):
                self.iterate(self._it)
                self._it += 1
        except BaseException:
            self._links.close()  # lest the others wait
            raise
        return self._rows if count else []

    def leave(self) -> None:
        """Break the group up; from any thread."""
        self._links.close()


class ReplicatedPeer(Peer):
    """Computes its share of the slices, and makes the whole update."""

    def __init__(
        self,
        shard: TaskShard,
        server: ParameterServer,
        links: Links,
        *,
        slices: int,
        multi_round: bool,
    ) -> None:
        """`server`: the state to begin with, which is this peer's own."""
        super().__init__(links, it=server.state()[0])
        self._shard, self._slices, self._multi_round = shard, slices, multi_round
        self.server, self._server = server, cast(ParameterServer, Here(server))

    def iterate(self, it: int) -> None:
        """Make iteration `it`."""
        _, metrics = meta_iteration(
            self._server,
            cast(Ask, self._ask),  # values stand for references
            cast(Get, lambda value: value),
            self._server.meta.remote(),
            it,
            multi_round=self._multi_round,
        )
        self._rows.append(cast(Row, metrics))

    def saved(self, it: int | None = None) -> Saved:
        """Everything that an update changes."""
        return cast(Saved, self._server.state.remote())

    def gathered(self) -> tuple[Saved, np.ndarray] | None:
        """The state, and what is validated [size]: each has all of it."""
        if self._links.rank:
            return None
        return self.saved(), cast(np.ndarray, self._server.eval_parameters.remote())

    def progress(self) -> Progress:
        """How far this peer has got."""
        it, meta, _ = self.saved()
        return Progress(it, self._former + self._rows, 0, len(meta))

    def _ask(
        self, method: str, meta: np.ndarray, it: int, *given: Any, **options: Any
    ) -> list[Contribution]:
        """The sum of what all slices contribute."""
        rank, size = self._links.rank, self._links.size
        answer = getattr(self._shard, method)
        mine = add_up(
            (
                PartialSum(slice, slice + 1, answer(meta, it, *given, slice=slice, **options))
                for slice in share(self._slices, rank, size)
            ),
            self._slices,
        )
        if size > 1:
            sent = self._links.all_gather(message(mine))
            every = (part for each in sent for part in received(each)[0])
            mine = add_up(every, self._slices)
        return [each.sum for each in mine]


def message(parts: Sequence[PartialSum], ranges: Sequence[slice] = (slice(None),)) -> Message:
    """Partial sums, as they travel; of their vectors these ranges, one after the other."""
    vectors = [part.sum.gradient[range] for range in ranges for part in parts]
    head = [(part.first, part.stop, *part.sum[1:5]) for part in parts]
    sizes = [len(each) for each in vectors]
    words = json.dumps([head, sizes, vectors[0].dtype.str]).encode()
    body = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
    return Message(words, np.ascontiguousarray(body))


def received(message: Message) -> list[list[PartialSum]]:
    """What was sent, of each range."""
    head, sizes, kind = json.loads(message.head)
    vectors = iter(np.split(np.frombuffer(message.body, np.dtype(kind)), np.cumsum(sizes)[:-1]))
    return [
        [
            PartialSum(
                first, stop, Contribution(next(vectors), tasks, sums, tuple(skipped), tuple(said))
            )
            for first, stop, tasks, sums, skipped, said in head
        ]
        for _ in range(len(sizes) // len(head))
    ]
