"""Sums over slices, in an order that does not depend on who adds what.

The order is a binary tree over the slices 0 … n - 1: at each level neighbours are added two by two,
and one that has none is taken as it is. So whoever has the slices below a branch may add them up
before they travel: a shard its own, a machine those of its shards.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from maml_dist.runtime.messages import Contribution


class PartialSum(NamedTuple):
    """What the slices first … stop - 1 contribute."""

    first: int
    stop: int
    sum: Contribution


def share(slices: int, number: int, of: int) -> range:
    """The slices of one of so many shards: neighbours, so that they can be added up."""
    return range(slices * number // of, slices * (number + 1) // of)


def holder(slice: int, slices: int, of: int) -> int:
    """The number of the shard that has it."""
    return ((slice + 1) * of - 1) // slices


def add_up(parts: Iterable[PartialSum], slices: int) -> list[PartialSum]:
    """Sums of as many slices as the order allows, in the order of slices, of `slices` in all."""
    done: list[PartialSum] = []
    for part in sorted(parts, key=lambda each: each.first):
        done.append(part)
        while len(done) > 1 and _neighbours(done[-2], done[-1], slices):
            other = done.pop()
            done[-1] = PartialSum(done[-1].first, other.stop, _added(done[-1].sum, other.sum))
    return done


def total(contributions: Sequence[Contribution]) -> Contribution:
    """The sum of what all slices contribute, given in their order."""
    parts = (PartialSum(n, n + 1, each) for n, each in enumerate(contributions))
    (whole,) = add_up(parts, len(contributions))
    return whole.sum


def _neighbours(left: PartialSum, right: PartialSum, slices: int) -> bool:
    """Whether two are all that is below a branch."""
    width = left.stop - left.first
    level = width & (width - 1) == 0 and left.first % (2 * width) == 0
    return level and left.stop == right.first and right.stop == min(right.first + width, slices)


def _added(one: Contribution, other: Contribution) -> Contribution:
    metrics = {
        name: one.metrics.get(name, 0.0) + other.metrics.get(name, 0.0)
        for name in {**one.metrics, **other.metrics}  # one of no task says nothing
    }
    return Contribution(
        one.gradient + other.gradient,
        one.tasks + other.tasks,
        metrics,
        (*one.skipped, *other.skipped),
        tuple(dict.fromkeys((*one.warnings, *other.warnings))),
    )
