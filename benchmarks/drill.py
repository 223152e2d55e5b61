"""The fault drill: runs that are disturbed at random, and must end with an undisturbed one's bits.

    python -m benchmarks.drill [--seeds 20] [--first 0] [--kind supervised|ranges|rollouts]
                               [--faults A,B] [--server spread|split|one]
    python -m benchmarks.drill --each    # one fault a seed, each in turn: for the seconds

Each seed draws faults, and the iterations at which they strike, some while another is being mended.
The run is a driver of its own on a Ray cluster of this machine, with two machines of two cores;
where a fault ends the driver, `--resume` goes on. Of each seed it is told whether the last
checkpoint has the bits, and every row of metrics the numbers, of `--local`; whether something hung
(no iteration for `--patience` seconds); and what of the output is not ours. The second table has,
of each fault that struck alone, the seconds until it was said, and until the run went on.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.drill_driver import ENDED, Driver
from benchmarks.drill_faults import FAULTS, Machines

SUPERVISED = ("sinusoid", "iterations=800", "checkpoint_every=50", "meta_batch=6")
SETTINGS = {
    "supervised": SUPERVISED,
    "ranges": (*SUPERVISED, "model.hidden=[320, 320]"),  # of which each shard owns a part
    "rollouts": (
        *("navigation", "iterations=60", "checkpoint_every=5", "meta_batch=6"),
        *("task.episodes=5", "task.horizon=40"),
    ),
}
COMMON = ("slices=3", "log_every=1", "validation_tasks=6", "test_tasks=6", "engine.running=eager")
ON_RAY = ("shards={min: 1, max: 3}", "heartbeat_timeout=5")
WORKERS = {"supervised": (), "ranges": (), "rollouts": ("rollout_workers=1", "cpus_per_shard=0.5")}
PACES = ("it_per_s", "tasks_per_s", "steps_per_s")
NOT_OURS = ("Traceback", "(raylet", "Unhandled error", "RayActorError", "core_worker")


@dataclass(frozen=True)
class Strike:
    """A fault, and when."""

    fault: str
    iteration: int
    after: float  # seconds after that iteration was seen


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    strikes: list[Strike]
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    noticed: dict[str, float] = field(default_factory=dict)  # seconds, of faults that struck alone
    went_on: dict[str, float] = field(default_factory=dict)


def main() -> int:
    """Drill, and print."""
    options = parse()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder, "undisturbed")
        train(options.kind, undisturbed, "--local")
        with Machines() as machines:
            for seed in range(options.first, options.first + options.seeds):
                strikes = schedule(seed, options)
                outcome = Outcome(seed, strikes)
                drill(outcome, machines, Path(folder, str(seed)), undisturbed, options)
                print(line(outcome), flush=True)
                outcomes.append(outcome)
    print(table(outcomes))
    return int(any(outcome.wrong for outcome in outcomes))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drill", description=__doc__)
    parser.add_argument("--seeds", type=int, help="20; with --each as many as faults")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kind", choices=[*SETTINGS], default="supervised")
    parser.add_argument("--server", choices=["spread", "split", "one"], help="who updates")
    parser.add_argument("--faults", help="only these, by name, with commas between")
    parser.add_argument("--each", action="store_true", help="one fault a seed, each in turn")
    parser.add_argument("--strikes", type=int, default=5, help="faults a seed")
    parser.add_argument("--patience", type=float, default=150.0, help="seconds")
    options = parser.parse_args()
    options.faults = options.faults.split(",") if options.faults else applicable(options.kind)
    if unknown := set(options.faults) - set(FAULTS):
        parser.error(f"no fault {min(unknown)!r}; there are {', '.join(FAULTS)}")
    options.seeds = options.seeds or (len(options.faults) if options.each else 20)
    return options


def applicable(kind: str) -> list[str]:
    """The faults that can strike such a run."""
    return [name for name in FAULTS if kind == "rollouts" or "rollout worker" not in name]


def schedule(seed: int, options: argparse.Namespace) -> list[Strike]:
    """The faults of a seed, in the order of their iterations: each third one with another's."""
    draw = random.Random(seed)
    last = next(int(key[11:]) for key in SETTINGS[options.kind] if key.startswith("iterations="))
    if options.each:
        return [Strike(options.faults[seed % len(options.faults)], last // 3, 0.5)]
    strikes: list[Strike] = []
    for iteration in sorted(draw.sample(range(2, last - last // 10), options.strikes)):
        if strikes and draw.random() < 1 / 3:
            iteration, after = strikes[-1].iteration, strikes[-1].after + draw.uniform(0.2, 8)
        else:
            after = draw.uniform(0, 1)
        strikes.append(Strike(draw.choice(options.faults), iteration, after))
    return strikes


def command(kind: str, folder: Path, *more: str) -> list[str]:
    """That trains such a run in a folder."""
    words = [*SETTINGS[kind], *COMMON, "--run", str(folder), *more]
    return [sys.executable, "-m", "maml_dist.train", *words]


def train(kind: str, folder: Path, *more: str) -> None:
    """Do it, undisturbed."""
    subprocess.run(command(kind, folder, *more), check=True, capture_output=True)


def drill(
    outcome: Outcome,
    machines: Machines,
    folder: Path,
    undisturbed: Path,
    options: argparse.Namespace,
) -> None:
    """One seed, from its first iteration to the comparison."""
    began = time.monotonic()
    server = (f"server={options.server}",) if options.server else ()
    on_ray = (*ON_RAY, *server, *WORKERS[options.kind], "--address", machines.address)
    driver = Driver(command(options.kind, folder, *on_ray), folder, machines.address)
    machines.driver = driver
    waiting = list(outcome.strikes)
    seen: dict[int, float] = {}  # when an iteration was first seen
    struck: list[tuple[Strike, float]] = []
    try:
        while driver.runs(patience=options.patience):
            machines.mend()
            if waiting and driver.reached >= waiting[0].iteration:
                due = seen.setdefault(waiting[0].iteration, time.monotonic()) + waiting[0].after
                if time.monotonic() >= due:
                    strike = waiting.pop(0)
                    struck.append((strike, time.monotonic()))
                    driver.note(f"--- {strike.fault}")
                    FAULTS[strike.fault](machines, random.Random(outcome.seed))
            time.sleep(0.1)
    except TimeoutError as error:
        outcome.wrong.append(str(error))
    finally:
        driver.end()
        machines.mend(now=True)
    outcome.seconds = time.monotonic() - began
    measure(outcome, struck, driver)
    if waiting:
        outcome.wrong.append(f"ended before {len(waiting)} faults")
    outcome.wrong += driver.wrong
    outcome.wrong += differences(driver.folder, undisturbed)
    outcome.wrong += [f"the output has {text!r}" for text in NOT_OURS if text in driver.output]
    if outcome.wrong:
        print(driver.output[-6000:], file=sys.stderr, flush=True)


def measure(outcome: Outcome, struck: list[tuple[Strike, float]], driver: Driver) -> None:
    """The seconds until a fault was said, and until the run went on, of those that struck alone."""
    times = [at for _, at in struck]
    for (strike, at), until in zip(struck, [*times[1:], float("inf")], strict=True):
        if len([each for each in outcome.strikes if each.iteration == strike.iteration]) > 1:
            continue
        words = [(when, text) for when, text in driver.words if at < when < until]
        again = [when for when, text in words if "goes on from" in text or text in ENDED.values()]
        later = [when for when, _ in driver.rows if again and again[0] < when < until]
        if words:
            outcome.noticed[strike.fault] = words[0][0] - at
        if later:
            outcome.went_on[strike.fault] = later[0] - at


def differences(folder: Path, undisturbed: Path) -> list[str]:
    """In what a run differs from the undisturbed one: nothing, if all is well."""
    wrong = []
    ours, theirs = last(folder), last(undisturbed)
    if ours.name != theirs.name:
        return [f"the last checkpoint is {ours.name}, not {theirs.name}"]
    one, other = load_file(ours), load_file(theirs)
    names = [name for name in other if name not in one or bits(one[name]) != bits(other[name])]
    if names or one.keys() != other.keys():
        wrong.append(f"other bits: {', '.join(names) or 'more of them'}")
    mine = {row["iteration"]: row for row in rows(folder)}
    for row in rows(undisturbed):
        same = mine.get(row["iteration"], {})
        if odd := [name for name in row if name not in PACES and same.get(name) != row[name]]:
            wrong.append(f"row {row['iteration']}: {odd[0]} is {same.get(odd[0])}")
            break
    if len(mine) != len(rows(folder)):
        wrong.append("a row stands twice")
    return wrong


def bits(tensor: Tensor) -> bytes:
    """A tensor's, and its shape."""
    return str(tensor.shape).encode() + tensor.numpy().tobytes()


def last(folder: Path) -> Path:
    """A run's last checkpoint."""
    return max(Path(folder, "checkpoints").glob("0*.safetensors"))


def rows(folder: Path) -> list[dict[str, Any]]:
    """A run's rows of metrics; one that was validated later has a second line, which is added."""
    merged: list[dict[str, Any]] = []
    for text in Path(folder, "metrics.jsonl").read_text().splitlines():
        row = json.loads(text)
        if merged and merged[-1]["iteration"] == row["iteration"]:
            merged[-1] |= row
        else:
            merged.append(row)
    return merged


def line(outcome: Outcome) -> str:
    """A seed's, for the first table."""
    faults = ", ".join(f"{strike.fault} at {strike.iteration}" for strike in outcome.strikes)
    verdict = "; ".join(outcome.wrong) or "same bits"
    return f"| {outcome.seed} | {faults} | {outcome.seconds:.0f} s | {verdict} |"


def table(outcomes: list[Outcome]) -> str:
    """The medians by fault."""
    lines = ["", "| fault | times | said after | went on after |", "|---|---|---|---|"]
    for name in FAULTS:
        noticed = [each.noticed[name] for each in outcomes if name in each.noticed]
        went_on = [each.went_on[name] for each in outcomes if name in each.went_on]
        times = sum(strike.fault == name for each in outcomes for strike in each.strikes)
        if times:
            lines.append(f"| {name} | {times} | {seconds(noticed)} | {seconds(went_on)} |")
    right = sum(not outcome.wrong for outcome in outcomes)
    return "\n".join([*lines, "", f"{right} of {len(outcomes)} seeds: same bits"])


def seconds(values: list[float]) -> str:
    """The median and the most."""
    if not values:
        return "–"
    return f"{statistics.median(values):.1f} s (most {max(values):.1f})"


if __name__ == "__main__":
    sys.exit(main())
