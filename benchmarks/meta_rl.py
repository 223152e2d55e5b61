"""The time of a meta-iteration of policy search, part by part, as multiples of its raw physics.

    python benchmarks/meta_rl.py [--recipe half-cheetah-direction] [--share 1.0,0.1,0.1/1.0]
                                 [--rounds 3] [--json] [key=value …]

The recipe is one of the half-cheetah's in its `paper` profile, whose physics is the unit, by TRPO.
One shard with all tasks, in this process and on one thread. Physics: `Batch.step` alone for as many
control steps, in the same run; each part is divided by it. The update is one of TRPO: ten products
with the curvature, over a share of the episodes (0.1/1.0: a tenth of those after adapting, all of
those adapted to), and as many steps of the line search as it takes. Seconds are the processor's, so
that what else the machine does counts for little.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started

import torch  # noqa: E402 - after the path

from benchmarks import rollouts  # noqa: E402 - the same
from maml_dist.config.compose import compose  # noqa: E402 - the same
from maml_dist.config.recipe import parse_overrides  # noqa: E402 - the same
from maml_dist.core.outer.optimizers import Response  # noqa: E402 - the same
from maml_dist.core.outer.trust_region import TrustRegion  # noqa: E402 - the same
from maml_dist.core.params import flatten  # noqa: E402 - the same
from maml_dist.core.rl.policy_gradient import PolicyGradient  # noqa: E402 - the same
from maml_dist.runs.run import Run  # noqa: E402 - the same
from maml_dist.runtime.rollout_worker import RolloutWorker  # noqa: E402 - the same
from maml_dist.runtime.shard import TaskShard  # noqa: E402 - the same
from maml_dist.tasks.mujoco.half_cheetah import HalfCheetah  # noqa: E402 - the same

PARTS = ("simulation", "policy", "baseline", "adaptation", "gradient", "curvature", "line search")


class Clock:
    """Seconds by name; what is timed inside something else is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its own time under this name."""

        def run(*arguments: Any, **options: Any) -> Any:
            self._open.append(0.0)
            begun = time.process_time()
            result = function(*arguments, **options)
            spent = time.process_time() - begun
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._open.pop()
            if self._open:
                self._open[-1] += spent
            return result

        return run


def main() -> None:
    """Measure and print."""
    options, words = parse()
    torch.set_num_threads(1)
    try:
        run = Run(Path("unwritten"), compose(options.recipe, parse_overrides(words)))
        source, tasks = run.experiment.task, run.experiment.meta_batch
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    if not (isinstance(source, HalfCheetah) and source.profile == "paper"):
        sys.exit(f"--recipe {options.recipe}: must be a half-cheetah's, with task.profile=paper")
    outer = run.experiment.outer
    if not isinstance(outer, TrustRegion):
        sys.exit(f"outer={type(outer).__name__}: must be a TrustRegion, whose update is measured")
    stages = run.experiment.learner.steps + 1
    plan = argparse.Namespace(tasks=tasks, episodes=source.episodes, horizon=source.horizon)
    physics = rollouts.physics(plan)
    found: dict[str, list[dict[str, float]]] = {share: [] for share in options.share}
    raw: list[float] = []
    cases = {share: case(run, told) for share, told in options.share.items()}
    for turn in range(options.rounds + 1):
        begun = time.process_time()
        for _ in range(stages):
            physics()
        if turn:
            raw.append(time.process_time() - begun)
        for share, iterate in cases.items():
            seconds = iterate(turn)
            if turn:  # the first one traces
                found[share].append(seconds)
    unit = statistics.median(raw)
    results = {
        share: {
            name: statistics.median(turn.get(name, 0.0) for turn in turns)
            for name in (*PARTS, "all")
        }
        for share, turns in found.items()
    }
    if options.json:
        print(json.dumps({"physics": unit, "seconds": results}))
        return
    steps = stages * tasks * source.episodes * source.horizon
    print(f"{options.recipe}: {steps:,} control steps an iteration, physics alone {unit:.2f} s")
    for share, parts in results.items():
        told = options.share[share]
        after, before = told["share"], told["support_share"]
        print(f"\ncurvature over {after:.0%} of the episodes, {before:.0%} of those adapted to")
        for name, seconds in parts.items():
            print(f"  {name:12}{seconds:8.2f} s{seconds / unit:8.2f} × physics")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line: options, and overrides of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="half-cheetah-direction")
    parser.add_argument(
        "--share", type=shares, default="1.0,0.1,0.1/1.0", help="of the episodes for the curvature"
    )
    parser.add_argument("--rounds", type=int, default=3, help="iterations measured (3)")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.add_argument("words", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds}: must be 1 or more")
    return options, options.words


def shares(text: str) -> dict[str, dict[str, float]]:
    """What the curvature is told, by the shares as they are written: AFTER or AFTER/BEFORE."""
    written = {}
    for word in text.split(","):
        after, _, before = word.partition("/")
        try:
            told = {"share": float(after), "support_share": float(before or after)}
        except ValueError:
            told = {}
        if not told or not all(0 < share <= 1 for share in told.values()):
            raise argparse.ArgumentTypeError(f"{word!r}: must be numbers above 0 and up to 1")
        written[word] = told
    return written


def case(run: Run, shares: dict[str, float]) -> Callable[[int], dict[str, float]]:
    """Does a meta-iteration, and tells the seconds of its parts."""
    spec, outer = run.shard_spec, run.experiment.outer
    meta = flatten(run.initial)
    worker = RolloutWorker(spec.source, spec.model)
    clock = Clock()
    worker._outputs = clock.timed("policy", worker._outputs)
    shard = TaskShard(spec, roll=clock.timed("simulation", worker.here))
    terms = shard._policy_terms
    terms.policies = clock.timed("adaptation", terms.policies)
    baseline = PolicyGradient.compute_advantages
    fewer = {"curvature": shares}
    methods = {"curvature": shard.curvature, "objective": shard.objective}
    names = {"curvature": "curvature", "objective": "line search"}

    def iterate(it: int) -> dict[str, float]:
        nonlocal meta
        clock.seconds.clear()
        timed = clock.timed("baseline", baseline)
        PolicyGradient.compute_advantages = timed
        here, begun = meta.numpy(), time.process_time()
        found = clock.timed("gradient", shard.gradient)(here, it)
        PolicyGradient.compute_advantages = baseline
        means = {name: value / found.tasks for name, value in found.metrics.items()}
        state = outer.init(meta)
        rounds = outer.update_in_rounds(
            meta, torch.tensor(found.gradient) / found.tasks, means, state
        )
        answer = None
        try:
            while True:
                request = rounds.send(answer)
                method = clock.timed(names[request.what], methods[request.what])
                told = method(
                    here,
                    it,
                    request.at.numpy(),
                    **{**request.options, **fewer.get(request.what, {})},
                )
                sums = {name: value / told.tasks for name, value in told.metrics.items()}
                answer = Response(torch.tensor(told.gradient) / told.tasks, sums)
        except StopIteration as end:
            meta = end.value[0]
        return {**clock.seconds, "all": time.process_time() - begun}

    return iterate


if __name__ == "__main__":
    main()
