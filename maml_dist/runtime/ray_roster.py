"""Roster: who of a run's actors is up. Parts from those who are lost, and makes others for them."""

import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

from maml_dist.loggers.lines import Level, say
from maml_dist.runtime.backend import Resources
from maml_dist.runtime.failures import ENDED
from maml_dist.runtime.meter import RESTARTS, UP, Reading
from maml_dist.runtime.ray_making import Maker
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
LAST_WORD = 1.0  # seconds that actors have for it
PLACED_WITHIN = 120.0  # seconds for a cluster that does not grow to place all actors


class Roster:
    """The seats of shards, rollout workers and server parts, and who answers in them."""

    def __init__(
        self,
        maker: Maker,
        resources: Resources,
        *,
        grows: bool,
        on_loss: Callable[[Seat, str, bool], None],
    ) -> None:
        """`grows`: whether machines may come that are not there yet.

        `on_loss` is called before a seat is emptied whose actor was up: with the line that was
        said, and whether its process alone has ended, on a machine that answers.
        """
        self._resources, self._grows, self._on_loss = resources, grows, on_loss
        self.shards, self.workers, self.parts = (
            maker.shards(),
            maker.workers(),
            maker.server_parts(),
        )
        self._seats = self.shards, self.workers, self.parts
        timeout = resources.request.heartbeat_timeout
        self._watches = [Watch(seats, timeout=timeout) for seats in self._seats]
        self.up: list[Seat] = []  # shards that have answered; slices go round
        self.away = 0.0  # when this process was last found to have been away
        self.parted = 0.0  # when somebody was last found to be lost, whom others waited for
        self._ticked = 0.0
        self._said: set[str] = set()
        self.restarts: Counter[str] = Counter()  # by roles

    def reading(self) -> Reading:
        """Its metrics now; from any thread."""
        up = Counter(dict.fromkeys((seat.role for seat in chain(*self._seats)), 0))
        up.update(seat.role for seat in chain(*self._seats) if seat.pulse)
        found: Reading = {(UP, (role,)): float(number) for role, number in up.items()}
        return found | {(RESTARTS, (role,)): float(by) for role, by in dict(self.restarts).items()}

    def idle(self) -> float:
        """Seconds for which no shard has had anything to do; infinite where none is up."""
        return self._watches[0].idle() if self.up else float("inf")

    def close(self) -> None:
        """End the actors, those that answer after a last word in their logs."""
        import ray

        up = [seat.actor for seat in chain(*self._seats) if seat.pulse]
        last = [actor.ends.options(concurrency_group="health").remote() for actor in up]
        if last:
            ray.wait(last, num_returns=len(last), timeout=LAST_WORD)
        for seat in chain(*self._seats):
            seat.empty()

    def tick(self, *, at_once: bool = False, at_start: bool = False) -> None:
        """Now and then: part from those who are lost, and make others in their place."""
        now = time.monotonic()
        if now - self._ticked < TICK and not (at_once or at_start):
            return
        if now - self._ticked > AWAY:
            self.away = now
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
                    self.restarts[seat.role] += seat.lost
                    seat.lost = False
                except ValueError:  # the name of the one before is still taken
                    seat.again = now + TICK
        self.up = [seat for seat in self.shards if seat.pulse]

    def _part(self, loss: Loss, *, pause: float = 0.0) -> None:
        """Let go of one who is lost, and say so."""
        seat, self.parted = loss.seat, time.monotonic()
        alone = loss.died and bool(seat.answers())
        line = f"{seat.where} {loss.why}"
        if loss.died and seat.pulse and not alone:
            line = f"{seat.where} was lost: its machine does not answer"
        if seat.pulse is None:
            pause = min(BACK_OFF * 2**seat.failed, BACK_OFF_MOST)
            seat.failed += 1
        if seat.pulse or line not in self._said:
            self.say(line)
        if seat.pulse:
            seat.lost = True
            self._on_loss(seat, line, alone)
        seat.empty(pause=pause)

    def wait_for(self, references: list[Any]) -> None:
        """Until what is referred to is there, or lost."""
        import ray

        while references:
            references = ray.wait(references, num_returns=len(references), timeout=TICK)[1]
            self.tick()

    def wait(
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
            if len(self.up) >= least and all(seat.pulse for seat in others):
                return
            now = time.monotonic()
            if now > word:
                lacks, unplaced = self._lacks(least, workers=workers)
                late = now - began > PLACED_WITHIN
                if at_start and late and unplaced and not self._grows:
                    raise ValueError(f"waited {now - began:.0f} s {lacks}")
                if unplaced or now - began > WORD[1]:  # what has room may take its time
                    self.say(f"waits since {clock} {lacks}")
                word = now + WORD[1] if unplaced else now + WORD[0]
            time.sleep(TICK / 4)
            self.tick(at_start=at_start)

    def _lacks(self, least: int, *, workers: bool) -> tuple[str, int]:
        """What is not up that should be, and what there is; and how many have no room."""
        import ray

        shards = [seat for seat in self.shards if not seat.pulse]
        waiting = shards[: max(0, least - len(self.up))]
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

    def say(self, line: str, *, level: Level = "warning", **fields: Any) -> None:
        """Tell the user, with the time; `fields` go into a line of JSON."""
        self._said.add(line)
        say(line, level=level, clock=True, **fields)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
