"""The meta-gradient on a GPU: our engine, each way it runs, beside PyTorch written by hand.

    python benchmarks/gpu_workloads.py [--workloads A,B,C,D,T] [--variants vmap/compiled/steps,…]
                                       [--precision float32] [--seconds 1] [--dry-run]

Milliseconds: the median meta-gradient of a whole meta-batch on given episodes, the device
synchronised. First: the first one, with what is traced or compiled for it. Error: of the
meta-gradient of two tasks, relative to the same by hand in float64 on the CPU; a ReLU whose input
rounds to the other side moves it too, by 20% on C in TF32. Peak: of the device's memory. Without a
GPU all of it runs on the CPU.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started

import torch  # noqa: E402 - after the path
from torch import Tensor  # noqa: E402 - the same

from benchmarks.gpu_by_hand import CHECKED, ByHand, apart, contenders, exact  # noqa: E402
from benchmarks.gpu_cases import CASES, case  # noqa: E402
from benchmarks.gpu_rows import DEVICE, Row, Rows, one_line, parser, timed  # noqa: E402
from benchmarks.peer_cases import Case  # noqa: E402
from benchmarks.peer_ours import experiment  # noqa: E402
from maml_dist.core.data.episode import Episode, map_tensors  # noqa: E402
from maml_dist.core.data.task_source import TaskKey, keys_of  # noqa: E402
from maml_dist.core.engine.engine import Engine  # noqa: E402
from maml_dist.core.engine.meta_gradient import MetaGradient  # noqa: E402
from maml_dist.core.model.objective import Objective  # noqa: E402
from maml_dist.core.params import flatten, layout  # noqa: E402

# The quick ones first: what compiles for minutes costs the others nothing.
VARIANTS = "vmap/traced/auto,vmap/eager/graph,task/traced/auto,vmap/compiled/auto"
SMALL_VARIANTS = "vmap/traced/auto,task/eager/graph"


class Contiguous(Engine):
    """Leaves the images of a trace's convolutions as they are: not channels last."""

    arranges: ClassVar[bool] = False


def main() -> None:
    """Measure; a row is written as it is there."""
    options = _parse()
    rows = Rows(options.rows)
    for name in options.workloads:
        given = case(name, small=options.dry_run)
        rows.add({"workload": name, "title": given.workload.title, "tasks": given.workload.tasks})
        for who, measure in _contenders(given, options):
            row: Row = {"workload": name, "who": who}
            try:
                row |= measure()
            except (RuntimeError, ValueError) as error:  # loses no other's row
                row["failed"] = one_line(error)
            rows.add(row)


def _parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--workloads", type=lambda text: text.split(","), default=list(CASES))
    options.add_argument("--variants", help=f"batching/running/memory[/contiguous], … ({VARIANTS})")
    options.add_argument("--precision", default="float32", help="of the engine, and of the device")
    options.add_argument("--seconds", type=float, default=1.0, help="of each measurement (1)")
    found = options.parse_args()
    for name in found.workloads:
        if name not in CASES:
            options.error(f"--workloads: {name!r} is none of {', '.join(CASES)}")
    found.variants = found.variants or (SMALL_VARIANTS if found.dry_run else VARIANTS)
    found.seconds = 0 if found.dry_run else found.seconds
    return found


def _contenders(
    given: Case, options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Row]]]:
    Engine(precision=options.precision).set_rounding()  # for what is by hand as well
    expected = exact(given)
    by_hand = dict(contenders(given, DEVICE, small=options.dry_run))

    def hand(who: str) -> Row:
        """With the error of the one that all others come from."""
        row = timed(by_hand[who](), options.seconds)
        if who == "torch.func vmap":
            row["error"] = apart(ByHand(given, DEVICE).gradient(CHECKED), expected)
        return row

    def ours(variant: str) -> Row:
        batching, running, memory, *layout = variant.split("/")
        kind = Contiguous if layout == ["contiguous"] else Engine
        engine = kind(batching, running=running, memory=memory, precision=options.precision)
        run, episodes = gradient_of(given, engine, DEVICE)
        two = map_tensors(lambda tensor: tensor[:CHECKED], episodes)
        error = apart(run(two), expected)
        return timed(lambda: run(episodes), options.seconds) | {"error": error}

    variants = {f"maml_dist {variant}": variant for variant in options.variants.split(",")}
    *quick, slow = by_hand
    last = [who for who in variants if "compiled" in who]
    if options.dry_run and given.workload.ways:
        slow = ""  # tracing it for torch.compile takes half a minute; A's does not
    names = [*(each for each in variants if each not in last), *quick, *last, slow]
    for who in filter(None, names):
        measure = (ours, variants[who]) if who in variants else (hand, who)
        yield who, lambda measure=measure: measure[0](measure[1])


def gradient_of(
    given: Case, engine: Engine, device: str
) -> tuple[Callable[[Episode], Tensor], Episode]:
    """The engine's summed meta-gradient as a function of episodes, and the case's episodes."""
    own = experiment(given)
    named = [TaskKey(0, "train", 0, index) for index in range(given.workload.tasks)]
    tasks = [own.task.sample(key) for key in named]
    collected = own.task.collect(tasks, steps=given.workload.steps)._replace(key=keys_of(named))
    model = own.model.to(device, engine.dtype)
    engine = engine.resolve(model, own.learner, device)
    meta = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = Objective(model, own.task, bfloat16=engine.precision == "bfloat16")
    gradient = MetaGradient(engine, own.learner, objective, into=layout(meta))
    it = torch.zeros((), device=device)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, engine.dtype if tensor.is_floating_point() else tensor.dtype)

    def run(episodes: Episode) -> Tensor:
        return gradient(flatten(meta), episodes, it).gradient

    return run, map_tensors(move, collected)


if __name__ == "__main__":
    main()
