"""Whether a meta-batch is worth sharing out: its computing against the cost of a round.

The gradients of a small one take less time than shards need to hear of each other, so that more
than one would only use more cores.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from maml_dist.core.params import flatten
from maml_dist.runs.run import Run
from maml_dist.runtime.backend import ResourceRequest, Resources
from maml_dist.runtime.local_backend import LocalBackend
from maml_dist.runtime.messages import ShardSpec, Start

WORTH = 0.002  # seconds of computing an iteration; a round of two shards takes 0.0001
COMPILED = 50  # times that compiling and batching make small tasks faster, at the most
TIMED = 10  # iterations


def worth_sharing(run: Run, request: ResourceRequest) -> tuple[bool, float]:
    """Whether an iteration's computing on one core is long enough, and its seconds, about.

    What is long even if compiled at its best is not compiled for this.
    """
    spec = run.shard_spec
    if spec.source.on_policy:  # simulators take their time
        return True, float("inf")
    plain = replace(spec.engine, running="eager", batching="task", chunk=None)
    try:
        one = _seconds(run, spec._replace(engine=plain, meta_batch=1, slices=1), request, 2)
        if one * spec.meta_batch / COMPILED > WORTH:
            return True, one * spec.meta_batch
        seconds = _seconds(run, spec, request, TIMED)
    except FloatingPointError:  # a task diverges at these weights: the run says which, if it does
        return True, float("inf")
    return seconds * spec.slices > WORTH, seconds * spec.slices


def _seconds(run: Run, spec: ShardSpec, request: ResourceRequest, times: int) -> float:
    """Of a gradient of the first slice."""
    meta = flatten(run.initial).numpy()
    with LocalBackend() as here:
        start = Start(spec, meta, run.experiment.outer)
        shard = here.start(start, Resources(1, 0.0, request)).shard(0)
        gradient: Callable[..., object] = shard.gradient.remote
        taken = []
        for it in range(times + 1):
            clock = time.perf_counter()
            gradient(meta, it, slice=0)
            taken.append(time.perf_counter() - clock)
    return statistics.median(taken[1:])
