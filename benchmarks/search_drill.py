"""The search drill: a search that is killed at random moments must end as an undisturbed one.

    python -m benchmarks.search_drill [--kills 10] [--trials 8] [--seed 0]

The driver is killed (SIGKILL) some seconds after each start, or after the first row that a trial
then writes, in turns; `--resume` goes on. It is told whether
all trials have the values and scores of the undisturbed search and the best is the same; whether a
trial fell behind a checkpoint that it had; and what was left running after a kill.
"""

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

SEARCH = """
recipe: sinusoid
search:
  learner.alpha: {loguniform: [0.001, 0.05]}
  outer.beta: {loguniform: [0.0003, 0.003]}
  learner.steps: {choice: [1, 2]}
overrides: {iterations: 3000, checkpoint_every: 100, log_every: 100, validation_tasks: 20}
scheduler: fifo
"""
LEAST, MOST = 10.0, 60.0  # seconds from a start to a kill
MARK = "SEARCH_DRILL"  # in the environment of all that a search starts
LINGER = 30.0  # seconds in which what a killed driver leaves must end


def main() -> int:
    """Run both searches; print what became of the killed one."""
    options = parse()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "search.yaml").write_text(f"{SEARCH}num_samples: {options.trials}\n")
        first = ["search.yaml", "--run"]
        clock = time.monotonic()
        finish(start(folder, *first, "undisturbed"), folder)
        print(f"undisturbed: {time.monotonic() - clock:.0f} s", flush=True)
        process, behind, left = start(folder, *first, "killed"), 0, 0
        for number in range(options.kills):
            seconds = draw.uniform(LEAST, MOST)
            behind += watch(process, folder / "killed", seconds, trained=number % 2 == 0)
            if process.poll() is not None:
                print(f"ended before kill {number + 1}", flush=True)
                break
            process.kill()
            process.wait()
            left += remaining(folder)
            at = {trial: rows[-1] for trial, rows in reached(folder / "killed").items() if rows}
            print(f"kill {number + 1} after {seconds:.0f} s: at {at}", flush=True)
            begun = (folder / "killed" / "search.yaml").exists()
            process = start(folder, *(["--resume"] if begun else first), "killed")
        finish(process, folder)
        ours, right = table(folder / "killed"), table(folder / "undisturbed")
        same = sum(mine == other for mine, other in zip(ours, right, strict=False))
        print(f"{same} of {len(right)} rows the same; the best the same: {ours[0] == right[0]}")
        print(f"trials behind a checkpoint of theirs: {behind}; left running after kills: {left}")
        return 0 if same == len(right) == len(ours) and not behind and not left else 1


def start(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Start the command."""
    command = [sys.executable, "-m", "maml_dist.tune", *words]
    marked = os.environ | {MARK: str(folder)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=marked, stdout=log, stderr=log)


def finish(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait for its end."""
    if process.wait() != 0:
        print((folder / "log").read_text()[-2000:], file=sys.stderr)
        raise SystemExit(f"the search ended with status {process.returncode}")


def watch(
    process: "subprocess.Popen[bytes]", folder: Path, seconds: float, *, trained: bool
) -> int:
    """For so long; how many trials were seen behind what they had a checkpoint of before.

    `trained`: so long from the first new row on.
    """
    before = reached(folder)
    had = {trial: checkpoint(folder, trial) for trial in before}
    behind: set[str] = set()
    end = math.inf if trained else time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        now = reached(folder)
        if end == math.inf and now != before:
            end = time.monotonic() + seconds
        for trial, rows in now.items():
            if had.get(trial, 0) > (rows[-1] if rows else 0):
                behind.add(trial)
        time.sleep(0.2)
    return len(behind)


def reached(folder: Path) -> dict[str, list[int]]:
    """Of each trial that has begun, the iterations of its rows."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("trials/*/metrics.jsonl")):
        whole = path.read_text().rpartition("\n")[0].splitlines()
        found[path.parent.name] = [json.loads(line)["iteration"] for line in whole]
    return found


def checkpoint(folder: Path, trial: str) -> int:
    """The iteration of its last checkpoint."""
    index = folder / "trials" / trial / "checkpoints" / "index.json"
    if not index.exists():
        return 0
    entries: list[dict[str, Any]] = json.loads(index.read_text())["last"]
    return max((entry["iteration"] for entry in entries), default=0)


def remaining(folder: Path) -> int:
    """Processes that a killed driver has left, after some time."""
    end, mark = time.monotonic() + LINGER, f"{MARK}={folder}".encode()
    while found := [*filter(partial(has, mark), Path("/proc").glob("[0-9]*/environ"))]:
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    return len(found)


def has(mark: bytes, environment: Path) -> bool:
    """Whether a process lives that was started with the mark in its environment."""
    try:
        return mark in environment.read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of its table, but for what time it took."""
    with (folder / "trials.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
