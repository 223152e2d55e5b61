"""The driver's side of linked shards: it forms their group, has it do blocks, takes it apart."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from maml_dist.runtime.backend import BlockRefs
from maml_dist.runtime.links import PeersLost
from maml_dist.runtime.messages import Start
from maml_dist.runtime.peer import Progress
from maml_dist.runtime.ray_making import Second
from maml_dist.runtime.server import Saved

KEY = 32  # bytes


class Peers:
    """The group of linked shards that there is now; `actors` are its members, by their ranks."""

    def __init__(self, given: Start) -> None:
        self._outer = Second(given.modules, given.outer)
        self.actors: list[Any] = []
        self._blocks: list[list[Any]] = []  # of those submitted, what each member returns

    def form(
        self, actors: Sequence[Any], saved: Saved, *, together: bool, get: Callable[[Any], Any]
    ) -> None:
        """Link actors up; `saved` is the server's state, `together` whether on one machine.

        Raises:
            ActorLost: one is gone, or they do not reach each other.
        """
        import ray

        self.actors, self._blocks = [], []
        doors = get([actor.open_door.remote(together=together) for actor in actors])
        given = doors, secrets.token_bytes(KEY), ray.put(saved), self._outer
        get([actor.meet.remote(rank, *given) for rank, actor in enumerate(actors)])
        self.actors = [*actors]

    def block(self, count: int, *, multi_round: bool, keep: bool) -> BlockRefs:
        """Have the next iterations done, after those that were submitted before."""
        last = self._blocks[-1] if self._blocks else [None] * len(self.actors)
        every = [
            actor.block.options(num_returns=3).remote(
                count, after, multi_round=multi_round, tell=rank == 0, keep=keep and rank == 0
            )
            for rank, (actor, after) in enumerate(zip(self.actors, last, strict=True))
        ]
        self._blocks = [*self._unfinished(), [rows for rows, _, _ in every]]
        return BlockRefs(*every[0])

    def progress(self) -> Any:
        """A reference to how far the first has got, when all that was submitted is done."""
        return self.actors[0].progress.remote(self._blocks[-1][0] if self._blocks else None)

    def leave(self) -> None:
        """Break the group up: whoever waits for another fails."""
        for actor in self.actors:
            actor.leave.options(concurrency_group="health").remote()

    def dissolve(self, wait: Callable[[list[Any]], None]) -> tuple[Progress | None, Exception | None]:
        """Take the group apart: how far the furthest has got, and what a user's code has raised.

        `wait` waits until references are there, or lost.
        """
        import ray

        actors, blocks = self.actors, [each for block in self._blocks for each in block]
        self.leave()
        self.actors, self._blocks = [], []
        wait(blocks)
        error = next(filter(None, map(_raised, blocks)), None)
        asked = [actor.progress.remote(None) for actor in actors]
        wait(asked)
        found = []
        for reference in asked:
            try:
                found.append(ray.get(reference))
            except ray.exceptions.RayError:  # it is gone
                continue
        furthest = max(filter(None, found), key=lambda each: each.saved[0], default=None)
        return furthest, error

    def _unfinished(self) -> list[list[Any]]:
        """The blocks that are not known to be done."""
        import ray

        return [
            block
            for block in self._blocks
            if len(ray.wait(block, num_returns=len(block), timeout=0, fetch_local=False)[0])
            < len(block)
        ]


def _raised(reference: Any) -> Exception | None:
    """What a user's code raised, if that is what became of a block."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, PeersLost | ray.exceptions.RayError):
            return cause
    except ray.exceptions.RayError:
        pass
    return None
