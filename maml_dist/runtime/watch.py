"""Watch: who of a run's actors answers. Silence is a failure, as much as a death.

An actor that is asked for its pulse answers in a thread of its own, whatever it computes.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from maml_dist.runtime.pulse import Pulse

EVERY = 2.0  # seconds between an answer and the next question
AWAY = 10.0  # seconds without a look after which this process itself has been away
SLOW, SLOW_TIMES = 30.0, 20  # seconds, and times what is typical, that a slow gradient takes
BACK_OFF, BACK_OFF_MOST = 5.0, 300.0  # seconds until one that could not be made is made again
SLOW_PAUSE = 600.0  # seconds until the seat of a slow one is filled again
UP_WITHIN = 300.0  # seconds for one that has a machine to come up; twice as many the next time


@dataclass
class Seat:
    """The place of one actor in a run, whoever holds it."""

    name: str
    make: Callable[[], Any]
    actor: Any = None
    pulse: Pulse | None = None  # the last answer; None: it is not up yet
    question: Any = None  # a reference to the answer that is waited for
    since: float = 0.0  # when it was asked, or has answered
    again: float = 0.0  # when it may be filled
    failed: int = 0  # times in a row that it could not be made
    lost: bool = False  # whether one that was up has been, and none is in its place

    @property
    def role(self) -> str:
        """What kind of actor it is for, as in its name."""
        return self.name.partition(" ")[0]

    @property
    def where(self) -> str:
        """Its name and machine."""
        return f"{self.name} on {self.pulse.host}" if self.pulse else self.name

    @property
    def placed(self) -> bool:
        """Whether the actor has a machine, on which it comes up or is."""
        from ray._private import state

        if self.actor is None:
            return False
        return bool(state.actors(self.actor._actor_id.hex()).get("Pid"))

    def fill(self) -> None:
        """Make the actor; it is up when it has answered."""
        self.actor = self.make()
        self._ask()

    def empty(self, *, pause: float = 0.0) -> None:
        """Let go of the actor, which is killed; the seat is filled again after `pause` seconds."""
        import ray

        if self.actor is not None:
            ray.kill(self.actor)
        self.actor = self.pulse = self.question = None
        self.again = time.monotonic() + pause

    def answers(self) -> bool | None:
        """Whether Ray on its machine takes a connection; None: nothing is heard from there."""
        import ray

        for node in ray.nodes():
            if self.pulse and node["NodeID"] == self.pulse.node and node["Alive"]:
                address = node["NodeManagerAddress"], node["NodeManagerPort"]
                try:
                    socket.create_connection(address, timeout=1).close()
                except ConnectionRefusedError:
                    return False
                except OSError:
                    return None
                return True
        return False

    def _ask(self, *, again: bool = False) -> None:
        """`again`: the silence goes on."""
        self.question = self.actor.pulse.options(concurrency_group="health").remote()
        if not again:
            self.since = time.monotonic()


def by_machines(seats: Sequence[Seat]) -> list[Seat]:
    """Those that are up, so that those of one machine are next to each other."""
    up = [(seat.pulse.node, seat) for seat in seats if seat.pulse]
    machines = [*dict.fromkeys(node for node, _ in up)]
    return [seat for _, seat in sorted(up, key=lambda pair: machines.index(pair[0]))]


@dataclass(frozen=True)
class Loss:
    """An actor that is gone, and why."""

    seat: Seat
    why: str
    unmade: str = ""  # what its constructor raised
    died: bool = False  # its process has, of itself


class Watch:
    """Looks after the seats of a run."""

    def __init__(self, seats: Sequence[Seat], *, timeout: float) -> None:
        """`timeout`: seconds of silence after which an actor is lost."""
        self._seats, self._timeout = seats, timeout
        self._looked = time.monotonic()

    def look(self, *, at_once: bool = False) -> list[Loss]:
        """Who is lost since the last look; `at_once` asks everybody and waits a little."""
        import ray

        now = time.monotonic()
        away, self._looked = now - self._looked, now
        for seat in self._seats:
            if seat.question is None and seat.actor is not None:
                if at_once or now - seat.since > EVERY:
                    seat._ask()
            elif seat.question is not None and away > AWAY:
                seat.since += away  # it had no chance to be heard
        asked = {seat.question: seat for seat in self._seats if seat.question is not None}
        if not asked:
            return []
        up = sum(seat.pulse is not None for seat in asked.values())
        number = up if at_once else len(asked)
        ready, _ = ray.wait([*asked], num_returns=max(1, number), timeout=EVERY if at_once else 0)
        found = [self._heard(asked[reference]) for reference in ready]
        found += [
            Loss(seat, f"has not answered for {now - seat.since:.0f} s")
            for seat in asked.values()
            if seat.question is not None and seat.pulse and now - seat.since > self._timeout
        ]
        found += [self._not_up(seat, now) for seat in self._seats]
        return [loss for loss in found if loss]

    def slow(self) -> list[Loss]:
        """Who takes many times what is typical for a gradient, while others wait for it."""
        pulses = [(seat, seat.pulse) for seat in self._seats if seat.pulse]
        times = [pulse.typical for _, pulse in pulses if pulse.typical]
        if not times:
            return []
        limit = max(SLOW, SLOW_TIMES * median(times))
        return [
            Loss(seat, f"takes {pulse.seconds:.0f} s for what takes others {median(times):.3g} s")
            for seat, pulse in pulses
            if pulse.work == "gradient" and pulse.seconds > limit
            if any(not other.work and other.seconds > limit / 2 for _, other in pulses)
        ]

    def idle(self) -> float:
        """Seconds for which nobody has had anything to do, as far as is known."""
        pulses = [seat.pulse for seat in self._seats if seat.pulse]
        return min((0.0 if pulse.work else pulse.seconds for pulse in pulses), default=0.0)

    def _not_up(self, seat: Seat, now: float) -> Loss | None:
        """One that has a machine, and does not come up there: it may have frozen as it was made."""
        asked = seat.question is not None and not seat.pulse
        if not asked or now - seat.since < UP_WITHIN * 2 ** min(seat.failed, 4):
            return None
        if not seat.placed:  # it has all its time from when there is room
            seat.since = now
            return None
        return Loss(seat, f"has not come up within {now - seat.since:.0f} s")

    def _heard(self, seat: Seat) -> Loss | None:
        import ray

        question, seat.question = seat.question, None
        try:
            seat.pulse = ray.get(question)
        except ray.exceptions.RayError as error:
            loss = _loss(seat, error)
            if loss is None:
                seat._ask(again=True)
            return loss
        seat.since, seat.failed = time.monotonic(), 0
        return None


def _loss(seat: Seat, error: Exception) -> Loss | None:
    """What is lost by an error; None where only the way there is, and may be mended."""
    import ray

    cause = (
        getattr(error, "cause", error) if isinstance(error, ray.exceptions.RayTaskError) else error
    )
    if "creation task" in str(cause).partition("\n")[0]:
        return Loss(seat, f"could not be made: {last_line(cause)}", unmade=last_line(cause))
    if isinstance(cause, ray.exceptions.ActorUnavailableError):
        gone = seat.pulse is not None and seat.answers() is False
        return Loss(seat, "was lost: Ray on its machine has ended") if gone else None
    why = "was lost: its process has ended" if seat.pulse else "has ended as it came up"
    return Loss(seat, why, died=True)


def last_line(error: object) -> str:
    """The last line of an error's text: of a traceback in it, what was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
