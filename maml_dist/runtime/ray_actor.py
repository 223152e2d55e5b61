"""RayActor: what each actor of a run has on Ray: a name, a pulse, metrics, and lines in its log.

What it says goes to its own log, which Ray's dashboard shows; a driver's terminal has none of it.
"""

import os
from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from maml_dist.loggers.lines import say
from maml_dist.runtime.links import Traffic
from maml_dist.runtime.meter import SECONDS, SENT, SQUARES, TASKS, Meter, Metric, Reading
from maml_dist.runtime.pulse import Pace, Pulse


class RayActor:
    """Shows itself by the actor's name: in Ray's dashboard, and before each line of its logs."""

    def __repr__(self) -> str:
        import ray

        name = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else None
        return name or type(self).__name__

    def _enter(self, role: str, rank: str) -> None:
        """To be called first: time runs from here on. Role and rank are those in the name."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        self._pace = Pace(node=node, host=ray.util.get_node_ip_address())
        self._whose = role, rank
        self._done: dict[Metric, float] = {}
        self._traffic = Traffic()

    def _started(self, labels: Mapping[str, str], what: str) -> None:
        """To be called last; `labels` are those of metrics, `what` it is that this one does."""
        self._watched = bool(labels)
        self._meter = Meter(labels, self._reading)
        place = f"{os.uname().nodename}, process {os.getpid()}, {torch.get_num_threads()} threads"
        say(f"{' '.join(self._whose)} has started on {place}: {what}", clock=True)

    def pulse(self) -> Pulse:
        """An answer while anything else runs."""
        return self._pace.pulse()

    def ends(self) -> None:
        """Say what has been done: the actor is about to be ended."""
        spent = self._pace.spent()
        shares = ", ".join(f"{by:.1f} s {work}" for work, by in spent.items())
        tasks = f"{self._done[TASKS]:.0f} tasks, " if TASKS in self._done else ""
        say(f"{' '.join(self._whose)} ends: {tasks}{shares}", clock=True)

    def _count(self, metric: Metric, more: float) -> None:
        self._done[metric] = self._done.get(metric, 0) + more

    def _gradient(self) -> Tensor | None:
        """The part that this actor answers for of the last meta-gradient."""
        return None

    def _reading(self) -> Reading:
        """Its metrics now; from any thread."""
        found: Reading = {
            (SECONDS, (*self._whose, phase)): by for phase, by in self._pace.spent().items()
        }
        done = dict(self._done)
        done[SENT] = done.get(SENT, 0) + self._traffic.sent
        found |= {(metric, self._whose): float(number) for metric, number in done.items()}
        gradient = self._gradient()
        if gradient is not None:
            found[SQUARES, self._whose] = float(torch.linalg.vector_norm(gradient)) ** 2
        return found


def paced(method: Any) -> Any:
    """A method of an actor whose pulse says that it runs."""

    @wraps(method)
    def run(actor: RayActor, *given: Any, **options: Any) -> Any:
        with actor._pace.of(method.__name__):
            return method(actor, *given, **options)

    return run
