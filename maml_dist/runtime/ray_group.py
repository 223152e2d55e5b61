"""RayGroup: the actors of a run on Ray, of which any may be lost at any time, and others come.

A loss drains what was submitted by itself: whoever waits for a lost answer fails as well, down to
the server, which stays at the last update that it could apply. Then the group is formed anew.
"""

import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from uuid import uuid4

from maml_dist.runtime.backend import ActorGroup, ActorLost, Resources
from maml_dist.runtime.messages import Start
from maml_dist.runtime.ray_actors import SERVER, RayServer, RayShard, RayWorker
from maml_dist.runtime.remote import Get
from maml_dist.runtime.server import ParameterServer, Saved
from maml_dist.runtime.shard import TaskShard
from maml_dist.runtime.watch import BACK_OFF, BACK_OFF_MOST, SLOW_PAUSE, Loss, Seat, Watch

TICK = 1.0  # seconds between two looks at who answers
SNAPSHOT = 5.0  # seconds between two snapshots of the server
WORD = 10.0, 60.0  # seconds until it is said what is waited for, and until it is said again
PLACED_WITHIN = 120.0  # seconds for a cluster that does not grow to place all actors
ENDED = 3  # processes that a task ends in a row, on machines that answer, before it ends the run


class RayGroup(ActorGroup):
    """The server beside the driver, and shards and rollout workers wherever there is room."""

    def __init__(self, given: Start, resources: Resources, *, grows: bool) -> None:
        """`grows`: whether machines may come that are not there yet."""
        import ray

        self.slices = given.shard.slices
        self.get = cast(Get, self._get)
        self._given, self._resources, self._grows = given, resources, grows
        self._namespace = f"maml_dist-{uuid4().hex}"
        self._title = f" · {given.title}" if given.title else ""
        self._spec = ray.put(Second(given.modules, given.shard))
        self.shards = [self._shard_seat(rank) for rank in range(resources.shards)]
        self.workers = [
            Seat(name, partial(self._new_worker, name))
            for rank in range(resources.shards)
            for name in self._worker_names(rank)
        ]
        timeout = resources.request.heartbeat_timeout
        self._watches = [Watch(seats, timeout=timeout) for seats in (self.shards, self.workers)]
        self._up: list[Seat] = []  # shards that have answered; slices go round
        self._ticked = self._snapped = 0.0
        self._snapshots: list[Any] = []  # references to states of the server, the oldest first
        self._saved: Saved = 0, given.meta, {}
        self._said: set[str] = set()
        self._reached = -1  # the iteration at which the group was last formed
        self._failures: list[str] = []  # in a row at that iteration, a line each
        self._ended: list[set[int]] = []  # of each the slices whose shard's process has ended
        self._lines: list[str] = []  # of the failure under way
        self._ending: set[int] = set()
        self._server_since: float | None = None  # when it was first seen to be up
        self.server = self._new_server()

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

    def submitted(self, it: int) -> None:
        """Take a snapshot now and then."""
        now = time.monotonic()
        if now - self._snapped > SNAPSHOT:
            self._snapped = now
            self._snapshots.append(self.server.state.remote())
            del self._snapshots[: self._applied() - 1]

    def restore(self, saved: Saved) -> None:
        """Let the server go on from a saved state."""
        self._saved = saved
        self._snapshots = []
        self.get(self.server.restore.remote(saved))

    def drain(self, failure: ActorLost) -> Saved:
        """The server's state; if it is lost, that of its last snapshot, in a new server."""
        import ray

        self._lines = self._lines or [str(failure)]
        try:
            return self.get(self.server.state.remote())
        except ActorLost:
            self._lines = ["the parameter server was lost"]
            saved = self._last_snapshot()
            self._say(f"the parameter server was lost: a new one goes on from iteration {saved[0]}")
            ray.kill(cast(Any, self.server))  # dead or not: its name is free only then
            self.server = self._new_server()
            return saved

    def reform(self, saved: Saved, *, stop: Callable[[], bool]) -> None:
        """Form the group anew, of who answers and what the machines have room for; waits for that.

        Raises:
            ChildProcessError: there were too many failures, or a task ends each process.
        """
        if saved[0] > self._reached:
            self._failures, self._ended = [], []
        self._reached = saved[0]
        self._tick(at_once=True)
        self._failures.append(", ".join(self._lines))
        self._ended.append(self._ending)
        self._lines, self._ending = [], set()
        self._refuse_deadly(saved[0])
        if len(self._failures) > self._resources.request.max_failures:
            raise ChildProcessError(
                f"{len(self._failures)} failures at iteration {saved[0]} and none got by "
                f"(max_failures): {'; '.join(dict.fromkeys(self._failures))}"
            )
        ranged = self._resources.least < self._resources.shards
        self._wait(self._resources.least if ranged else 1, stop=stop)
        self.restore(saved)
        self._say(
            f"goes on from iteration {saved[0]} with {len(self._up)} of {len(self.shards)} shards"
        )

    def close(self) -> None:
        """End the actors."""
        import ray

        for seat in (*self.shards, *self.workers):
            seat.empty()
        ray.kill(cast(Any, self.server))

    def _get(self, references: Any) -> Any:
        """Values; what a user's code raised in an actor is raised here as it was."""
        import ray

        several = references if isinstance(references, list) else [references]
        while True:
            waiting = (
                ray.wait(several, num_returns=len(several), timeout=TICK)[1] if several else []
            )
            self._tick()
            if not waiting:
                break
            idle = min(self._watches[0].idle(), self._server_age())
            if idle > self._resources.request.heartbeat_timeout and self._up:
                self._say(f"the parameter server has not answered for {idle:.0f} s")
                ray.kill(cast(Any, self.server))
        try:
            return ray.get(references)
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if not isinstance(cause, ray.exceptions.RayError):
            raise cause
        raise ActorLost(" ".join(str(cause).split())[:200])

    def _tick(self, *, at_once: bool = False, at_start: bool = False) -> None:
        """Now and then: part from those who are lost, and make others in their place."""
        now = time.monotonic()
        if now - self._ticked < TICK and not (at_once or at_start):
            return
        self._ticked = now
        for watch in self._watches:
            for loss in watch.look(at_once=at_once):
                if loss.unmade and at_start:
                    raise ValueError(f"an actor could not be made: {loss.unmade}")
                self._part(loss)
        for loss in self._watches[0].slow():
            self._part(loss, pause=SLOW_PAUSE)
        for seat in (*self.shards, *self.workers):
            if seat.actor is None and now >= seat.again:
                try:
                    seat.fill()
                except ValueError:  # the name of the one before is still taken
                    seat.again = now + TICK
        self._up = [seat for seat in self.shards if seat.pulse]

    def _part(self, loss: Loss, *, pause: float = 0.0) -> None:
        """Let go of one who is lost, and say so."""
        seat = loss.seat
        alone = loss.died and _answers(seat)
        line = f"{seat.where} {loss.why}"
        if loss.died and seat.pulse and not alone:
            line = f"{seat.where} was lost: its machine does not answer"
        if loss.unmade:
            pause = min(BACK_OFF * 2**seat.failed, BACK_OFF_MOST)
            seat.failed += 1
        if seat.pulse or line not in self._said:
            self._say(line)
        if seat in self._up:
            self._lines.append(line)
            if alone:
                self._ending |= {*range(self._up.index(seat), self.slices, len(self._up))}
        seat.empty(pause=pause)

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
            lacks = max(0, least - len(self._up))
            absent = sum(not seat.pulse for seat in self.workers) if workers else 0
            if not (lacks or absent):
                return
            now = time.monotonic()
            if at_start and now - began > PLACED_WITHIN and not self._grows and not self._room():
                self.close()
                raise ValueError(
                    f"no room for all actors in {PLACED_WITHIN:.0f} s: {self._lacks(lacks, absent)}"
                )
            if now > word:
                self._say(f"waits since {clock}: {self._lacks(lacks, absent)}")
                word = now + WORD[1]
            time.sleep(TICK / 4)
            self._tick(at_start=at_start)

    def _lacks(self, shards: int, workers: int) -> str:
        import ray

        request, there = self._resources.request, ray.cluster_resources()
        free, nodes = ray.available_resources(), sum(node["Alive"] for node in ray.nodes())
        also = f" and {workers} rollout workers (each {request.worker_cpus:g} CPU)"
        return (
            f"{shards} of {len(self.shards)} shards (each {request.cpus:g} CPU and "
            f"{self._resources.gpus:g} GPU){also if workers else ''} are not up; the cluster's "
            f"{nodes} machines have {there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU, "
            f"of which {free.get('CPU', 0):g} and {free.get('GPU', 0):g} are free"
        )

    def _room(self) -> bool:
        """Whether what is free would do for one more shard: then they only take their time."""
        import ray

        free, request = ray.available_resources(), self._resources.request
        there = free.get("CPU", 0.0), free.get("GPU", 0.0)
        return bool(there[0] >= request.cpus and there[1] >= self._resources.gpus)

    def _refuse_deadly(self, it: int) -> None:
        """Raise where the same slice has ended process after process."""
        if len(self._ended) < ENDED:
            return
        common = set.intersection(*self._ended[-ENDED:])
        if common:
            whole = self._given.shard.meta_batch
            tasks = sorted(task for task in range(whole) if task % self.slices in common)
            named = ", ".join(map(str, tasks[:20])) + (" …" if len(tasks) > 20 else "")
            raise ChildProcessError(
                f"iteration {it}, or one collected with it, has ended {ENDED} processes in a row, "
                f"on machines that answer: one of its tasks {named} does (memory, or a crash in "
                "native code)"
            )

    def _server_age(self) -> float:
        """Seconds since the server was first seen to be up; 0: it is not yet."""
        import ray

        if self._server_since is None and ray.wait([self._server_up], timeout=0)[0]:
            self._server_since = time.monotonic()
        return time.monotonic() - self._server_since if self._server_since else 0.0

    def _last_snapshot(self) -> Saved:
        """The newest that was taken before the server was lost."""
        import ray

        for reference in reversed(self._snapshots):
            try:
                saved: Saved = ray.get(reference)
                return saved
            except ray.exceptions.RayError:
                continue
        return self._saved

    def _applied(self) -> int:
        """How many of the snapshots are known to be taken."""
        import ray

        if not self._snapshots:
            return 0
        return len(ray.wait(self._snapshots, num_returns=len(self._snapshots), timeout=0)[0])

    def _say(self, line: str) -> None:
        self._said.add(line)
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    def _new_server(self) -> ParameterServer:
        """Beside the driver: they live and die together, shards come and go."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for method in (
            ParameterServer.update,
            ParameterServer.next_request,
            ParameterServer.finish_update,
        ):
            ray.method(num_returns=2)(cast(Any, method))
        here = ray.get_runtime_context().get_node_id()
        options = {
            "name": SERVER,
            "namespace": self._namespace,
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
        }
        given = self._given
        make = _actor(RayServer).options(**options)
        outer = Second(given.modules, given.outer)
        server = make.remote(given.meta, outer, learned=given.shard.learned, spec=[self._spec])
        self._server_up = server.spec.options(concurrency_group="health").remote()
        self._server_since = None
        return cast(ParameterServer, server)

    def _shard_seat(self, rank: int) -> Seat:
        name = f"TaskShard {rank + 1} of {self._resources.shards}{self._title}"
        return Seat(name, partial(self._new_shard, rank))

    def _new_shard(self, rank: int) -> Any:

        resources = self._resources
        make = _actor(RayShard).options(
            name=self.shards[rank].name,
            namespace=self._namespace,
            num_cpus=resources.request.cpus,
            num_gpus=resources.gpus,
            allow_out_of_order_execution=True,  # else a pulse is asked for after all that waits
            scheduling_strategy=self._placement(),
        )
        workers = self._worker_names(rank)
        return make.remote(self._namespace, device=resources.device, workers=workers)

    def _new_worker(self, name: str) -> Any:

        make = _actor(RayWorker).options(
            name=name,
            namespace=self._namespace,
            num_cpus=self._resources.request.worker_cpus,
            allow_out_of_order_execution=True,
        )
        return make.remote(self._namespace)

    def _worker_names(self, rank: int) -> list[str]:
        count = self._resources.request.workers
        return [
            f"RolloutWorker {i + 1} of {count} of shard {rank + 1}{self._title}"
            for i in range(count)
        ]

    def _placement(self) -> str | None:
        """Inside a placement group, as of a Tune trial, actors stay in it."""
        import ray

        if ray.util.get_current_placement_group():
            return None
        return "SPREAD" if self._resources.request.placement == "spread" else "DEFAULT"


def _actor(kind: type) -> Any:
    """An actor class that answers in a thread of its own besides."""
    import ray

    return cast(Any, ray.remote)(concurrency_groups={"health": 1})(kind)


class Second:
    """Arrives as `value`, after `modules`, which make it possible to unpickle that."""

    def __init__(self, modules: object, value: object) -> None:
        self._both = modules, value

    def __reduce__(self) -> tuple[Any, ...]:
        return _second, self._both


def _second(modules: object, value: object) -> object:
    return value


def _answers(seat: Seat) -> bool:
    """Whether the machine of one who is lost still does."""
    import ray

    for node in ray.nodes():
        if seat.pulse and node["NodeID"] == seat.pulse.node:
            address = node["NodeManagerAddress"], node["NodeManagerPort"]
            try:
                socket.create_connection(address, timeout=2).close()
            except OSError:
                return False
            return bool(node["Alive"])
    return False
