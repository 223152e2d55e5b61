"""Peer: a member of a group that is linked, and makes the beta update among itself.

In each round the peers exchange what their slices contribute, so that a meta-iteration passes
neither the driver nor a server's actor. `block` is some iterations in one call. Of a small vector
each peer holds all of the server's state, and makes the whole update (ReplicatedPeer); of a large
one some peers own a range each (ranged_peer.py). Either way the sums are in the order of slices.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from maml_dist.runtime.links import Links, Message
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.meta_iteration import Ask, meta_iteration
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
    """Computes the slices range(rank, slices, peers), and makes the whole update."""

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
        self._server = cast(ParameterServer, Here(server))

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
        """What all slices contribute, in their order."""
        rank, size = self._links.rank, self._links.size
        answer = getattr(self._shard, method)
        mine = [
            answer(meta, it, *given, slice=slice, **options)
            for slice in range(rank, self._slices, size)
        ]
        if size == 1:
            return mine
        parts = [contributions(each) for each in self._links.all_gather(message(mine))]
        return [parts[slice % size][slice // size] for slice in range(self._slices)]


def message(given: Sequence[Contribution], part: slice = slice(None)) -> Message:
    """Contributions, as they travel; `part` of their vectors."""
    head = [
        (each.tasks, each.metrics, each.skipped, each.warnings, each.gradient.dtype.str)
        for each in given
    ]
    vectors = [each.gradient[part] for each in given]
    body = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
    return Message(json.dumps(head).encode(), np.ascontiguousarray(body))


def contributions(by: Message) -> list[Contribution]:
    """What was sent."""
    head = json.loads(by.head)
    kind = np.dtype(head[0][4])
    vectors = np.split(np.frombuffer(by.body, kind), len(head))
    return [
        Contribution(vector, tasks, metrics, tuple(skipped), tuple(warnings))
        for vector, (tasks, metrics, skipped, warnings, _) in zip(vectors, head, strict=True)
    ]
