"""maml_dist side by side with other libraries: the same weights, episodes and losses.

    python benchmarks/peers.py [--workloads A,B,B1,C,D] [--libraries …] [--rounds 5] [--seconds 2]
                               [--threads N] [--cache DIR] [--memory] [--picture FILE] [--json]

Peers: `pip install ".[benchmarks]"`; learn2learn has no wheel and its C sources are too old for
Python 3.11, but they can be made anew:
`pip install --no-deps --config-settings=--build-option=build_ext learn2learn`.

Each library has a process of its own. The losses of its first meta-iterations and its first
meta-gradient must be those of the loop written by hand; then the libraries take turns, so that
what else the machine does hits all alike. Seconds: the median of whole meta-iterations (gradient
and Adam's update) on given episodes. First: the first one, with what is traced or compiled for it.
Peak: resident memory beyond what the process held before its first iteration; then: after it.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started

import numpy as np  # noqa: E402 - after the path

from benchmarks.peer_cases import WORKLOADS, Workload, write  # noqa: E402 - after the path
from benchmarks.peer_process import LIBRARIES, First, Process, missing  # noqa: E402 - the same

OURS, BY_HAND = "maml_dist", "pytorch"
TORCH_PEERS = (BY_HAND, "learn2learn", "higher", "torchopt")
# The first loss, relative, in float32: rounded differently, D's moves by 1e-4 in five steps.
FIRST_LOSS_AGREES = 1e-3
# Where a ReLU's input, or the larger of two pixels to pool, rounds to the other side, a task's
# meta-gradient jumps: by half a percent on B, by 6% on D (in float64, inputs moved by 1e-7).
# Without second order it is 20% (A) to 90% (B) away. At tiny shapes the tests ask for 1e-4.
GRADIENT_AGREES = 0.15
LOSSES_AGREE = 1e-2  # those after it
MEMORY_STEPS = (1, 5, 20, 50)
MEMORY_FILTERS = (16, 32, 64, 128)  # each with 5 steps
# Blocks of tensors go back to the system when they are freed, so that what is resident is in use.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
Row = dict[str, Any]


def main() -> None:
    """Measure, print, draw."""
    options = parse()
    results: dict[str, Any] = {"threads": options.threads, "rows": []}
    failed = []  # a workload that cannot be compared loses no other's rows
    with tempfile.TemporaryDirectory() as folder:
        for name in options.workloads:
            try:
                rows = compare(name, options, Path(folder))
            except SystemExit as error:
                failed.append(str(error))
                continue
            results["rows"] += rows
            if not options.json:
                show(WORKLOADS[name], name, rows)
        if options.memory:
            results["memory"] = memory(options, Path(folder))
            if not options.json:
                show_memory(results["memory"])
    if options.json:
        print(json.dumps(results))
    if options.picture:
        from benchmarks.peer_picture import draw

        draw(results, options.picture)
    if failed:
        raise SystemExit("\n".join(failed))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, known in (("workloads", WORKLOADS), ("libraries", LIBRARIES)):
        parser.add_argument(
            f"--{name}", type=lambda text: text.split(",") if text else [], default=list(known),
            metavar=",".join(known), help="those to compare (all)",
        )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="turns of each library (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn (2)")
    parser.add_argument("--threads", type=int, default=_cores(), help="cores to use (all)")
    parser.add_argument("--cache", type=Path, help="keep what torch compiles (default: cold start)")
    parser.add_argument("--memory", action="store_true", help="also memory by steps and by size")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the results")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()
    for name, known in (("workloads", WORKLOADS), ("libraries", LIBRARIES)):
        for word in getattr(options, name):
            if word not in known:
                parser.error(f"--{name}: {word!r} is none of {', '.join(known)}")
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be 1 or more")
    return options


def compare(name: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows of one workload: every library that works here."""
    workload, path = WORKLOADS[name], folder / f"{name}.npz"
    _prepare(workload, path)
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        works, firsts, peaks = {}, {}, {}
        machine = Process(BY_HAND, workload, path, options.threads)
        stack.callback(machine.close)
        machine.ask("build")
        for library in sorted({*options.libraries, BY_HAND}, key=list(LIBRARIES).index):
            if missing(library):
                _say(f"{library} is left out: not installed (see --help)")
                continue
            cache = options.cache or folder / name
            with _environment({"TORCHINDUCTOR_CACHE_DIR": str(cache.absolute() / library)}):
                process = Process(library, workload, path, options.threads)
            stack.callback(process.close)
            try:
                process.ask("build")
                firsts[library] = process.ask("begin")
                peaks[library] = process.ask("extra")
            except ChildProcessError as error:
                if library in (OURS, BY_HAND):
                    raise SystemExit(f"workload {name}: {library}: {error}") from None
                _say(f"{library} is left out of {name}: {error}")
                continue
            works[library] = process
            _say(f"{name}: {library} has begun, {firsts[library].seconds:.1f} s")
        for library, first in firsts.items():
            check_agreement(name, library, first, firsts[BY_HAND])
        operations = machine.ask("flops")
        fastest = 0.0
        for turn in range(options.rounds):
            for library in (each for each in works if each in options.libraries):
                times.setdefault(library, []).extend(works[library].ask("pace", options.seconds))
            fastest = max(fastest, machine.ask("product_speed", 0.3))
            _say(f"{name}: round {turn + 1} of {options.rounds}")
        steady = {library: works[library].ask("extra") for library in times}
    rows = []
    for library, part in times.items():
        seconds = statistics.median(part)
        rows.append(
            {
                "workload": name,
                "library": library,
                "seconds": seconds,
                "first_seconds": firsts[library].seconds,
                "peak_mb": max(peaks[library], steady[library]),
                "steady_mb": steady[library],
                "tasks_per_second": workload.tasks / seconds,
                "share_of_peak": operations / seconds / fastest,
            }
        )
    return rows


