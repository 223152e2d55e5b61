"""Updates that do not wait, beside those that do, where one of the shards is slow.

    python -m benchmarks.stragglers [--shards 4] [--slow 6] [--iterations 3000] [--picture FILE.png]

Each gradient of a slice of the sinusoid takes 10 ms, on one shard `--slow` times as much: asleep,
so that shards need no cores of their own. Against the seconds: the held-out error after one step.
"""

import argparse
import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np  # noqa: E402 - after the backend
from matplotlib import pyplot  # noqa: E402 - the same

import maml_dist  # noqa: E402 - the same
from maml_dist.runtime import ray_making  # noqa: E402 - the same
from maml_dist.runtime.messages import Contribution  # noqa: E402 - the same
from maml_dist.runtime.private_ray import own_ray  # noqa: E402 - the same
from maml_dist.runtime.ray_actors import RayShard  # noqa: E402 - the same

GRADIENT = 0.01  # seconds
LOCK, TIMES = "MAML_DIST_SLOW_LOCK", "MAML_DIST_SLOW_TIMES"  # of the environment
MODES: dict[str, dict[str, Any]] = {
    "all wait (spread)": {"server": "spread"},
    "all wait (one server)": {"server": "one"},
    "backup=1": {"backup": 1},
    "max_staleness=1": {"max_staleness": 1},
    "max_staleness=4": {"max_staleness": 4},
}


class SleepyShard(RayShard):
    """A shard that takes its time; the first that is made in a run takes more."""

    def gradient(
        self, meta: np.ndarray, it: int, at: np.ndarray | None = None, *, slice: int = 0
    ) -> Contribution:
        """As ever, later."""
        if not hasattr(self, "_times"):
            self._lock = os.open(os.environ[LOCK], os.O_CREAT | os.O_RDWR)  # until the process ends
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._times = float(os.environ[TIMES])
            except BlockingIOError:
                self._times = 1.0
        time.sleep(GRADIENT * self._times)
        return super().gradient(meta, it, at, slice=slice)


def main() -> int:
    """Train in each way, one after the other; print a table and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stragglers", description=__doc__)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--slow", type=float, default=6.0, help="times that one shard takes")
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--picture", type=Path, help="draw there")
    options = parser.parse_args()
    vars(ray_making)["RayShard"] = SleepyShard
    print("| | ms an iteration | staleness (most) | dropped slices | error, last three |")
    print("|---|---|---|---|---|")
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {LOCK: f"{folder}/lock", TIMES: str(options.slow)}
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it
        with own_ray(options.shards + 1):
            for name, mode in MODES.items():
                curves[name] = curve(options, Path(folder, name.replace(" ", "-")), mode)
                print(line(name, curves[name]), flush=True)
    if options.picture:
        draw(curves, options)
    return 0


def curve(options: argparse.Namespace, folder: Path, mode: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run that were validated, with the seconds since the first of them."""
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        rows.append(row | {"seconds": time.monotonic()})

    maml_dist.meta_train(
        "sinusoid",
        run=folder,
        iterations=options.iterations,
        checkpoint_every=max(1, options.iterations // 20),
        log_every=max(1, options.iterations // 20),
        shards=options.shards,
        slices=options.shards,
        cpus_per_shard=1,
        validation_tasks=200,
        test_steps=1,
        progress=False,
        on_validation=note,
        **{"engine.running": "traced", "meta_batch": 24, "outer.beta": 0.003} | mode,
    )
    return [row | {"seconds": row["seconds"] - rows[0]["seconds"]} for row in rows]


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """A curve's, for the table."""
    first, last = rows[0], rows[-1]
    pace = (last["seconds"] - first["seconds"]) / (last["iteration"] - first["iteration"])
    error = np.mean([row["val/mse"] for row in rows[-3:]])
    means = [np.mean([row.get(key, 0.0) for row in rows]) for key in ("staleness", "dropped")]
    most = max(row.get("staleness/most", 0.0) for row in rows)
    stale, dropped = f"{means[0]:.2f} ({most:.1f})", f"{means[1]:.2f}"
    return f"| {name} | {1e3 * pace:.1f} | {stale} | {dropped} | {error:.3f} |"


def draw(curves: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """The error against the seconds."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, rows in curves.items():
        axes.plot([row["seconds"] for row in rows], [row["val/mse"] for row in rows], label=name)
    axes.set(xlabel="seconds", ylabel="held-out error after one step")
    axes.set_title(f"{options.shards} shards, one {options.slow:g} times as slow")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.picture, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
