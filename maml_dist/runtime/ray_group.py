"""RayGroup: the actors of a run on Ray, of which any may be lost at any time, and others come.

A loss drains what was submitted by itself: whoever waits for a lost answer fails as well, down to
the server, which stays at the last update that it could apply. Then the group is formed anew.
"""

import operator
import sys
import time
from collections.abc import Callable
from itertools import chain
from typing import Any, cast

from maml_dist.runtime.backend import ActorGroup, ActorLost, BlockRefs, Resources
from maml_dist.runtime.failures import ENDED, Failures
from maml_dist.runtime.messages import Start
from maml_dist.runtime.ray_making import Maker
from maml_dist.runtime.ray_peers import Peers, raised
from maml_dist.runtime.ray_server import LosableServer
from maml_dist.runtime.remote import Get
from maml_dist.runtime.server import Saved
from maml_dist.runtime.shard import TaskShard
from maml_dist.runtime.watch import (
    AWAY,
    BACK_OFF,
    BACK_OFF_MOST,
    SLOW_PAUSE,
    Loss,
    Seat,
    Watch,
)

TICK = 1.0  # seconds between two looks at who answers
WORD = 10.0, 60.0  # seconds until it is said what is waited for, and until it is said again
PLACED_WITHIN = 120.0  # seconds for a cluster that does not grow to place all actors


