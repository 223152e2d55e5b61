"""Meter: the numbers of a process as metrics of Ray's, told by a thread of its own now and then.

Ray takes up what is told each 10 seconds, and forgets a gauge that is not told again. All begin
with `ray_maml_dist_`, counters end with `_total`; docs/watching.md has the table.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from maml_dist.loggers.lines import say
from maml_dist.runtime.private_ray import is_own

EVERY = 5.0  # seconds between two tellings, at the most


class Metric(NamedTuple):
    """One that is told, of one run or of several: with the run's labels and its own."""

    name: str  # without what all begin with
    text: str
    labels: tuple[str, ...] = ()
    counts: bool = False  # what has come together since the process began, or what is now


Reading = dict[tuple[Metric, tuple[str, ...]], float]  # of a metric, with the values of its labels

ACTOR = "role", "rank"  # as in its name: TaskShard, 1
SECONDS = Metric("seconds", "Seconds of an actor, by what it did", (*ACTOR, "phase"), True)
TASKS = Metric("tasks", "Tasks of which an actor has taken the gradient", ACTOR, True)
STEPS = Metric("environment_steps", "Steps of environments, simulated by an actor", ACTOR, True)
SENT = Metric("sent_bytes", "Bytes that an actor sent, of gradients and parameters", ACTOR, True)
SQUARES = Metric("gradient_squares", "Squares of the last meta-gradient's part, summed up", ACTOR)
UP = Metric("actors", "Actors that answer", ("role",))
RESTARTS = Metric("restarts", "Actors that were made in the place of lost ones", ("role",), True)
METRICS = SECONDS, TASKS, STEPS, SENT, SQUARES, UP, RESTARTS


class Meter:
    """Tells Ray what `read` returns, until it is closed; one that fails says so and ends."""

    def __init__(self, labels: Mapping[str, str], read: Callable[[], Reading]) -> None:
        """`labels` are those of the run; without them, or on a Ray of one's own, nobody asks."""
        self._labels, self._read = dict(labels), read
        self._made: dict[str, Any] = {}
        self._told: Reading = {}  # of what counts
        self._lock, self._ends = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="meter", daemon=True)
        if labels and not is_own():
            self._thread.start()

    def tell(self) -> None:
        """Tell Ray now."""
        with self._lock:
            for (metric, values), number in self._read().items():
                labels = self._labels | dict(zip(metric.labels, values, strict=True))
                if not metric.counts:
                    self._of(metric).set(number, tags=labels)
                    continue
                more = number - self._told.get((metric, values), 0.0)
                if more > 0:
                    self._of(metric).inc(more, tags=labels)
                    self._told[metric, values] = number

    def close(self) -> None:
        """Tell nothing more."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join(EVERY)

    def _work(self) -> None:
        try:
            every = min(EVERY, _taken_up() / 2)
            while not self._ends.wait(every):
                self.tell()
        except Exception as error:  # whatever it is, work goes on
            say(
                f"metrics: {type(error).__name__}: {error}: none are told any more", level="warning"
            )

    def _of(self, metric: Metric) -> Any:
        from ray.util.metrics import Counter, Gauge

        if metric.name not in self._made:
            labels = (*self._labels, *metric.labels)
            kind = Counter if metric.counts else Gauge
            self._made[metric.name] = kind(f"maml_dist_{metric.name}", metric.text, labels)
        return self._made[metric.name]


def _taken_up() -> float:
    """Seconds between two times that Ray takes up what it was told."""
    from ray import _config

    return float(_config.metrics_report_interval_ms()) / 1000
