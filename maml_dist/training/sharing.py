"""Whether a meta-batch is worth sharing out: its computing against the cost of a round.

What bounds small tasks is not their number but the calls, so that half of them take hardly less
time; and shards must hear of each other. Both are timed here, so that a slow hour decides nothing.
"""

import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from maml_dist.runs.run import Run
from maml_dist.runtime.backend import ResourceRequest, Resources
from maml_dist.runtime.links import Links, Message
from maml_dist.runtime.local_backend import LocalBackend
from maml_dist.runtime.messages import ShardSpec, Start

ROUNDS = 100  # between two shards, that an iteration's computing must last
COMPILED = 50  # times that compiling and batching make small tasks faster, at the most
TIMED = 10, 50  # iterations, and rounds


def worth_sharing(run: Run, request: ResourceRequest) -> tuple[bool, float]:
    """Whether an iteration's computing on one core is long enough, and its seconds, about.

    What is long even if compiled at its best is not compiled for this.
    """
    spec = run.shard_spec
    if spec.source.on_policy:  # simulators take their time
        return True, float("inf")
    plain = replace(spec.engine, running="eager", batching="task", chunk=None)
    worth = ROUNDS * _round(len(run.initial_vector))
    try:
        one = _seconds(run, spec._replace(engine=plain, meta_batch=1, slices=1), request, 2)
        if one * spec.meta_batch / COMPILED > worth:
            return True, one * spec.meta_batch
        seconds = _seconds(run, spec, request, TIMED[0])
    except FloatingPointError:  # a task diverges at these weights: the run says which, if it does
        return True, float("inf")
    return seconds * spec.slices > worth, seconds * spec.slices


def iteration_seconds(run: Run, request: ResourceRequest) -> float:
    """An iteration's computing on one core, as it will be computed; inf where it is not known."""
    spec = run.shard_spec
    if spec.source.on_policy:  # simulators take their time
        return float("inf")
    try:
        return _seconds(run, spec, request, TIMED[0]) * spec.slices
    except FloatingPointError:  # a task diverges at these weights
        return float("inf")


def _round(size: int) -> float:
    """Seconds in which two that are linked send each other a vector [size]."""
    ends = [Links(rank, {1 - rank: end}) for rank, end in enumerate(socket.socketpair())]
    given, taken = Message(b"", np.zeros(size, np.float32)), []
    with ThreadPoolExecutor(1) as other:
        answers = [other.submit(ends[1].all_gather, given) for _ in range(TIMED[1])]
        for answer in answers:
            clock = time.perf_counter()
            ends[0].all_gather(given)
            taken.append(time.perf_counter() - clock)
            answer.result()
    for end in ends:
        end.close()
    return statistics.median(taken)


def _seconds(run: Run, spec: ShardSpec, request: ResourceRequest, times: int) -> float:
    """Of a gradient of the first slice."""
    meta, tables = run.initial_vector, run.initial_tables
    with LocalBackend() as here:
        start = Start(spec, meta, run.experiment.outer, tables=tables)
        shard: Any = here.start(start, Resources(1, 0.0, request)).shard(0)
        taken = []
        for it in range(times + 1):
            clock = time.perf_counter()
            more = {}
            if tables:
                touched = shard.touched.remote(it, slice=0)
                more["rows"] = {name: (ids, tables[name][ids]) for name, ids in touched.items()}
            shard.gradient.remote(meta, it, slice=0, **more)
            taken.append(time.perf_counter() - clock)
    return statistics.median(taken[1:])
