"""Control steps per second of a rollout, against its physics alone and against Gymnasium's loop.

    python benchmarks/rollouts.py [--tasks 40] [--episodes 20] [--horizon 200] [--rounds 5]
                                  [--workers 40] [--json]

All run HalfCheetah, one physics step a control step, on one thread, with actions drawn before:

- rollout: `HalfCheetah.roll`, profile `paper`, from drawing the starts to the finished tensors
- physics: `mujoco.batch.Batch.step` alone, from the same starts with the same actions: nothing is
  refreshed, observed or rewarded, and neither making the batch nor drawing counts
- gymnasium: `SyncVectorEnv` of `--workers` HalfCheetah-v5, one frame a step

They take turns, and seconds are the processor's, so that what else the machine does counts for
little; a ratio is the median over the rounds.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started

import gymnasium  # noqa: E402 - after the path
import numpy as np  # noqa: E402 - the same
import torch  # noqa: E402 - the same
from gymnasium.vector import SyncVectorEnv  # noqa: E402 - the same
from mujoco.batch import Batch  # noqa: E402 - the same

from maml_dist.core.data.task_source import TaskKey  # noqa: E402 - the same
from maml_dist.tasks.mujoco.half_cheetah import HalfCheetah  # noqa: E402 - the same


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(1)
    cases = {
        "rollout": rollout(options),
        "physics": physics(options),
        "gymnasium": loop(options),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(options.rounds + 1):
        for name, case in cases.items():
            begun = time.process_time()
            steps = case()
            if turn:  # the first one warms up
                rates[name].append(steps / (time.process_time() - begun))
    medians = {name: statistics.median(rate) for name, rate in rates.items()}
    ratios = {
        name: statistics.median(
            ours / theirs for ours, theirs in zip(rates["rollout"], rates[name], strict=True)
        )
        for name in ("physics", "gymnasium")
    }
    if options.json:
        print(json.dumps({"steps_per_second": medians, "rounds": rates, "ratios": ratios}))
        return
    for name, rate in medians.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(f"{name:10} {rate:10,.0f} control steps a second ({spread})")
    print(f"a rollout runs at {ratios['physics']:.0%} of the physics' speed")
    print(f"a rollout runs at {ratios['gymnasium']:.1f} times the speed of Gymnasium's loop")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, of in (
        ("tasks", 40, "of a rollout"),
        ("episodes", 20, "of a task"),
        ("horizon", 200, "control steps"),
        ("rounds", 5, "measured of each"),
        ("workers", 40, "environments of Gymnasium's loop"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{of} ({default})")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    return parser.parse_args()


def actions(*shape: int) -> np.ndarray:
    """Actions in [-1, 1], each of six numbers."""
    return np.random.default_rng(0).uniform(-1, 1, (*shape, 6)).astype(np.float32)


def rollout(options: argparse.Namespace) -> Callable[[], int]:
    """Rolls the actions out as the means of a policy that hardly deviates."""

    source = HalfCheetah(horizon=options.horizon, episodes=options.episodes)
    tasks = [source.sample(TaskKey(0, "train", 0, index)) for index in range(options.tasks)]
    means = actions(options.horizon, options.tasks, options.episodes)
    outputs = torch.from_numpy(np.concatenate([means, np.full_like(means, -20)], -1))

    def run() -> int:
        drawn = iter(outputs)
        return source.roll(lambda seen: next(drawn), tasks, stage=0).mask.numel()

    return run


def physics(options: argparse.Namespace) -> Callable[[], int]:
    """Steps the same bodies by the same actions, and does nothing else."""
    source = HalfCheetah(horizon=options.horizon, episodes=options.episodes)
    tasks = [source.sample(TaskKey(0, "train", 0, index)) for index in range(options.tasks)]
    cheetahs: Any = source.simulator(tasks, stage=0)
    count = options.tasks * options.episodes
    batch = Batch(cheetahs.physics.model, count, 1)
    start = [drawn.reshape(count, -1) for drawn in cheetahs.start]
    chosen = actions(options.horizon, count).astype(np.float64)
    qpos, qvel, ctrl = (batch.bind(name) for name in ("qpos", "qvel", "ctrl"))

    def run() -> int:
        qpos[:], qvel[:] = start
        for ctrl[:] in chosen:
            batch.step()
        return chosen.shape[0] * count

    return run


def loop(options: argparse.Namespace) -> Callable[[], int]:
    """Steps Gymnasium's environments one after the other."""
    if importlib.util.find_spec("imageio") is None:  # it imports what only its films need
        sys.modules["imageio"] = ModuleType("imageio")
    make = [lambda: gymnasium.make("HalfCheetah-v5", frame_skip=1)] * options.workers
    environments = SyncVectorEnv(make)
    chosen = actions(options.horizon, options.workers)

    def run() -> int:
        environments.reset(seed=0)
        for action in chosen:
            environments.step(action)
        return options.horizon * options.workers

    return run


if __name__ == "__main__":
    main()
