"""What an iteration costs beside its computing: shards that have nothing to compute.

    python -m benchmarks.overhead [--sizes 0.01,0.1,1,10] [--shards 1,2,4,8]
                                  [--modes one,split,spread] [--seconds 5] [--json FILE]

Sizes in millions of meta-parameters, updated by Adam. Milliseconds: the median of an iteration, by
blocks of them. Bytes: of meta-parameters and gradients, through the busiest actor, out and in. The
model that is fitted to what was measured, and where it leads on a network: overhead_model.py.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.overhead_model import Round, fitted, traffic
from maml_dist.config.compose import compose
from maml_dist.core.outer.optimizers import Adam
from maml_dist.runs.run import Run
from maml_dist.runtime import ray_making
from maml_dist.runtime.backend import ActorGroup, ActorLost, ResourceRequest, Resources
from maml_dist.runtime.messages import Contribution, Start
from maml_dist.runtime.private_ray import own_ray
from maml_dist.runtime.ray_actors import RayShard
from maml_dist.runtime.ray_group import RayGroup
from maml_dist.training.loop import in_blocks, loop

WARM = 3  # iterations before the clock starts
ENOUGH = 4  # measurements of each mode, to fit as many numbers
WITHIN = 120.0  # seconds after which a configuration is given up


class IdleShard(RayShard):
    """A shard whose gradient costs nothing: it is always the same."""

    def gradient(
        self, meta: np.ndarray, it: int, at: np.ndarray | None = None, *, slice: int = 0
    ) -> Contribution:
        """The number of the slice, everywhere."""
        if not hasattr(self, "_same"):
            self._same = np.full(len(meta), 1e-3 * slice, np.float32)
        return Contribution(self._same, 1, {"loss/after": 0.0})


def main() -> int:
    """Measure; print a table as it comes, then the model."""
    options = parse()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
    vars(ray_making)["RayShard"] = IdleShard
    rounds: list[Round] = []
    print("| M parameters | shards | server | ms an iteration | MB out and in |")
    print("|---|---|---|---|---|")
    with own_ray(max(options.shards) + 1):
        for size in options.sizes:
            for shards in options.shards:
                for mode in options.modes:
                    if mode == "split" and shards == 1:
                        continue
                    try:
                        seconds = measured(round(1e6 * size), shards, mode, options.seconds)
                    except ActorLost as error:  # what lies in memory at once may be too much
                        print(f"| {size:g} | {shards} | {mode} | {error} | |", flush=True)
                        continue
                    each = Round(mode, round(1e6 * size), shards, seconds)
                    rounds.append(each)
                    print(line(each), flush=True)
                    if options.json:
                        options.json.write_text(json.dumps([one._asdict() for one in rounds]))
    enough = len(rounds) > ENOUGH * len(options.modes)
    print(fitted(rounds) if enough else "\ntoo few measurements to fit a model to")
    return 0


def parse() -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> list[float]:
        return [float(each) for each in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--sizes", type=numbers, default=[0.01, 0.1, 1.0, 10.0])
    parser.add_argument("--shards", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--modes", default="one,split,spread")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the measurements there too")
    options = parser.parse_args()
    options.modes = options.modes.split(",")
    options.shards = [int(each) for each in options.shards]
    return options


def measured(size: int, shards: int, mode: Any, seconds: float) -> float:
    """Seconds of an iteration."""
    keys = {"slices": shards, "meta_batch": shards, "iterations": 10**9, "checkpoint_every": 10**9}
    run = Run(Path("unused"), compose("sinusoid", keys | {"engine.running": "eager"}))
    spec = run.shard_spec._replace(learned=size)
    given = Start(spec, np.zeros(size, np.float32), Adam())
    request = ResourceRequest(0.5, 0.0, server=mode, servers=max(2, shards // 2))
    group = RayGroup(given, Resources(shards, 0.0, request, shards), grows=False)
    try:
        group.open()
        return paced(run, group, seconds)
    finally:
        group.close()


def paced(run: Run, group: ActorGroup, seconds: float) -> float:
    """The median seconds of an iteration, of those that are read together."""
    way = in_blocks if group.linked else loop
    unread: list[Any] = []
    paces, began = [], time.monotonic()
    clock, warm = began, 0
    for count in way(run.experiment, group, unread, start=0, stop=lambda: False):
        group.get([report.metrics for report in unread[:count]])
        done = sum(report.end - report.start for report in unread[:count])
        now = time.monotonic()
        warm += done
        if warm > WARM:
            paces.append((now - clock) / done)
        clock = now
        del unread[:count]
        if now - began > WITHIN or (now - began > seconds and len(paces) > 2):
            break
    return float(statistics.median(paces[len(paces) // 2 :]))


def line(each: Round) -> str:
    """A measurement's, for the table."""
    moved = traffic(each.mode, each.size, each.shards) / 1e6
    return (
        f"| {each.size / 1e6:g} | {each.shards} | {each.mode} | {1e3 * each.seconds:.3g} "
        f"| {moved:.3g} |"
    )


if __name__ == "__main__":
    sys.exit(main())
