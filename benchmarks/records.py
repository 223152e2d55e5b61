"""How fast `Records` feeds tasks from Parquet: one shard's part of a generated set of millions.

    python benchmarks/records.py [--tasks 1000000] [--shards 4] [--dir DIR] [--json]

Task: y = amplitude * sin(w.x + phase), its own w; rows of one task side by side, `--group-tasks`
tasks in a row group. Generated in a process of its own, so that peak memory is the reader's.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

FILES = 8
MIB = 2**20


def generate(folder: Path, args: argparse.Namespace) -> None:
    """Write the set; nothing if it is there already (the folder's name tells its sizes)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + ".part")
    unfinished.mkdir(parents=True, exist_ok=True)
    names = [f"x{number}" for number in range(args.features)]
    kinds = [("task_id", pa.int64()), *((name, pa.float32()) for name in [*names, "y"])]
    rng = np.random.default_rng(0)
    for number, tasks in enumerate(np.array_split(np.arange(args.tasks), FILES)):
        path = unfinished / f"part-{number:03}.parquet"
        with pq.ParquetWriter(path, pa.schema(kinds), use_dictionary=["task_id"]) as writer:
            for start in range(0, len(tasks), args.group_tasks):
                ids = tasks[start : start + args.group_tasks]
                x = rng.random((len(ids), args.rows_per_task, args.features), np.float32)
                w = rng.standard_normal((len(ids), args.features, 1), np.float32)
                amplitude, phase = rng.random((2, len(ids), 1), np.float32)
                y = 5 * amplitude * np.sin((x @ w)[..., 0] + np.pi * phase)
                columns = [np.repeat(ids, args.rows_per_task), *x.reshape(-1, args.features).T]
                writer.write_table(pa.table([*columns, y.ravel()], schema=pa.schema(kinds)))
    unfinished.rename(folder)


def peak() -> float:
    """The most memory this process ever held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def bytes_read() -> float:
    """What this process has read so far, in MiB; not a number where the system does not tell."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) / MIB if counts.exists() else float("nan")


def measure(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Feed `iterations` meta-batches as shard 0 of `shards` would; seconds and MiB."""
    from maml_dist.core.data.task_source import TaskKey
    from maml_dist.tasks.records import Records

    names = tuple(f"x{number}" for number in range(args.features))
    shots = args.rows_per_task // 2
    source = Records(
        str(folder), names, "y", shots=shots, query=shots, visit=args.visit, cache=args.cache
    )
    before, read, started = peak(), bytes_read(), time.perf_counter()
    index = source.index
    indexed, index_read = time.perf_counter(), bytes_read()
    sampling = 0.0
    for it in range(args.iterations):
        start = time.perf_counter()
        mine = range(0, args.meta_batch, args.shards)
        tasks = [source.sample(TaskKey(0, "train", it, number)) for number in mine]
        sampling += time.perf_counter() - start
        source.collect(tasks, steps=1)
    fed, seconds = args.iterations * len(mine), time.perf_counter() - indexed
    return {
        "tasks": index.num_tasks,
        "data_mib": sum(path.stat().st_size for path in folder.iterdir()) / MIB,
        "index_seconds": indexed - started,
        "index_read_mib": index_read - read,
        "tasks_fed": fed,
        "tasks_per_second": fed / seconds,
        "sample_us_per_task": 1e6 * sampling / fed,
        "collect_us_per_task": 1e6 * (seconds - sampling) / fed,
        "row_groups": len(index.groups),
        "row_groups_read": index.read.cache_info().misses,
        "read_mib": bytes_read() - index_read,
        "imports_peak_mib": before,
        "peak_mib": peak(),
    }


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, what in (
        ("tasks", 1_000_000, "tasks in the set"),
        ("rows-per-task", 20, "rows of each task: half for support, half for query"),
        ("features", 8, "feature columns"),
        ("group-tasks", 1000, "tasks in a row group"),
        ("meta-batch", 100, "tasks in a meta-iteration, all shards together"),
        ("iterations", 1000, "meta-iterations to feed"),
        ("shards", 1, "shards; the first one's part is measured"),
        ("visit", 64, "meta-iterations an index stays in a row group"),
        ("cache", 128, "row groups kept in memory"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")
    parser.add_argument("--dir", type=Path, help="keep the set here (default: thrown away)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as thrown_away:
        sizes = (args.tasks, args.rows_per_task, args.features, args.group_tasks)
        folder = (args.dir or Path(thrown_away)) / "records-{}x{}x{}-{}".format(*sizes)
        writer = multiprocessing.get_context("spawn").Process(target=generate, args=(folder, args))
        started = time.perf_counter()
        writer.start()
        writer.join()
        generated = {"generate_seconds": time.perf_counter() - started}
        results = generated | measure(folder, args)
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:20} {value:14,.1f}")


if __name__ == "__main__":
    main()
