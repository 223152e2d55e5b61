"""The cost of a round: a model fitted to what overhead.py measures, and where it leads.

    seconds = fixed + each * partners + copy * bytes + update * elements

On one machine, whose cores all share: the bytes and the updated elements of all actors. On machines
of a network, of A_MACHINE shards each: those of the actor that all wait for, and the bytes that
pass the busiest machine's card, at its speed. Fitted by least squares of the relative error, no
coefficient below zero.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from maml_dist.runtime.ray_peers import RANGED_FROM

FLOAT = 4  # bytes
GBIT = 1e9 / 8  # bytes a second
NETWORKS = (10, 100, 400)  # Gbit/s
FAR = (8, 64, 512)  # shards
SIZES = (10_000, 1_000_000, 100_000_000)
A_MACHINE = 8  # shards of it, that share its card
EFFICIENT = 0.9  # share of an iteration that is computing
MOST = 4096  # shards that are looked at
# Seconds that a shard computes in an iteration, and parameters. A-D: those of docs/benchmarks.md on
# CPU cores; a GPU is as much quicker as it is, so that fewer shards do. Of the last, an assumption.
WORK = {
    "A: sinusoid": (0.0004, 1_761),
    "B: Omniglot 5-way": (0.49, 112_005),
    "C: Omniglot 20-way": (2.05, 112_980),
    "D: 84 x 84": (2.0, 32_773),
    "a tenth of B": (0.049, 112_005),
    "transformer of 100 M": (1.0, 100_000_000),
}


class Round(NamedTuple):
    """A measurement."""

    mode: str
    size: int  # meta-parameters
    shards: int
    seconds: float


def traffic(mode: str, size: int, shards: int) -> float:
    """Bytes through all actors in a round."""
    whole = FLOAT * size
    if mode != "spread":
        return 2.0 * shards * whole
    return (shards if size < RANGED_FROM else 2) * (shards - 1) * whole


def busiest(mode: str, size: int, shards: int) -> float:
    """Bytes through the actor that all wait for; server parts are half as many as shards."""
    whole = FLOAT * size
    if mode == "one":
        return 2.0 * shards * whole
    if mode == "split":
        return 2.0 * whole * max(1.0, shards / max(2, shards // 2))
    return whole * ((shards - 1) if size < RANGED_FROM else 2 * (shards - 1) / shards)


def partners(mode: str, size: int, shards: int) -> float:
    """With how many the one that all wait for exchanges messages."""
    if mode == "one" or (mode == "spread" and size < RANGED_FROM):
        return float(shards)
    return float(shards if shards <= A_MACHINE else A_MACHINE + shards / A_MACHINE)


def wired(mode: str, size: int, shards: int) -> float:
    """Bytes through the busiest machine's card in a round, one way; none where there is one."""
    whole, machines = FLOAT * size, math.ceil(shards / A_MACHINE)
    elsewhere = 1 - 1 / machines
    if mode == "one":  # all gradients come in
        return whole * shards * elsewhere
    if mode == "spread" and size < RANGED_FROM:
        return float(whole * A_MACHINE * (shards - A_MACHINE)) if machines > 1 else 0.0
    return 2 * whole * elsewhere  # gradients, added up by machine, and the new ranges


def updated(mode: str, size: int, shards: int, *, all_actors: bool) -> float:
    """Elements that Adam updates in a round; each replica of a small vector updates all of it."""
    if mode == "spread" and size < RANGED_FROM:
        return float(size * shards if all_actors else size)
    if mode == "spread":
        return float(size if all_actors else size / shards)
    return float(size) if mode == "one" or all_actors else size / max(2, shards // 2)


def fit(rounds: Sequence[Round]) -> tuple[np.ndarray, list[float]]:
    """The coefficients (fixed, each, copy, update), and the relative residual of each round."""
    of = [(one.mode, one.size, one.shards) for one in rounds]
    rows = np.array(
        [[1, each[2], traffic(*each), updated(*each, all_actors=True)] for each in of], float
    )
    seconds = np.array([one.seconds for one in rounds])
    best, found = math.inf, np.zeros(4)
    for some in (each for count in (1, 2, 3, 4) for each in combinations(range(4), count)):
        columns = rows[:, some] / seconds[:, None]
        weights = np.linalg.lstsq(columns, np.ones(len(rounds)), rcond=None)[0]
        off = float(np.square(columns @ weights - 1).sum())
        if (weights >= 0).all() and off < best:
            best, found = off, np.zeros(4)
            found[[*some]] = weights
    return found, list(rows @ found / seconds - 1)


def reached(found: np.ndarray, mode: str, size: int, shards: int, gbit: float) -> float:
    """Seconds of a round on such a network."""
    fixed, each, copy, update = found
    talk = fixed + each * partners(mode, size, shards)
    moved = copy * busiest(mode, size, shards) + wired(mode, size, shards) / (gbit * GBIT)
    return float(talk + moved + update * updated(mode, size, shards, all_actors=False))


def most_shards(found: np.ndarray, mode: str, size: int, computing: float, gbit: float) -> int:
    """Of 1, 2, 4, … shards, the most of which each still computes for 90% of an iteration."""
    most, shards = 0, 1
    while shards <= MOST:
        if computing / (computing + reached(found, mode, size, shards, gbit)) >= EFFICIENT:
            most = shards
        shards *= 2
    return most


def fitted(rounds: Sequence[Round]) -> str:
    """The fits, and tables of what they say of networks."""
    modes = list(dict.fromkeys(one.mode for one in rounds))
    fits = {mode: fit([one for one in rounds if one.mode == mode]) for mode in modes}
    lines = [
        "",
        "| server | fixed | a shard | a GB | 1 M updated | residuals |",
        "|---|---|---|---|---|---|",
    ]
    for mode, ((fixed, each, copy, update), residuals) in fits.items():
        off = f"{math.sqrt(np.mean(np.square(residuals))):.0%}, {max(residuals, key=abs):+.0%}"
        lines.append(
            f"| {mode} | {1e3 * fixed:.2g} ms | {1e3 * each:.2g} ms | {1e9 * copy:.2g} s "
            f"| {1e9 * update:.2g} ms | {off} |"
        )
    head = " | ".join(f"{gbit} Gbit/s" for gbit in NETWORKS)
    lines += [
        "",
        f"| M parameters | shards | server | {head} |",
        "|---" * (3 + len(NETWORKS)) + "|",
    ]
    for size in SIZES:
        for shards in FAR:
            for mode in modes:
                times = [reached(fits[mode][0], mode, size, shards, gbit) for gbit in NETWORKS]
                cells = " | ".join(f"{1e3 * each:.3g} ms" for each in times)
                lines.append(f"| {size / 1e6:g} | {shards} | {mode} | {cells} |")
    lines += [
        "",
        f"| most shards at {EFFICIENT:.0%} | computing | server | {head} |",
        "|---" * (3 + len(NETWORKS)) + "|",
    ]
    for name, (computing, size) in WORK.items():
        for mode in modes:
            most = [most_shards(fits[mode][0], mode, size, computing, gbit) for gbit in NETWORKS]
            cells = " | ".join(f"{each}{'+' * (each == MOST)}" for each in most)
            lines.append(f"| {name} | {1e3 * computing:g} ms | {mode} | {cells} |")
    return "\n".join(lines)
