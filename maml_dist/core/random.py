"""Random numbers as pure functions of a key: counter-based, so that no generator has a state.

    number i of a key = permutation of 32 bits, itself chosen by the key, at i

The same key gives the same numbers whatever the batching or the shard (floats to rounding), and the
arithmetic (integers below 2^63, no overflow) can be traced, vmapped and compiled. The permutation
is triple32 (nullprogram.com/blog/2018/07/31), the key mixed in before its first two products.
"""

import hashlib
import math
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
# triple32's, less 2^32 where above 2^31: the same product modulo 2^32, never beyond 64 bits.
_FACTORS = (0xED5AD4BB - (1 << 32), 0xAC4C1B51 - (1 << 32), 0x31848BAB)


def keys(seed: int, split: str, it: int, indices: Sequence[int]) -> Tensor:
    """A key [task] for each task `index` of (seed, split, it): a pure function of the four."""
    return keys_by_group([((seed, split, it), indices)])


def keys_by_group(groups: Sequence[tuple[tuple[int, str, int], Sequence[int]]]) -> Tensor:
    """The keys [task] of tasks ((seed, split, it), indices), one group after the other."""
    words = [hashlib.blake2b(repr(name).encode(), digest_size=8).digest() for name, _ in groups]
    bases = np.frombuffer(b"".join(words), np.uint64)
    counts = [len(indices) for _, indices in groups]
    each = np.fromiter(chain.from_iterable(own for _, own in groups), np.uint64, sum(counts))
    mixed = (bases.repeat(counts) + each) * np.uint64(0x9E3779B97F4A7C15)
    return torch.from_numpy((mixed >> np.uint64(1)).astype(np.int64))


def fold(key: Tensor, stream: int | Tensor) -> Tensor:
    """Another key: one for each `stream` (0 or more) of this one."""
    high = key >> 32
    low = _mix(key & _LOW, high, stream & _LOW)
    return (_mix(high, low, stream >> 32) >> 1 << 32) | low


def uniform(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform numbers of `shape` in (0, 1), the ends left out in every precision."""
    dtype = dtype or torch.get_default_dtype()
    digits = min(32, -round(math.log2(torch.finfo(dtype).eps)))  # that `dtype` holds beside a half
    kept = _bits(key, math.prod(shape)) >> (32 - digits)
    return ((kept.to(dtype) + 0.5) * 2.0**-digits).reshape(tuple(shape))


def normal(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal numbers of `shape` (Box and Muller: two out of two uniform ones)."""
    dtype = dtype or torch.get_default_dtype()
    size = math.prod(shape)
    within = torch.promote_types(dtype, torch.float32)
    first, second = ((_bits(key, size + size % 2).to(within) + 0.5) * 2.0**-32).chunk(2)
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    drawn = torch.cat([radius * angle.cos(), radius * angle.sin()])
    return drawn[:size].reshape(tuple(shape)).to(dtype)


def choice(key: Tensor, n: int, size: int) -> Tensor:
    """`size` different numbers [size] out of 0 … n - 1; all n where `size` is more."""
    return uniform(key, (n,), dtype=torch.float64).argsort(stable=True)[:size]


def _bits(key: Tensor, count: int) -> Tensor:
    """The first `count` numbers of 32 bits of a key."""
    low, high = key & _LOW, key >> 32
    first = _mix(low, high, 0x85EBCA6B)
    second = _mix(high, first, 0xC2B2AE35)
    return _mix(torch.arange(count, dtype=torch.int64, device=key.device), first, second)


def _mix(value: Tensor, first: Tensor, second: int | Tensor) -> Tensor:
    """A permutation of the numbers of 32 bits, one for each two salts of 32 bits; elementwise."""
    mixed = value ^ first
    mixed = ((mixed ^ (mixed >> 17)) * _FACTORS[0] & _LOW) ^ second
    mixed = (mixed ^ (mixed >> 11)) * _FACTORS[1] & _LOW
    mixed = (mixed ^ (mixed >> 15)) * _FACTORS[2] & _LOW
    return mixed ^ (mixed >> 14)
