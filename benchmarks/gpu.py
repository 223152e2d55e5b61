"""The meta-gradient on a GPU: our engine, each way it runs, beside PyTorch written by hand.

    python benchmarks/gpu.py [--workloads A,B,C,D] [--variants vmap/compiled/steps,…] [--seconds 2]
                             [--precision float32] [--json FILE]

Milliseconds: the median meta-gradient of a whole meta-batch on given episodes, the device
synchronised. First: the first one, with what is traced or compiled for it. Error: of the
meta-gradient of two tasks, relative to the same in float64 on the CPU; a ReLU whose input rounds to
the other side moves it too, by 20% on C in TF32. Peak: of the device's memory. Without a GPU all of
it runs on the CPU.
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
from torch import Tensor, nn  # noqa: E402 - the same
from torch.func import functional_call, grad, vmap  # noqa: E402 - the same
from torch.nn import functional  # noqa: E402 - the same

from benchmarks.peer_cases import WORKLOADS, Case, Workload, make, module  # noqa: E402 - the same
from benchmarks.peer_ours import experiment  # noqa: E402 - the same
from maml_dist.core.data.episode import Episode, map_tensors  # noqa: E402 - the same
from maml_dist.core.data.task_source import TaskKey, keys_of  # noqa: E402 - the same
from maml_dist.core.engine.engine import Engine  # noqa: E402 - the same
from maml_dist.core.engine.meta_gradient import MetaGradient  # noqa: E402 - the same
from maml_dist.core.model.objective import Objective  # noqa: E402 - the same
from maml_dist.core.params import flatten, layout  # noqa: E402 - the same

VARIANTS = "vmap/eager/graph,vmap/traced/auto,vmap/compiled/auto,task/traced/auto"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Row = dict[str, Any]


def main() -> None:
    """Measure; print a row as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="A,B,C,D")
    parser.add_argument("--variants", default=VARIANTS, help="batching/running/memory, …")
    parser.add_argument("--precision", default="float32", help="float32 or tf32")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, {options.precision}")
    rows: list[Row] = []
    for workload in options.workloads.split(","):
        case = make(WORKLOADS[workload])
        contenders = [*_ours(case, options), *_by_hand(case)]
        for who, prepare in contenders:
            row = {"workload": workload, "who": who}
            try:
                run, facts = prepare()
                row |= _timed(run, options.seconds) | facts
            except (RuntimeError, ValueError) as error:  # loses no other's row
                row["failed"] = str(error).splitlines()[0][:200]
            print(json.dumps(row), flush=True)
            rows.append(row)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))


def _timed(run: Callable[[], Any], seconds: float) -> Row:
    def once() -> float:
        clock = time.perf_counter()
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - clock

    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = once()
    once()  # where a CUDA graph is recorded
    times, end = [once()], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times.append(once())
    row = {"ms": round(1e3 * statistics.median(times), 3), "first_s": round(first, 2)}
    if DEVICE == "cuda":
        row["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return row


def _ours(case: Case, options: argparse.Namespace) -> list[tuple[str, Any]]:
    """The engine's variants, each with the error of its meta-gradient."""
    own = experiment(case)
    named = [TaskKey(0, "train", 0, index) for index in range(case.workload.tasks)]
    tasks = [own.task.sample(key) for key in named]
    episodes = own.task.collect(tasks, steps=case.workload.steps)._replace(key=keys_of(named))
    exact = _gradient(case, Engine("task", running="eager", precision="float64"), "cpu")
    two = map_tensors(lambda t: t[:2], episodes)
    expected = exact(two)

    def prepare(variant: str) -> Any:
        batching, running, memory = variant.split("/")
        engine = Engine(batching, running=running, memory=memory, precision=options.precision)
        engine.set_rounding()
        run = _gradient(case, engine, DEVICE)
        off = (run(two).double().cpu() - expected).norm() / expected.norm()
        moved = map_tensors(lambda tensor: tensor.to(DEVICE), episodes)
        return lambda: run(moved), {"error": f"{off:.1e}"}

    return [
        (f"maml_dist {variant}", lambda variant=variant: prepare(variant))
        for variant in options.variants.split(",")
    ]


def _gradient(case: Case, engine: Engine, device: str) -> Callable[[Episode], Tensor]:
    own = experiment(case)
    model = own.model.to(device, engine.dtype)
    engine = engine.resolve(model, own.learner, device)
    meta = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradient = MetaGradient(engine, own.learner, Objective(model, own.task), into=layout(meta))
    it = torch.zeros((), device=device)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, engine.dtype if tensor.is_floating_point() else tensor.dtype)

    return lambda episodes: gradient(flatten(meta), map_tensors(move, episodes), it).gradient


def _by_hand(case: Case) -> list[tuple[str, Any]]:
    """What one writes with torch.func, also compiled, and as a loop over the tasks."""
    workload = case.workload
    loss = functional.cross_entropy if workload.ways else functional.mse_loss
    net = module(workload).to(DEVICE)
    net.load_state_dict({n: torch.tensor(value) for n, value in case.meta.items()})
    for part in net.modules():  # normalise with the batch, keep nothing
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = part.running_var = part.num_batches_tracked = None
    meta = {name: p.detach().clone() for name, p in net.named_parameters()}
    data = [torch.from_numpy(values[0]).to(DEVICE) for values in (*case.support, *case.query)]

    def query_loss(meta: dict[str, Tensor], *task: Tensor) -> Tensor:
        return _query_loss(net, loss, workload, meta, task)

    def mean(meta: dict[str, Tensor]) -> Tensor:
        return vmap(query_loss, (None, 0, 0, 0, 0))(meta, *data).mean()

    def loop() -> None:
        for task in zip(*data, strict=True):
            grad(query_loss)(meta, *task)

    compiled = torch.compile(grad(mean))
    return [
        ("torch.func vmap", lambda: (lambda: grad(mean)(meta), {})),
        ("torch.func vmap, torch.compile", lambda: (lambda: compiled(meta), {})),
        ("torch.func, a loop over tasks", lambda: (loop, {})),
    ]


def _query_loss(
    net: nn.Module,
    loss: Callable[..., Tensor],
    workload: Workload,
    meta: dict[str, Tensor],
    task: tuple[Tensor, ...],
) -> Tensor:
    sx, sy, qx, qy = task
    phi = meta
    for _ in range(workload.steps):
        slope = grad(lambda phi: loss(functional_call(net, phi, (sx,)), sy))(phi)
        if workload.first_order:
            slope = {name: value.detach() for name, value in slope.items()}
        phi = {name: phi[name] - workload.alpha * slope[name] for name in phi}
    return loss(functional_call(net, phi, (qx,)), qy)


if __name__ == "__main__":
    main()
