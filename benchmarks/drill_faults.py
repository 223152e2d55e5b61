"""The drill's faults: a Ray cluster of this machine, and what is done to it and to the run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.drill_driver import Driver
from maml_dist.runtime.ray_options import mute

CORES = (2, 2)  # of the machines; the head has none for shards
AWAY = 6.0  # seconds until a lost machine is replaced, a place is back, a pause ends
SECOND = 30.0  # seconds in which a second driver is to have been refused
PAUSE = 2.0  # seconds of silence that are no failure


class Machines:
    """A cluster whose machines can be lost, and the run on it."""

    driver: Driver

    def __init__(self) -> None:
        self._mends: list[tuple[float, Callable[[], None]]] = []

    def __enter__(self) -> "Machines":
        os.environ["RAY_AUTH_MODE"] = "disabled"  # of a cluster on this machine, for this test
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - else what else runs starves them
        quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": quick},
        )
        self._nodes = [self._cluster.add_node(num_cpus=cores) for cores in CORES]
        self.address: str = self._cluster.address
        mute()
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        return self

    def __exit__(self, *exception: Any) -> None:
        ray.shutdown()
        self._cluster.shutdown()

    def pids(self, kind: str) -> list[int]:
        """The processes of the run's actors whose names begin so."""
        from ray._private import state

        actors = state.actors().values()
        return [
            int(each["Pid"])
            for each in sorted(actors, key=lambda each: str(each["Name"]))
            if each["State"] == "ALIVE" and str(each["Name"]).startswith(kind) and each["Pid"]
        ]

    def send(self, number: int, pids: Iterable[int]) -> None:
        """Send processes a signal."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def lose(self, draw: random.Random) -> None:
        """A machine: all its processes at once. Another comes later."""
        node = draw.choice(self._nodes)
        self._nodes.remove(node)
        self.send(signal.SIGKILL, family(node.all_processes["raylet"][0].process.pid))
        self._cluster.remove_node(node, allow_graceful=False)
        self.later(AWAY, self._another)

    def lose_raylet(self, draw: random.Random) -> None:
        """A machine's Ray alone; another machine comes later."""
        node = draw.choice(self._nodes)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self.later(AWAY, self._another)

    def _another(self) -> None:
        """A machine more; later, where what else runs here keeps it from starting in time."""
        try:
            self._nodes.append(self._cluster.add_node(num_cpus=CORES[0]))
        except Exception as error:  # Ray raises no other
            if "timed out during startup" not in str(error):
                raise
            self.later(AWAY, self._another)

    def later(self, seconds: float, mend: Callable[[], None]) -> None:
        """Mend something then."""
        self._mends.append((time.monotonic() + seconds, mend))

    def mend(self, *, now: bool = False) -> None:
        """What is due, or everything."""
        due = [each for each in self._mends if now or each[0] <= time.monotonic()]
        for each in due:
            self._mends.remove(each)
            each[1]()


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(each for child in children for each in family(int(child)))]


def _one(kind: str, number: int) -> Callable[[Machines, random.Random], None]:
    def strike(machines: Machines, draw: random.Random) -> None:
        if pids := machines.pids(kind):
            machines.send(number, [draw.choice(pids)])

    return strike


def _all(kind: str) -> Callable[[Machines, random.Random], None]:
    def strike(machines: Machines, draw: random.Random) -> None:
        machines.send(signal.SIGKILL, machines.pids(kind))

    return strike


def _pause(machines: Machines, draw: random.Random) -> None:
    if pids := machines.pids("TaskShard"):
        pid = draw.choice(pids)
        machines.send(signal.SIGSTOP, [pid])
        machines.later(PAUSE, lambda: machines.send(signal.SIGCONT, [pid]))


def _pause_driver(machines: Machines, draw: random.Random) -> None:
    machines.driver.signal(signal.SIGSTOP)
    machines.later(2 * AWAY, lambda: machines.driver.signal(signal.SIGCONT))


def _end_driver(number: int, status: int) -> Callable[[Machines, random.Random], None]:
    return lambda machines, draw: machines.driver.signal(number, status=status)


def _second_driver(machines: Machines, draw: random.Random) -> None:
    """Which is refused, unless the first has finished or was ended meanwhile.

    Of two that start the quicker trains: so the first is to have begun.
    """
    if not machines.driver.trains:
        machines.later(1.0, lambda: _second_driver(machines, draw))
        return
    resume = ["--resume", str(machines.driver.folder), "--address", machines.address]
    again = [sys.executable, "-m", "maml_dist.train", *resume]
    second = subprocess.Popen(again, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    machines.driver.rivals.append(second)

    def judge() -> None:
        said = second.communicate(timeout=120)[1]
        if second.returncode == -signal.SIGKILL:
            return
        refused = second.returncode and "is being trained by" in said
        if not refused and (second.returncode or machines.driver.runs(patience=120)):
            machines.driver.wrong.append(f"a second driver: {second.returncode} {said[-200:]}")

    machines.later(SECOND, judge)


def _damage_checkpoint(machines: Machines, draw: random.Random) -> None:
    """Kill the driver, and cut the newest checkpoint short."""
    machines.driver.signal(signal.SIGKILL, status=-9)
    machines.driver.wait()
    files = sorted(Path(machines.driver.folder, "checkpoints").glob("0*.safetensors"))
    if len(files) > 1:
        os.truncate(files[-1], files[-1].stat().st_size // 2)


def _lose_index(machines: Machines, draw: random.Random) -> None:
    """Kill the driver, and delete the index of its checkpoints."""
    machines.driver.signal(signal.SIGKILL, status=-9)
    machines.driver.wait()
    Path(machines.driver.folder, "checkpoints", "index.json").unlink(missing_ok=True)


def _lose_place(machines: Machines, draw: random.Random) -> None:
    """Put a file where the checkpoints are, for a while."""
    place = Path(machines.driver.folder, "checkpoints")
    away = place.with_name("away")
    if not place.is_dir() or away.exists():
        return
    place.rename(away)
    place.touch()

    def back() -> None:
        place.unlink()
        away.rename(place)

    machines.later(AWAY, back)


FAULTS: dict[str, Callable[[Machines, random.Random], None]] = {
    "shard killed": _one("TaskShard", signal.SIGKILL),
    "shard frozen": _one("TaskShard", signal.SIGSTOP),
    "shard silent for 2 s": _pause,
    "all shards killed": _all("TaskShard"),
    "rollout worker killed": _one("RolloutWorker", signal.SIGKILL),
    "rollout worker frozen": _one("RolloutWorker", signal.SIGSTOP),
    "all rollout workers killed": _all("RolloutWorker"),
    "server killed": _one("ParameterServer", signal.SIGKILL),
    "server frozen": _one("ParameterServer", signal.SIGSTOP),
    "machine lost": lambda machines, draw: machines.lose(draw),
    "raylet killed": lambda machines, draw: machines.lose_raylet(draw),
    "driver killed": _end_driver(signal.SIGKILL, -9),
    "driver terminated": _end_driver(signal.SIGTERM, 143),
    "driver interrupted": _end_driver(signal.SIGINT, 130),
    "driver stopped for 12 s": _pause_driver,
    "second driver": _second_driver,
    "newest checkpoint damaged": _damage_checkpoint,
    "index lost": _lose_index,
    "place of checkpoints gone for 6 s": _lose_place,
}
