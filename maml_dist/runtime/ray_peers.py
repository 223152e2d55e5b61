"""The driver's side of linked actors: it forms their group, has it do blocks, takes it apart."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

from maml_dist.runtime.backend import BlockRefs
from maml_dist.runtime.linked import Meeting
from maml_dist.runtime.links import PeersLost
from maml_dist.runtime.messages import Start
from maml_dist.runtime.peer import Progress, Row
from maml_dist.runtime.ranged_peer import Roles
from maml_dist.runtime.ranges import cut, cut_evenly, whole
from maml_dist.runtime.ray_making import Second
from maml_dist.runtime.server import Saved
from maml_dist.runtime.watch import last_line

KEY = 32  # bytes
RANGED_FROM = 100_000  # elements from which on shards own a range each, rather than everything


class Peers:
    """The group of linked actors that there is now; `actors` are its members, by their ranks."""

    def __init__(self, given: Start) -> None:
        self._given = given
        self._outer = Second(given.modules, given.outer)
        self.actors: list[Any] = []
        self._blocks: list[list[Any]] = []  # of those submitted, what each member returns
        self._size = len(given.meta)  # of the vector
        self._tables = given.shard.tables
        self._whole = self._size + sum(table.rows * table.dim for table in self._tables)

    def form(
        self,
        parts: Sequence[Any],
        shards: Sequence[Any],
        saved: Saved,
        *,
        machines: Sequence[Any],
        get: Callable[[Any], Any],
    ) -> None:
        """Link actors up.

        Args:
            parts: those that own a range each; none: the shards do, or hold everything.
            shards: those that compute; of one machine next to each other.
            saved: the server's state.
            machines: on which each of all these is.
            get: waits for references.

        Raises:
            ActorLost: one is gone, or they do not reach each other.
        """
        import ray

        self.actors, self._blocks = [], []
        actors = [*parts, *shards]
        together = len({*machines}) == 1
        doors = get([actor.open_door.remote(together=together) for actor in actors])
        roles = self._roles(len(parts), machines)
        key, several = secrets.token_bytes(KEY), self._given.multi_round
        meeting = Meeting(doors, key, self._outer, several, roles)  # type: ignore[arg-type]
        state = ray.put(saved)
        self.actors = actors  # who is lost from now on, is missed by the others
        get([actor.meet.remote(rank, meeting, state) for rank, actor in enumerate(actors)])

    def block(self, count: int, *, keep: bool) -> BlockRefs:
        """Have the next iterations done, after those that were submitted before."""
        last = self._blocks[-1] if self._blocks else [None] * len(self.actors)
        every = [
            actor.block.options(num_returns=3).remote(count, after, tell=rank == 0, keep=keep)
            for rank, (actor, after) in enumerate(zip(self.actors, last, strict=True))
        ]
        self._blocks = [*self._unfinished(), [rows for rows, _, _ in every]]
        return BlockRefs(*every[0])

    def finished(self, get: Callable[[Any], Any]) -> Saved:
        """The state when all that was submitted is done; raises ActorLost where it cannot be."""
        _, saved, _ = self.block(0, keep=True)
        state: Saved = get(saved)
        return state

    def leave(self) -> list[Any]:
        """Break the group up: whoever waits for another fails. References to its being done."""
        return [actor.leave.options(concurrency_group="health").remote() for actor in self.actors]

    def dissolve(
        self, wait: Callable[[list[Any]], None]
    ) -> tuple[Saved | None, list[Row], Exception | None]:
        """Take the group apart.

        `wait` waits until references are there, or lost.

        Returns:
            The state, as far as all of it has got; None where too many are gone. The metrics of the
            last iterations up to there. And what a user's code has raised.
        """
        actors, blocks = self.actors, [each for block in self._blocks for each in block]
        left = self.leave()
        self.actors, self._blocks = [], []
        wait([*left, *blocks])  # lest one who is late leaves the next group
        error = next(filter(None, map(_raised, blocks)), None)
        found = _present([actor.progress.remote() for actor in actors], wait)
        known: list[tuple[Progress, Any]] = [
            (each, actor) for each, actor in zip(found, actors, strict=True) if each
        ]
        saved = self._state(known, wait)
        rows: list[Row] = []
        for each, _ in known:
            if saved and each.it - len(each.rows) <= saved[0] <= each.it:
                rows = max(rows, each.rows[: len(each.rows) - (each.it - saved[0])], key=len)
        return saved, rows, error

    def _state(
        self, known: list[tuple[Progress, Any]], wait: Callable[[list[Any]], None]
    ) -> Saved | None:
        """The newest state of which all ranges are there."""
        replicas = [pair for pair in known if pair[0].size == self._whole]
        if replicas:  # one is enough
            known = [max(replicas, key=lambda pair: pair[0].it)]
        owners = sorted((pair for pair in known if pair[0].size), key=lambda pair: pair[0].first)
        if sum(each.size for each, _ in owners) != self._whole:
            return None
        it = min(each.it for each, _ in owners)
        parts = _present([actor.saved.remote(it) for _, actor in owners], wait)
        if any(each is None or each[0] != it for each in parts):
            return None
        return whole(parts)

    def _roles(self, parts: int, machines: Sequence[Any]) -> Roles | None:
        """Who owns what; None where each is to hold everything."""
        computing = [*range(parts, len(machines))]
        if parts or self._tables:
            cuts = cut_evenly(self._size, parts or len(computing))
            return Roles(dict(enumerate(cuts)), computing, machines)
        small = self._size < RANGED_FROM or len(computing) == 1
        if small or not self._given.outer.divisible or self._given.multi_round:
            return None
        return Roles(dict(enumerate(cut(self._size, len(computing)))), computing, machines)

    def _unfinished(self) -> list[list[Any]]:
        """The blocks that are not known to be done."""
        import ray

        return [
            block
            for block in self._blocks
            if ray.wait(block, num_returns=len(block), timeout=0, fetch_local=False)[1]
        ]


def _present(references: list[Any], wait: Callable[[list[Any]], None]) -> list[Any]:
    """Their values; None where one is lost."""
    import ray

    wait(references)
    values = []
    for reference in references:
        try:
            values.append(ray.get(reference))
        except ray.exceptions.RayError:
            values.append(None)
    return values


def _raised(reference: Any) -> Exception | None:
    """What a user's code raised, if that is what became of a block."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        return raised(error)
    return None


def raised(error: Exception) -> Exception | None:
    """What a user's code raised in an actor, as it was; None where an actor is lost, or left."""
    import ray

    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if type(cause) is ray.exceptions.RayError:  # stands for one that cannot be pickled
        return ValueError(last_line(cause))
    lost = isinstance(cause, ray.exceptions.RayError | PeersLost)
    return None if lost else cast(Exception, cause)
