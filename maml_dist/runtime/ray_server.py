"""The parameter server on Ray, as one that may be lost: its snapshots, and another in its place."""

import time
from typing import Any, cast

from maml_dist.runtime.messages import Start
from maml_dist.runtime.ray_making import Maker
from maml_dist.runtime.server import Saved, first_state

SNAPSHOT = 5.0, 20e6  # seconds between two, and bytes of the state for each second more
UP_WITHIN = 120.0  # seconds after which one that was never seen to be up is taken for silent
RENEWED = 0.25  # seconds until its name is tried again, while the one before still has it


class LosableServer:
    """The server that a run has now, and what is known of its state without it."""

    def __init__(self, maker: Maker, given: Start) -> None:
        self._maker = maker
        self._saved = first_state(given)
        self._takes_over = not given.shard.tables  # which it would hold beside their owners
        self._snapshots: list[Any] = []  # references to its states, the oldest first
        self._snapped = 0.0
        self._since: float | None = None  # when it was first seen to be up
        self._made = 0.0
        self._handed: Any = None  # a reference to its having taken a snapshot over
        self._make()

    def due(self) -> bool:
        """Whether it is time for a snapshot."""
        _, meta, state = self._saved
        size = meta.nbytes + sum(value.nbytes for value in state.values())
        return time.monotonic() - self._snapped > SNAPSHOT[0] + size / SNAPSHOT[1]

    def snapshot(self, saved: Any = None) -> None:
        """Keep its state after all that was submitted; `saved`: one to be taken over by it."""
        self._snapped = time.monotonic()
        if saved is not None and self._takes_over:
            if self._handed is not None and _failed(self._handed):
                self.kill()
                self._make()
            self._handed = cast(Any, self.actor.restore).remote(saved)
        self._snapshots.append(self.actor.state.remote() if saved is None else saved)
        del self._snapshots[: max(0, len(self._taken()) - 2)]  # the newest of them may be lost

    @property
    def saved(self) -> Saved:
        """The state that it was last begun with."""
        return self._saved

    def begins_at(self, saved: Saved) -> None:
        """This is its state from now on, and no snapshot is."""
        self._saved, self._snapshots = saved, []

    def renew(self) -> Saved:
        """Make another in its place; returns the newest state that is known of the one before."""
        self.kill()  # dead or not: its name is free only then
        saved = self.newest()
        self._make()
        return saved

    def newest(self) -> Saved:
        """The newest state that is known without it."""
        import ray

        for reference in reversed(self._taken()):
            try:
                saved: Saved = ray.get(reference)
                return saved
            except ray.exceptions.RayError:  # lost with it
                continue
        return self._saved

    def with_tables(self, saved: Saved) -> Saved:
        """Its state; where there are tables, which it does not hold, the newest that is known."""
        return saved if self._takes_over else self.newest()

    def kill(self) -> None:
        """End it, whatever it does: what waits for it fails."""
        import ray

        ray.kill(cast(Any, self.actor))

    def age(self) -> float:
        """Seconds since it was first seen to be up, or should have been."""
        import ray

        if self._since is None and ray.wait([self._answer], timeout=0)[0]:
            self._since = time.monotonic()
        return time.monotonic() - (self._since or self._made + UP_WITHIN)

    def _make(self) -> None:
        while True:
            try:
                self.actor = self._maker.server()
                break
            except ValueError:  # the name of the one before is still taken
                time.sleep(RENEWED)
        self._made, self._since = time.monotonic(), None
        self._handed = None
        spec = cast(Any, self.actor).spec
        self._answer: Any = spec.options(concurrency_group="health").remote()

    def _taken(self) -> list[Any]:
        """The snapshots that are known to be taken, or lost."""
        import ray

        every = self._snapshots
        taken: list[Any] = ray.wait(every, num_returns=len(every), timeout=0)[0] if every else []
        return taken


def _failed(reference: Any) -> bool:
    """Whether a call is known to have failed."""
    import ray

    if not ray.wait([reference], timeout=0)[0]:
        return False
    try:
        ray.get(reference)
    except ray.exceptions.RayError:
        return True
    return False