def check_agreement(name: str, library: str, first: First, by_hand: First) -> None:
    """Refuse to time what computes something else.

    Raises:
        SystemExit: losses or meta-gradient are not those of the loop written by hand.
    """
    apart = np.abs(np.divide(first.losses, by_hand.losses) - 1)
    distance = np.linalg.norm(first.gradient - by_hand.gradient) / np.linalg.norm(by_hand.gradient)
    agree = apart[0] < FIRST_LOSS_AGREES and distance < GRADIENT_AGREES
    if not (agree and apart.max() < LOSSES_AGREE):
        raise SystemExit(
            f"workload {name}: {library} computes something else than the loop by hand: losses "
            f"{first.losses}, not {by_hand.losses}; meta-gradient {distance:.1e} away"
        )


def memory(options: argparse.Namespace, folder: Path) -> list[Row]:
    """What one task's meta-gradient takes at its peak on B's model, by steps and by filters."""
    rows = []
    alone = WORKLOADS["B"]._replace(tasks=1, batches=1)
    shapes = [(steps, alone.filters) for steps in MEMORY_STEPS]
    shapes += [(5, filters) for filters in MEMORY_FILTERS if filters != alone.filters]
    for steps, filters in shapes:
        workload = alone._replace(steps=steps, filters=filters, alpha=alone.alpha / steps)
        path = folder / f"memory-{steps}-{filters}.npz"
        _prepare(workload, path)
        for library in (OURS, BY_HAND):
            with _environment(EXACT_MEMORY):
                process = Process(library, workload, path, options.threads)
            try:
                process.ask("build")
                extra = process.ask("task_memory")
            except ChildProcessError as error:
                raise SystemExit(f"memory of {library}: {error}") from None
            finally:
                process.close()
            rows.append({"library": library, "steps": steps, "filters": filters, "mb": extra})
    return rows


def show(workload: Workload, name: str, rows: list[Row]) -> None:
    """The table of one workload, and how the best of PyTorch compares."""
    seconds = {row["library"]: row["seconds"] for row in rows}
    ours = [library for library in (OURS, "maml_dist-ray") if library in seconds]
    heads = [f"x {library}" for library in ours]
    print(f"\n{name}: {workload.title}")
    print(
        f"{'library':14}{'seconds':>10}{'tasks/s':>10}"
        + "".join(f"{head:>16}" for head in heads)
        + f"{'first s':>9}{'peak MB':>9}{'then MB':>9}{'of peak':>9}"
    )
    for row in rows:
        ratios = (row["seconds"] / seconds[library] for library in ours)
        print(
            f"{row['library']:14}{row['seconds']:10.5f}{row['tasks_per_second']:10,.1f}"
            + "".join(f"{ratio:16.2f}" for ratio in ratios)
            + f"{row['first_seconds']:9.2f}{row['peak_mb']:9,.0f}{row['steady_mb']:9,.0f}"
            + f"{row['share_of_peak']:9.1%}"
        )
    peers = [library for library in TORCH_PEERS if library in seconds]
    if peers:
        best = min(peers, key=seconds.__getitem__)
        against = ", ".join(
            f"{library} {seconds[best] / seconds[library]:.2f}"
            for library in seconds
            if library not in peers
        )
        print(f"speed against the best PyTorch peer ({best}): {against}", flush=True)


def show_memory(rows: list[Row]) -> None:
    """Peak extra memory of one task's meta-gradient."""
    print(f"\nmemory of one task's meta-gradient, B's model, MB\n{'':24}{OURS:>12}{BY_HAND:>12}")
    found = {(row["steps"], row["filters"], row["library"]): row["mb"] for row in rows}
    for steps, filters in dict.fromkeys((row["steps"], row["filters"]) for row in rows):
        shown = (found[steps, filters, library] for library in (OURS, BY_HAND))
        print(f"{steps:3} steps, {filters:3} filters  " + "".join(f"{mb:12,.1f}" for mb in shown))


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Inside, processes are started with these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _prepare(workload: Workload, path: Path) -> None:
    writer = get_context("spawn").Process(target=write, args=(workload, path))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise SystemExit(f"the episodes of {workload.title} could not be made")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
