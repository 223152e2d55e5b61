"""Learners side by side: each trained for as much processor time, then evaluated.

    python benchmarks/equal_time.py --dir DIR [--minutes 11.5] [--picture FILE.png] [--json] \\
        omniglot-5way-1shot "omniglot-5way-1shot-reptile outer.schedule.until=1800" …

One argument a learner: a recipe and its overrides. Each is a run of its own in DIR, on one core
(`--local`, one thread); several of these commands may work at once in one DIR. A run that has been
evaluated is not repeated for the same argument and minutes, so that a broken off comparison goes
on. Judged are the last weights.
"""

import argparse
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not benchmarks/, whose names hide
from maml_dist.reporting.plotting import STYLES, plain  # noqa: E402 - the same
from maml_dist.reporting.table import score_text  # noqa: E402 - found by the path above
from maml_dist.runs.run import Run  # noqa: E402 - the same

POLL = 2.0  # seconds between looks at the processor time
Row = dict[str, Any]


def main() -> None:
    """Train, evaluate, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("learners", nargs="+", metavar='"RECIPE key=value …"')
    parser.add_argument("--dir", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--minutes", type=float, default=11.5, help="processor time of each (11.5)")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the results")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error("--minutes must be positive")
    rows = [
        measure(learner.split(), options.dir, 60 * options.minutes) for learner in options.learners
    ]
    if options.json:
        print(json.dumps({"minutes": options.minutes, "rows": rows}))
    else:
        show(rows)
    if options.picture:
        draw(rows, options.picture)


def measure(words: list[str], folder: Path, seconds: float) -> Row:
    """The row of one recipe with its overrides: iterations, and each mode's last score.

    Raises:
        SystemExit: it cannot be trained or evaluated.
    """
    name = " ".join(words)
    digest = hashlib.sha256(f"{name} {seconds}".encode()).hexdigest()[:8]
    path = folder / f"{Path(words[0]).stem}-{digest}"
    done = path.with_name(f"{path.name}.json")  # training writes an evaluation, of its best weights
    if done.exists():
        kept: Row = json.loads(done.read_text())
        return kept
    train(words, path, seconds)
    _run("evaluate", str(path), "--checkpoint", "last")
    last = Run.open(path).checkpoints.last
    evaluation = json.loads((path / "evaluation.json").read_text())
    row: Row = {"recipe": name, "iterations": last.iteration if last else 0}
    for result in evaluation["results"]:
        score = result["steps"][-1]
        row[result["mode"]] = {name: score[name] for name in ("mean", "ci95")}
    done.write_text(json.dumps(row))
    return row


def train(words: list[str], path: Path, seconds: float) -> None:
    """Train until so many seconds of processor time are spent; then it ends at a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    again = (path / "recipe.yaml").exists()
    what = ["--resume", str(path)] if again else [*words, "--run", str(path)]
    spent = path.with_name(f"{path.name}.seconds")  # by the parts of it that were broken off
    before = float(spent.read_text()) if again and spent.exists() else 0.0
    if before >= seconds:
        return
    with subprocess.Popen(_command("train", *what, "--local"), env=_environment()) as process:
        used = 0.0
        while process.poll() is None and before + used < seconds:
            time.sleep(POLL)
            used = processor_seconds(process.pid) or used
            spent.write_text(str(before + used))
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    if process.returncode not in (0, 130):
        raise SystemExit(f"{' '.join(words)}: training failed")


def processor_seconds(pid: int) -> float | None:
    """What a process has used so far, by `ps`: [[days-]hours:]minutes:seconds."""
    command = ["ps", "-o", "time=", "-p", str(pid)]
    said = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if not said:
        return None  # it has just ended
    days, _, clock = said.rpartition("-")
    total = 0.0
    for number in clock.split(":"):
        total = 60 * total + float(number)
    return 86400 * int(days or 0) + total


def _run(*arguments: str) -> None:
    done = subprocess.run(_command(*arguments), env=_environment(), stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: failed")


def _command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"maml_dist.{module}", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": sys.path[0]}


def show(rows: list[Row]) -> None:
    """The table."""
    modes = _modes(rows)
    width = max(len(row["recipe"]) for row in rows)
    print(f"{'':{width}}{'iterations':>12}" + "".join(f"{mode:>20}" for mode in modes))
    for row in rows:
        scores = (
            f"{score_text(row[mode]['mean'])} ± {score_text(row[mode]['ci95'])}" for mode in modes
        )
        print(
            f"{row['recipe']:{width}}{row['iterations']:>12}" + "".join(f"{s:>20}" for s in scores)
        )


def _modes(rows: list[Row]) -> list[str]:
    """Those that all learners were judged in."""
    dicts = [{name for name, value in row.items() if isinstance(value, dict)} for row in rows]
    return [name for name in rows[0] if all(name in each for each in dicts)]


def draw(rows: list[Row], path: Path) -> None:
    """Write the picture: a row of points for each learner, with 95% intervals."""
    modes = _modes(rows)
    figure = Figure((7.0, 0.6 + 0.38 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for mode, (colour, _) in zip(modes, STYLES, strict=False):
        means, bounds = (
            [math.nan if row[mode][of] is None else row[mode][of] for row in rows]
            for of in ("mean", "ci95")
        )
        axes.errorbar(means, range(len(rows)), xerr=bounds, fmt="o", color=colour, label=mode)
    names = (
        f"{textwrap.shorten(row['recipe'], 60)}\n{row['iterations']:,} iterations" for row in rows
    )
    axes.set_yticks(range(len(rows)), list(names), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("score of test tasks after as much processor time")
    plain(axes)
    axes.legend(edgecolor="none", fontsize=8)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
