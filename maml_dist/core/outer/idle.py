"""What updates at a zero gradient make of a parameter, all of them in one.

    SGD    v_j = momentum^j v,                  meta <- meta - sum_j rate_j v_j
    Adam   m_j = d1^j m,  v_j = d2^j v,         meta <- meta prod_j s_j - sum_j u_j prod_{i>j} s_i
           u_j = length_j m_j / (sqrt(v_j) + eps_j),  s_j = 1 - rate_j weight_decay

Of Adam's terms those are left out that are below rounding by far. Computed in float64, so that no
number on the way is below the smallest of float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

LEFT_OUT = 1e-24  # of the first term: what comes after is
AT_ONCE = 1024  # elements, whose terms stay in the cache; always as many, so that bits are the same


def sgd_idle(
    meta: Tensor, velocity: Tensor, rates: Sequence[float], momentum: float, *, nesterov: bool
) -> tuple[Tensor, Tensor]:
    """The parameter and its velocity."""
    powers = momentum ** torch.arange(1, len(rates) + 1 + nesterov, dtype=torch.float64)
    far = torch.tensor(rates, dtype=torch.float64) @ powers[int(nesterov) :]
    meta = (meta.double() - velocity.double() * far).to(meta.dtype)
    return meta, normal(velocity * float(momentum ** len(rates)))


def adam_idle(
    meta: Tensor,
    first: Tensor,
    second: Tensor,
    rates: Sequence[float],
    *,
    count: float,
    decays: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The parameter and its moments."""
    decay1, decay2 = decays
    shrinks = 1 - weight_decay * torch.tensor(rates, dtype=torch.float64)
    if weight_decay:
        meta = (meta.double() * shrinks.prod()).to(meta.dtype)
    if first.any():
        number = torch.arange(1, len(rates) + 1, dtype=torch.float64)
        left = (decay1 / decay2**0.5) ** number > LEFT_OUT if decay1**2 < decay2 else number > 0
        number, rate = number[left], torch.tensor(rates, dtype=torch.float64)[left]
        root2 = (1 - decay2 ** (count + number)).sqrt()
        later = torch.cat([shrinks[1:], torch.ones(1, dtype=torch.float64)])
        after = later.flip(0).cumprod(0).flip(0)[left]
        length = after * rate * root2 / (1 - decay1 ** (count + number)) * decay1**number
        root, floor = decay2 ** (number / 2), eps * root2
        pieces = zip(*(each.split(AT_ONCE) for each in (meta, first, second)), strict=True)
        meta = torch.cat(
            [
                (x.double() - _moved(m.double(), v.double().sqrt(), length, root, floor)).to(x)
                for x, m, v in pieces
            ]
        )
    steps = len(rates)
    return meta, normal(first * decay1**steps), normal(second * decay2**steps)


def _moved(first: Tensor, root: Tensor, length: Tensor, decay: Tensor, floor: Tensor) -> Tensor:
    """How far all steps go: sum_j length_j first / (decay_j root + floor_j)."""
    below = torch.outer(decay, root).add_(floor.unsqueeze(1))
    return first * (length.unsqueeze(1) / below).sum(0)


def normal(moment: Tensor) -> Tensor:
    """A moment with zeros for what is below the smallest normal number.

    That of a weight whose gradient has become zero only ever decays, and a CPU takes a hundred
    times longer over numbers below 1e-38.
    """
    return hardshrink(moment, torch.finfo(moment.dtype).tiny)