class RayGroup(ActorGroup):
    """The server beside the driver, and shards and rollout workers wherever there is room."""

    parallel = True

    def __init__(self, given: Start, resources: Resources, *, grows: bool) -> None:
        """`grows`: whether machines may come that are not there yet."""
        self.slices = given.shard.slices
        self.get = cast(Get, self._get)
        self._resources, self._grows = resources, grows
        self._maker = Maker(given, resources)
        self.shards, self.workers = self._maker.shards(), self._maker.workers()
        self.parts = self._maker.server_parts()
        self._server = LosableServer(self._maker, given)
        self.server = self._server.actor
        self._peers = Peers(given)
        self.linked = resources.request.server != "one"
        timeout = resources.request.heartbeat_timeout
        self._watches = [Watch(seats, timeout=timeout) for seats in self._seats]
        self._up: list[Seat] = []  # shards that have answered; slices go round
        self._ticked = 0.0
        self._said: set[str] = set()
        self._reason = ""  # of the loss under way, in Ray's words
        self._furthest = 0  # iteration that was submitted
        self._away = 0.0  # when this process was last found to have been away
        self._parted = 0.0  # when somebody was last found to be lost, whom the server waited for
        self._patience = resources.request.heartbeat_timeout  # with the server
        self._failures = Failures(
            most=resources.request.max_failures,
            meta_batch=given.shard.meta_batch,
            slices=self.slices,
        )

    @property
    def _seats(self) -> tuple[list[Seat], ...]:
        return self.shards, self.workers, self.parts

    def open(self) -> None:
        """Wait until the shards are up.

        Raises:
            ValueError: there is no room for them, or they cannot be made.
        """
        self._tick(at_start=True)
        everyone = self._resources.least == self._resources.shards
        self._wait(self._resources.least, at_start=True, workers=everyone)

    def shard(self, slice: int) -> TaskShard:
        """The one that computes a slice, now."""
        if not self._up:
            raise ActorLost("no shard is left")
        return cast(TaskShard, self._up[slice % len(self._up)].actor)

    def shards_up(self) -> list[TaskShard]:
        """Those that compute, now."""
        if not self._up:
            raise ActorLost("no shard is left")
        return [cast(TaskShard, seat.actor) for seat in self._up]

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
        shards = self._up[: self.slices]
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
        together = len({seat.pulse.node for seat in seats if seat.pulse}) == 1
        number = len(self.parts)
        try:
            self._peers.form(
                actors[:number], actors[number:], saved, together=together, get=self._get
            )
        except ActorLost as error:
            self._tick(at_once=True)
            answer = [s.actor for s in [*self.parts, *self._up] if s.question is None]
            if all(any(other is one for other in answer) for one in actors):
                self.linked = False
                self._say(f"{error}: from now on one server makes the updates")
            raise

    def submitted(self, it: int) -> None:
        """Take a snapshot now and then."""
        if self._server.due():
            self._server.snapshot()

    def restore(self, saved: Saved) -> None:
        """Let the server go on from a saved state."""
        self._server.begins_at(saved)
        self.get(self.server.restore.remote(saved))

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
        reached, rows, error = self._peers.dissolve(self._wait_for)
        if reached is not None:
            self.rows = dict(enumerate(rows, reached[0] - len(rows) + 1))
            self._server.begins_at(reached)
        try:
            if reached is not None:
                self.get(self.server.restore.remote(reached))
            return reached or self.get(self.server.state.remote()), error
        except ActorLost:
            self._failures.note("the parameter server was lost")
            saved = self._server.renew()
            self.server = self._server.actor
            self._say(f"the parameter server was lost: a new one goes on from iteration {saved[0]}")
            return saved, error

    def reform(self, saved: Saved, *, stop: Callable[[], bool]) -> None:
        """Form the group anew, of who answers and what the machines have room for; waits for that.

        Raises:
            ChildProcessError: there were too many failures, or a task ends each process.
        """
        self._tick(at_once=True)
        self._failures.count(saved[0], self._reason, furthest=self._furthest if self.linked else 0)
        pause = time.monotonic() + self._failures.in_a_row - 1  # what fails at once fails again
        while time.monotonic() < pause and not stop():
            time.sleep(TICK / 4)
        ranged = self._resources.least < self._resources.shards
        self._wait(self._resources.least if ranged else 1, stop=stop)
        self.restore(saved)
        self._say(
            f"goes on from iteration {saved[0]} with {len(self._up)} of {len(self.shards)} shards"
        )

    def close(self) -> None:
        """End the actors."""
        for seat in chain(*self._seats):
            seat.empty()
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
            self._tick()
            if len(ready) >= number:
                return
            waited = time.monotonic() - max(began, self._away, self._parted)
            idle = min(waited, self._server.age())
            if self._up:  # else there is nobody who could be waited for
                idle = min(idle, self._watches[0].idle())
            if idle > self._patience:
                self._patience *= 2  # its updates may take that long
                if self._peers.actors:
                    self._say(f"the shards have waited for each other for {idle:.0f} s")
                    self._peers.leave()
                else:
                    self._say(f"the parameter server has not answered for {idle:.0f} s")
                    self._server.kill()

    def _tick(self, *, at_once: bool = False, at_start: bool = False) -> None:
        """Now and then: part from those who are lost, and make others in their place."""
        now = time.monotonic()
        if now - self._ticked < TICK and not (at_once or at_start):
            return
        if now - self._ticked > AWAY:
            self._away = now
        self._ticked = now
        for watch in self._watches:
            for loss in watch.look(at_once=at_once):
                if loss.unmade and at_start:
                    raise ValueError(f"an actor could not be made: {loss.unmade}")
                self._part(loss)
                if at_start and loss.seat.failed >= ENDED:
                    raise ValueError(f"{loss.seat.name}: {ENDED} processes ended as it was made")
        for loss in self._watches[0].slow():
            self._part(loss, pause=SLOW_PAUSE)
        for seat in chain(*self._seats):
            if seat.actor is None and now >= seat.again:
                try:
                    seat.fill()
                except ValueError:  # the name of the one before is still taken
                    seat.again = now + TICK
        self._up = [seat for seat in self.shards if seat.pulse]

    def _part(self, loss: Loss, *, pause: float = 0.0) -> None:
        """Let go of one who is lost, and say so."""
        seat, self._parted = loss.seat, time.monotonic()
        alone = loss.died and bool(seat.answers())
        line = f"{seat.where} {loss.why}"
        if loss.died and seat.pulse and not alone:
            line = f"{seat.where} was lost: its machine does not answer"
        if seat.pulse is None:
            pause = min(BACK_OFF * 2**seat.failed, BACK_OFF_MOST)
            seat.failed += 1
        if seat.pulse or line not in self._said:
            self._say(line)
        if seat in self._up:
            members = self._peers.actors[len(self.parts) :] or [one.actor for one in self._up]
            rank = next((n for n, one in enumerate(members) if one is seat.actor), self.slices)
            mine = range(rank, self.slices, len(members))
            self._failures.note(line, slices=mine if alone else ())
        if any(seat.actor is member for member in self._peers.actors):
            self._peers.leave()  # the others may wait for it
        seat.empty(pause=pause)

    def _wait_for(self, references: list[Any]) -> None:
        """Until what is referred to is there, or lost."""
        import ray

        while references:
            references = ray.wait(references, num_returns=len(references), timeout=TICK)[1]
            self._tick()

    def _wait(
        self,
        least: int,
        *,
        stop: Callable[[], bool] = lambda: False,
        at_start: bool = False,
        workers: bool = False,
    ) -> None:
        """Until so many shards are up, and all `workers`; says what it waits for."""
        began = time.monotonic()
        clock, word = time.strftime("%H:%M:%S"), began + WORD[0]
        while not stop():
            others = [*self.parts, *(self.workers if workers else ())]
            if len(self._up) >= least and all(seat.pulse for seat in others):
                return
            now = time.monotonic()
            if now > word:
                lacks, unplaced = self._lacks(least, workers=workers)
                late = now - began > PLACED_WITHIN
                if at_start and late and unplaced and not self._grows:
                    raise ValueError(f"waited {now - began:.0f} s {lacks}")
                if unplaced or now - began > WORD[1]:  # what has room may take its time
                    self._say(f"waits since {clock} {lacks}")
                word = now + WORD[1] if unplaced else now + WORD[0]
            time.sleep(TICK / 4)
            self._tick(at_start=at_start)

    def _lacks(self, least: int, *, workers: bool) -> tuple[str, int]:
        """What is not up that should be, and what there is; and how many have no room."""
        import ray

        shards = [seat for seat in self.shards if not seat.pulse]
        waiting = shards[: max(0, least - len(self._up))]
        waiting += [seat for seat in self.workers if workers and not seat.pulse]
        waiting += [seat for seat in self.parts if not seat.pulse]
        request, there = self._resources.request, ray.cluster_resources()
        free, machines = ray.available_resources(), sum(node["Alive"] for node in ray.nodes())
        unplaced = sum(not seat.placed for seat in waiting)
        found = f"{unplaced} have no room" if unplaced else "all are coming up"
        return (
            f"for {_count(len(waiting), 'actor')}, to have {_count(least, 'shard')}"
            f"{' and workers' if workers else ''} (a shard has {request.cpus:g} CPU and "
            f"{self._resources.gpus:g} GPU): {found}; of "
            f"{there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU of {machines} machines "
            f"{free.get('CPU', 0):g} and {free.get('GPU', 0):g} are free"
        ), unplaced

    def _say(self, line: str) -> None:
        self._said.add(line)
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
