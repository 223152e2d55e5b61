"""A large embedding, learned by rows and as a dense parameter: memory and bytes of an iteration.

    python -m benchmarks.sparse [--rows 10000000] [--dim 16] [--shards 1,2] [--iterations 20]
                                [--ways sparse,dense] [--json FILE]

The recipe `ratings`, with as many items as rows, Adam; shards linked as a run's are, each in a
process of its own, given the first state by files as they are by Ray's object store. Memory: the
most that a process holds that is no file's, beside what it has when torch is imported. Bytes: what
all shards have sent each other. The first iterations, which trace, are not timed.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
WARM = 3  # iterations before the clock starts
LOOK = 0.005  # seconds between two looks at the memory


def main() -> int:
    """Measure; print a table as it comes."""
    options = parse()
    rows = []
    print("| M rows | learned | shards | ms an iteration | KB sent an iteration | MB a shard |")
    print("|---|---|---|---|---|---|")
    for way in options.ways.split(","):
        for shards in map(int, options.shards.split(",")):
            row = measured(way, shards, options)
            rows.append(row)
            ms, sent = f"{row['ms']:.3g}", f"{row['sent'] / 1e3:,.0f}"
            print(
                f"| {options.rows / 1e6:g} | {way} | {shards} | {ms} | {sent} "
                f"| {max(row['mib']) * MIB / 1e6:,.0f} |",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return 0


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the embedding")
    parser.add_argument("--dim", type=int, default=16, help="numbers of a row")
    parser.add_argument("--shards", default="1,2", help="numbers of them")
    parser.add_argument("--meta-batch", type=int, default=32, help="tasks of an iteration")
    parser.add_argument("--iterations", type=int, default=20, help="that are timed")
    parser.add_argument("--ways", default="sparse,dense", help="sparse, dense")
    parser.add_argument("--json", help="a file for the numbers")
    return parser.parse_args()


def measured(way: str, shards: int, options: argparse.Namespace) -> dict[str, Any]:
    """A group of so many shards; what each of its processes says, put together."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        save(way, shards, options, Path(folder))
        pipes, processes = [], []
        for rank in range(shards):
            ours, theirs = context.Pipe()
            given = (rank, shards, way, vars(options), folder, theirs)
            process = context.Process(target=shard, args=given)
            process.start()
            pipes.append(ours)
            processes.append(process)
        addresses = [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send(addresses)
        said = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
    return {
        **{"learned": way, "shards": shards, "ms": max(each["ms"] for each in said)},
        **{"sent": sum(each["sent"] for each in said), "mib": [each["mib"] for each in said]},
    }


def shard(
    rank: int, shards: int, way: str, options: dict[str, Any], folder: str, pipe: Any
) -> None:
    """One of them: links up with the others, and iterates."""
    import torch

    from maml_dist.runtime.links import Door, Links
    from maml_dist.runtime.ranged_peer import RangedPeer, Roles
    from maml_dist.runtime.ranges import cut_evenly
    from maml_dist.runtime.shard import TaskShard

    torch.set_num_threads(1)
    start, saved = started(way, shards, options, Path(folder) / str(rank)), loaded(Path(folder))
    sent = [0]
    exchange = Links.exchange

    def counted(links: Links, given: Any, **more: Any) -> Any:
        sent[0] += sum(len(each.head) + len(bytes_of(each)) for each in given.values())
        return exchange(links, given, **more)

    vars_of: Any = Links
    vars_of.exchange = counted
    door = Door(None)
    pipe.send(door.address)
    addresses = pipe.recv()
    with peak() as most:
        owners = dict(enumerate(cut_evenly(len(saved[1]), shards)))
        peer = RangedPeer(
            TaskShard(start.shard),
            *(start.outer, saved, door.meet(rank, addresses, b"of a benchmark")),
            Roles(owners, [*range(shards)], ["here"] * shards),
            slices=start.shard.slices,
            learned=start.shard.learned,
            tables=start.shard.tables,
        )
        peer.block(WARM)
        sent[0], taken = 0, []
        for _ in range(options["iterations"]):
            clock = time.perf_counter()
            peer.block(1)
            taken.append(time.perf_counter() - clock)
    pipe.send(
        {
            "ms": 1e3 * statistics.median(taken),
            "sent": sent[0] / len(taken),
            "mib": most[0],
        }
    )


def started(way: str, shards: int, options: dict[str, Any], folder: Path) -> Any:
    """What the actors of a run are given, but for large numbers; of dense ones a task at a time."""
    from maml_dist.runtime.messages import Start
    from maml_dist.training.trainer import prepare

    rows, dim = options["rows"], options["dim"]
    keys: dict[str, Any] = {"task.items": rows, "model.rows": 1, "model.dim": dim}
    keys |= {"meta_batch": options["meta_batch"], "slices": shards, "engine.running": "traced"}
    keys |= {"engine.batching": "task" if way == "dense" else "vmap", "engine.memory": "graph"}
    run = prepare("ratings", keys, run=folder)
    spec, into = run.shard_spec, run.layout
    (table,) = spec.tables
    spec = spec._replace(tables=(table._replace(rows=rows),))
    if way == "dense":
        names, shapes = (table.name, *into.names), ((rows, dim), *into.shapes)
        layout, learned = into._replace(names=names, shapes=shapes), spec.learned + rows * dim
        spec = spec._replace(layout=layout, learned=learned, tables=())
    return Start(spec, run.initial_vector, run.experiment.outer)


def save(way: str, shards: int, options: argparse.Namespace, folder: Path) -> None:
    """The state that a run begins with, in files."""
    from maml_dist.runtime.server import first_state

    start = started(way, shards, vars(options), folder / "run")
    size = (options.rows, options.dim)
    whole = np.random.default_rng(0).standard_normal(size, np.float32)
    if start.shard.tables:
        start = start._replace(tables={start.shard.tables[0].name: whole})
    else:
        start = start._replace(meta=np.concatenate([whole.reshape(-1), start.meta]))
    it, meta, state = first_state(start)
    np.save(folder / "meta.npy", meta)
    (folder / "names.json").write_text(json.dumps([it, [*state]]))
    for number, value in enumerate(state.values()):
        np.save(folder / f"{number}.npy", value)


def loaded(folder: Path) -> Any:
    """That state, as it lies there."""
    it, names = json.loads((folder / "names.json").read_text())
    state = {name: np.load(folder / f"{n}.npy", mmap_mode="r") for n, name in enumerate(names)}
    return it, np.load(folder / "meta.npy", mmap_mode="r"), state


def bytes_of(message: Any) -> memoryview:
    """Of a message, those of its body."""
    from maml_dist.runtime.links import bytes_of

    return bytes_of(message.body)


@contextmanager
def peak() -> Iterator[list[float]]:
    """Inside, the most memory that is no file's is looked for, in MiB more than at its start."""
    before, most, ended = held(), [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(LOOK):
            most[0] = max(most[0], held() - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()
        most[0] = max(most[0], held() - before)


def held() -> float:
    """MiB that this process holds of memory that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    sys.exit(main())
