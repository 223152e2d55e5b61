"""All actors in this process, where parameters are tables: one peer, alone in its group."""

from collections.abc import Callable
from typing import Any, NoReturn, cast

import numpy as np

from maml_dist.runtime.backend import ActorGroup, ActorLost, BlockRefs
from maml_dist.runtime.links import Links
from maml_dist.runtime.messages import Start
from maml_dist.runtime.ranged_peer import RangedPeer, Roles
from maml_dist.runtime.remote import Get, Here, Ref
from maml_dist.runtime.server import ParameterServer, Saved, first_state
from maml_dist.runtime.shard import TaskShard


class LocalPeer(ActorGroup):
    """One shard, which owns everything."""

    linked = True

    def __init__(self, given: Start, device: str) -> None:
        self._given, self.slices = given._replace(tables={}), given.shard.slices
        self._shard = TaskShard(given.shard, device=device)
        self.get = cast(Get, lambda value: value)
        self.server = cast(ParameterServer, Here(self))
        self.restore(first_state(given))

    def shard(self, slice: int) -> TaskShard:
        """The only one."""
        return cast(TaskShard, Here(self._shard))

    def block(self, count: int, *, keep: bool) -> BlockRefs:
        """The next `count` iterations."""
        rows = self._peer.block(count)
        saved, weights = self._peer.gathered() or (None, None) if keep else (None, None)
        return BlockRefs(*(cast(Ref[Any], value) for value in (rows, saved, weights)))

    def state(self) -> Saved:
        """Everything that an update changes."""
        gathered = self._peer.gathered()
        assert gathered
        return gathered[0]

    def eval_parameters(self) -> np.ndarray:
        """What is validated [size]."""
        return self.state()[1]

    def submitted(self, it: int) -> None:
        """No snapshot is needed: the state lives as long as this process."""

    def restore(self, saved: Saved) -> None:
        """Go on from a saved state."""
        given = self._given
        self._peer = RangedPeer(
            *(self._shard, given.outer, saved, Links(0, {})),
            Roles({0: slice(0, len(saved[1]))}, [0], ["here"]),
            slices=self.slices,
            learned=given.shard.learned,
            tables=given.shard.tables,
        )

    def reached(self) -> Saved:
        """The state, when an error has ended the run."""
        progress, saved = self._peer.progress(), self.state()
        self.rows = dict(enumerate(progress.rows, saved[0] - len(progress.rows) + 1))
        return saved

    def drain(self, failure: ActorLost) -> NoReturn:
        """Nothing is lost here."""
        raise failure

    def reform(self, saved: Saved, *, stop: Callable[[], bool]) -> None:
        """Nothing is lost here."""

    def close(self) -> None:
        """There is nothing to end."""
