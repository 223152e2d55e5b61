"""What updates at a zero gradient make of rows that wait for different numbers of them.

    SGD    v_j = momentum^j v,                  x <- x - sum_j rate_j v_j
    Adam   m_j = d1^j m,  v_j = d2^j v,         x <- x prod_j s_j - sum_j u_j prod_{i>j} s_i
           u_j = length_j m_j / (sqrt(v_j) + eps_j),  s_j = 1 - rate_j weight_decay

Terms far below rounding are left out. In float64, so that nothing is below float32's smallest; by
operations that round alike wherever an element stands, so that a row's bits are its own.
Legend: u = rows, j = updates waited for, dim.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

LEFT_OUT = 1e-3  # of the rounding of the first term
AT_ONCE = 1 << 20  # numbers that are computed with together


class Waiting(NamedTuple):
    """For how long rows have waited."""

    since: Tensor  # [u]: updates that each has seen
    made: int  # updates that were
    rates: Tensor  # [made, or more] float64, of each update

    @property
    def lag(self) -> Tensor:
        """Updates that each row has not seen [u]."""
        return self.made - self.since

    def of(self, some: Tensor) -> "Waiting":
        """Of some of the rows."""
        return self._replace(since=self.since[some])

    def updates(self, most: int) -> tuple[Tensor, Tensor]:
        """The first `most` updates that each row waits for, from 0 [u, j]; and which there are."""
        each = self.since.unsqueeze(1) + torch.arange(most)
        return each.clamp(max=self.made - 1), (each < self.made).double()


def sgd_idle(
    rows: Tensor, velocity: Tensor, waiting: Waiting, momentum: float, *, nesterov: bool
) -> tuple[Tensor, Tensor]:
    """Rows [u, dim] and their velocity."""
    powers, far = _powers(momentum, waiting.made), torch.zeros(len(rows), dtype=torch.float64)
    for some, most in _by_lag(waiting.lag, momentum, rows):
        update, there = waiting.of(some).updates(most)
        decay = powers[1 + nesterov : 1 + nesterov + most]
        far[some] = _added(waiting.rates[update] * there * decay)
    rows = (rows.double() - velocity.double() * far.unsqueeze(1)).to(rows.dtype)
    return rows, _decayed(velocity, powers[waiting.lag])


def adam_idle(
    rows: Tensor,
    first: Tensor,
    second: Tensor,
    waiting: Waiting,
    *,
    decays: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [u, dim] and their moments."""
    decay1, decay2 = decays
    powers1, powers2 = (_powers(decay, waiting.made) for decay in decays)
    halves = _powers(decay2**0.5, waiting.made)
    oldest, shrinks = _shrinks(waiting, weight_decay)
    found = rows.double() * shrinks[waiting.since - oldest].unsqueeze(1)
    moving = first.any(1)
    falls = decay1 / decay2**0.5 if decay2 else decay1  # without second moments eps alone is left
    for some, most in _by_lag(waiting.lag * moving, falls, rows):
        update, there = waiting.of(some).updates(most)
        root2 = (1 - powers2[update + 1]).sqrt()
        length = shrinks[update + 1 - oldest] * waiting.rates[update] * root2 * there
        length = length / (1 - powers1[update + 1]) * powers1[1 : most + 1]
        root = second[some].double().sqrt().unsqueeze(1) * halves[1 : most + 1].unsqueeze(1)
        terms = length.unsqueeze(2) / (root + (eps * root2).unsqueeze(2))
        found[some] = found[some] - first[some].double() * _added(terms)
    first = _decayed(first, powers1[waiting.lag])
    return found.to(rows.dtype), first, _decayed(second, powers2[waiting.lag])


def _by_lag(lag: Tensor, decay: float, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Rows that wait for about as many updates, and a power of two, of which the terms count."""
    longest = int(lag.max()) if len(lag) else 0
    terms = longest
    if decay < 1:
        left = LEFT_OUT * torch.finfo(rows.dtype).eps
        terms = min(longest, math.ceil(math.log(left, decay)) if decay else 1)
    most, below = 1, 0
    while below < terms:
        here = (lag > below) & ((lag <= most) | (most >= terms))
        some, below = torch.nonzero(here).squeeze(1), most
        for part in some.split(max(1, AT_ONCE // (most * rows.shape[1]))):
            yield part, most
        most *= 2


def _added(terms: Tensor) -> Tensor:
    """The sum over axis 1, of a power of two, by halves."""
    while terms.shape[1] > 1:
        one, other = terms.chunk(2, 1)
        terms = one + other
    return terms.squeeze(1)


def _shrinks(waiting: Waiting, weight_decay: float) -> tuple[int, Tensor]:
    """What weight decay leaves from after each update on, the last 1; and which is the first.

    Multiplied from the last on: bits do not depend on which row has waited longest.
    """
    oldest = int(waiting.since.min()) if len(waiting.since) else waiting.made
    if not weight_decay:
        return oldest, torch.ones(waiting.made - oldest + 1, dtype=torch.float64)
    each = 1 - weight_decay * waiting.rates[oldest : waiting.made]
    return oldest, torch.cat([each.flip(0).cumprod(0).flip(0), each.new_ones(1)])


def _powers(base: float, count: int) -> Tensor:
    """base^0, base^1, …: as many as a power of two of updates asks for, where so many wait."""
    return _known_powers(base, 4 << count.bit_length())


@lru_cache(maxsize=32)
def _known_powers(base: float, count: int) -> Tensor:
    return torch.tensor(base, dtype=torch.float64) ** torch.arange(count + 1)


def _decayed(moment: Tensor, by: Tensor) -> Tensor:
    return normal((moment.double() * by.unsqueeze(1)).to(moment.dtype))


def normal(moment: Tensor) -> Tensor:
    """A moment with zeros for what is below the smallest normal number.

    That of a weight whose gradient has become zero only ever decays, and a CPU takes a hundred
    times longer over numbers below 1e-38.
    """
    return hardshrink(moment, torch.finfo(moment.dtype).tiny)
