"""RayGroup: the actors of a run on Ray, of which any may be lost at any time, and others come.

A loss drains what was submitted by itself: whoever waits for a lost answer fails as well, down to
the server, which stays at the last update that it could apply. Then the group is formed anew.
"""

import math
import operator
import time
from collections.abc import Callable
from typing import Any, cast

from maml_dist.runtime.backend import ActorGroup, ActorLost, BlockRefs, Resources
from maml_dist.runtime.failures import Failures
from maml_dist.runtime.messages import Start
from maml_dist.runtime.meter import Meter
from maml_dist.runtime.partial_sums import holder, share
from maml_dist.runtime.ranges import without_rows
from maml_dist.runtime.ray_actors import SERVER
from maml_dist.runtime.ray_making import Maker
from maml_dist.runtime.ray_peers import Peers, raised
from maml_dist.runtime.ray_roster import TICK, Roster
from maml_dist.runtime.ray_server import LosableServer
from maml_dist.runtime.remote import Get
from maml_dist.runtime.server import Saved
from maml_dist.runtime.shard import TaskShard
from maml_dist.runtime.watch import Seat, by_machines

RELINKS_AFTER = 300.0  # seconds that one server stands in for shards that could not be linked


class RayGroup(ActorGroup):
    """The server beside the driver, and shards and rollout workers wherever there is room."""

    parallel = True

    def __init__(self, given: Start, resources: Resources, *, grows: bool) -> None:
        """`grows`: whether machines may come that are not there yet."""
        self.slices = given.shard.slices
        self.get = cast(Get, self._get)
        self._resources = resources
        self._maker = Maker(given, resources)
        self._roster = Roster(self._maker, resources, grows=grows, on_loss=self._lost)
        roster = self._roster
        self.shards, self.workers, self.parts = roster.shards, roster.workers, roster.parts
        self._server = LosableServer(self._maker, given)
        self.server = self._server.actor
        self._peers, self._tables = Peers(given), given.shard.tables
        self.linked = resources.request.server != "one"
        self._relinks_at = math.inf  # where one server stands in for links
        self._relinks_after = RELINKS_AFTER
        self._reason = ""  # of the loss under way, in Ray's words
        self._furthest = 0  # iteration that was submitted
        self._patience = resources.request.heartbeat_timeout  # with the server
        self._failures = Failures(
            most=resources.request.max_failures,
            meta_batch=given.shard.meta_batch,
            slices=self.slices,
        )
        self._meter = Meter(given.shard.labels, roster.reading)  # last: `close` ends it

    def open(self) -> None:
        """Wait until the shards are up.

        Raises:
            ValueError: there is no room for them, or they cannot be made.
        """
        self._roster.tick(at_start=True)
        everyone = self._resources.least == self._resources.shards
        self._roster.wait(self._resources.least, at_start=True, workers=everyone)

    def shard(self, slice: int) -> TaskShard:
        """The one that computes a slice, now."""
        if not self._roster.up:
            raise ActorLost("no shard is left")
        up = self._roster.up
        return cast(TaskShard, up[holder(slice, self.slices, len(up))].actor)

    def shards_up(self) -> list[TaskShard]:
        """Those that compute, now."""
        if not self._roster.up:
            raise ActorLost("no shard is left")
        return [cast(TaskShard, seat.actor) for seat in self._roster.up]

    def first(self, references: list[Any]) -> list[Any]:
        """Waits until one of them is there, or lost; returns those."""
        import ray

        self._wait_until(references, 1)
        return list(ray.wait(references, num_returns=1, fetch_local=False)[0])

    def block(self, count: int, *, keep: bool) -> BlockRefs:
        """Have the linked actors do the next `count` iterations; links them up where they are not.

        Raises:
            ActorLost: one is gone, or they do not reach each other.
        """
        self._link()
        snapshot = self._server.due()
        refs = self._peers.block(count, keep=keep or snapshot)
        if keep or snapshot:
            self._server.snapshot(refs.saved)
            self.server = self._server.actor
        self._furthest += count
        return refs

    def _link(self) -> None:
        """Link those up who are up now, where the group is of others."""
        shards = by_machines(self._roster.up[: self.slices])
        seats = [*self.parts, *shards]
        actors, linked = [seat.actor for seat in seats], self._peers.actors
        if not shards or not all(seat.pulse for seat in self.parts):
            raise ActorLost("no shard is left" if not shards else "a server part is gone")
        if len(actors) == len(linked) and all(map(operator.is_, actors, linked)):
            return
        if not all(any(one is other for other in actors) for one in linked):
            raise ActorLost("one of the group is gone")
        if linked:
            self.restore(self._peers.finished(self._get))
        saved = self._server.saved
        self._furthest = saved[0]
        machines = [seat.pulse.node for seat in seats if seat.pulse]
        number = len(self.parts)
        try:
            self._peers.form(
                actors[:number], actors[number:], saved, machines=machines, get=self._get
            )
        except ActorLost as error:
            self._roster.tick(at_once=True)
            answer = [s.actor for s in [*self.parts, *self._roster.up] if s.question is None]
            if all(any(other is one for other in answer) for one in actors):
                if self._tables:
                    raise ChildProcessError(
                        f"{error}: sparse parameters need shards that reach each other"
                    ) from None
                self.linked, self._relinks_at = False, time.monotonic() + self._relinks_after
                self._relinks_after *= 2  # a try may take a minute
                self._roster.say(f"{error}: one server makes the updates, until they can be linked")
            raise

    def submitted(self, it: int) -> None:
        """Take a snapshot now and then, and where one server stands in for links, try these again.

        Raises:
            ActorLost: the latter; so that the group is formed anew.
        """
        if time.monotonic() > self._relinks_at:
            self.linked, self._relinks_at = True, math.inf
            raise ActorLost("the shards are to be linked again")
        if self._server.due():
            self._server.snapshot()

    def restore(self, saved: Saved) -> None:
        """Let the server go on from a saved state."""
        self._server.begins_at(saved)
        self.get(self.server.restore.remote(without_rows(saved)))

    def drain(self, failure: ActorLost) -> Saved:
        """The server's state; if it is lost, that of its last snapshot, in a new server."""
        self._reason = str(failure)
        saved, error = self._reached()
        if error is not None:
            raise error
        return saved

    def reached(self) -> Saved:
        """The server's state, when an error has ended the run."""
        return self._reached()[0]

    def _reached(self) -> tuple[Saved, Exception | None]:
        """The server's state, and what a user's code has raised."""
        reached, rows, error = self._peers.dissolve(self._roster.wait_for)
        if reached is not None:
            self.rows = dict(enumerate(rows, reached[0] - len(rows) + 1))
            self._server.begins_at(reached)
        try:
            if reached is not None:
                self.get(self.server.restore.remote(without_rows(reached)))
                return reached, error
            return self._server.with_tables(self.get(self.server.state.remote())), error
        except ActorLost:
            self._failures.note("the parameter server was lost")
            saved = self._server.renew()
            self._roster.restarts[SERVER] += 1
            self.server = self._server.actor
            self._roster.say(
                f"the parameter server was lost: a new one goes on from iteration {saved[0]}"
            )
            return saved, error

    def reform(self, saved: Saved, *, stop: Callable[[], bool]) -> None:
        """Form the group anew, of who answers and what the machines have room for; waits for that.

        Raises:
            ChildProcessError: there were too many failures, or a task ends each process.
        """
        self._roster.tick(at_once=True)
        self._failures.count(saved[0], self._reason, furthest=self._furthest if self.linked else 0)
        pause = time.monotonic() + self._failures.in_a_row - 1  # what fails at once fails again
        while time.monotonic() < pause and not stop():
            time.sleep(TICK / 4)
        ranged = self._resources.least < self._resources.shards
        self._roster.wait(self._resources.least if ranged else 1, stop=stop)
        self.restore(saved)
        up, every = len(self._roster.up), len(self.shards)
        line = f"goes on from iteration {saved[0]} with {up} of {every} shards"
        self._roster.say(line, level="info", iteration=saved[0], shards=up)

    def close(self) -> None:
        """End the actors."""
        self._meter.close()
        cast(Any, self.server).ends.options(concurrency_group="health").remote()
        self._roster.close()
        self._server.kill()
        self._maker.close()

    def _get(self, references: Any) -> Any:
        """Values; what a user's code raised in an actor is raised here as it was."""
        import ray

        several = references if isinstance(references, list) else [references]
        self._wait_until(several, len(several))
        try:
            return ray.get(references)
        except ray.exceptions.RayError as error:
            lost = error
        if (theirs := raised(lost)) is not None:
            raise theirs
        cause = getattr(lost, "cause", None) or lost
        raise ActorLost(" ".join(str(cause).split())[:200])

    def _wait_until(self, references: list[Any], number: int) -> None:
        """Until so many of them are there, or lost; ends who is silent."""
        import ray

        began = time.monotonic()
        while references:
            ready, _ = ray.wait(references, num_returns=number, timeout=TICK, fetch_local=False)
            self._roster.tick()
            if len(ready) >= number:
                return
            waited = time.monotonic() - max(began, self._roster.away, self._roster.parted)
            idle = min(waited, self._server.age(), self._roster.idle())
            if idle > self._patience:
                self._patience *= 2  # its updates may take that long
                if self._peers.actors:
                    self._roster.say(f"the shards have waited for each other for {idle:.0f} s")
                    self._peers.leave()
                else:
                    self._roster.say(f"the parameter server has not answered for {idle:.0f} s")
                    self._server.kill()

    def _lost(self, seat: Seat, line: str, alone: bool) -> None:
        """One that was up is lost, which is noted; the others may wait for it."""
        members = self._peers.actors[len(self.parts) :] or [one.actor for one in self._roster.up]
        if seat in self._roster.up:
            rank = next((n for n, one in enumerate(members) if one is seat.actor), None)
            blamed = alone and rank is not None
            mine = share(self.slices, rank or 0, len(members)) if blamed else ()
            self._failures.note(line, slices=mine)
        if any(seat.actor is member for member in self._peers.actors):
            self._peers.leave()
