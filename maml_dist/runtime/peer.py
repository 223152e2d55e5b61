"""Peer: a shard that is linked to the others, and makes the beta update itself.

All peers of a group begin with the same state of a server. In each round they exchange what their
slices contribute, and each applies the same update to the same bits: a meta-iteration passes
neither the driver nor a server. `block` is some iterations in one call.
"""

import json
from typing import Any, NamedTuple, cast

import numpy as np

from maml_dist.runtime.links import Links, Message
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.meta_iteration import meta_iteration
from maml_dist.runtime.remote import Get, Here
from maml_dist.runtime.server import ParameterServer, Saved
from maml_dist.runtime.shard import TaskShard

Row = dict[str, Any]


class Progress(NamedTuple):
    """How far a peer has got, and the metrics of the iterations of its last block until there."""

    saved: Saved
    rows: list[Row]


class Peer:
    """One of a group; computes the slices range(rank, slices, peers)."""

    def __init__(
        self, shard: TaskShard, server: ParameterServer, links: Links, *, slices: int
    ) -> None:
        """`server`: the state to begin with, which is this peer's own."""
        self._shard, self._links = shard, links
        self._server = cast(ParameterServer, Here(server))
        self._slices = slices
        self._rows: list[Row] = []  # of the last block

    def block(self, count: int, *, multi_round: bool) -> list[Row]:
        """The metrics of each of the next `count` iterations.

        Raises:
            PeersLost: another has failed; `progress` says where this one is.
        """
        self._rows = []
        meta = self._server.meta.remote()
        it = self.saved()[0]
        try:
            for ahead in range(count):
                meta, metrics = meta_iteration(
                    self._server,
                    self._ask,  # type: ignore[arg-type] - values stand for references
                    cast(Get, lambda value: value),
                    meta,
                    it + ahead,
                    multi_round=multi_round,
                )
                self._rows.append(cast(Row, metrics))
        except BaseException:
            self._links.close()  # lest the others wait
            raise
        return self._rows

    def saved(self) -> Saved:
        """Everything that an update changes."""
        return cast(Saved, self._server.state.remote())

    def eval_parameters(self) -> np.ndarray:
        """What is validated [size]."""
        return cast(np.ndarray, self._server.eval_parameters.remote())

    def progress(self) -> Progress:
        """How far this peer has got; an update under way has not been made."""
        return Progress(self.saved(), self._rows)

    def leave(self) -> None:
        """Break the group up; from any thread."""
        self._links.close()

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
        parts = [_contributions(each) for each in self._links.all_gather(_message(mine))]
        return [parts[slice % size][slice // size] for slice in range(self._slices)]


def _message(contributions: list[Contribution]) -> Message:
    """What travels: numbers as they are, and words about them."""
    head = [
        (part.tasks, part.metrics, part.skipped, part.warnings, part.gradient.dtype.str)
        for part in contributions
    ]
    vectors = [part.gradient for part in contributions]
    body = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
    return Message(json.dumps(head).encode(), np.ascontiguousarray(body))


def _contributions(message: Message) -> list[Contribution]:
    head = json.loads(message.head)
    kind = np.dtype(head[0][4])
    vectors = np.split(np.frombuffer(message.body, kind), len(head))
    return [
        Contribution(vector, tasks, metrics, tuple(skipped), tuple(warnings))
        for vector, (tasks, metrics, skipped, warnings, _) in zip(vectors, head, strict=True)
    ]
