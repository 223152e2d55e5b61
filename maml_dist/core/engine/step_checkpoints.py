"""What each inner step hands to the next, for a gradient that goes back through them.

Of many, one in every sqrt(K) is held, and those between are made again from it, once: memory grows
with the square root of the inner steps, at the price of one more pass (Griewank and Walther,
Revolve, doi 10.1145/347837.347846, here with a single level).
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

ALL_HELD = 8  # inner steps up to which nothing is made again


def most_held(steps: int) -> int:
    """How many carries are held at once at the most."""
    every = _spacing(steps)
    return -(-steps // every) + every


class StepCheckpoints:
    """The carries after 0 … steps inner steps."""

    def __init__(
        self,
        step: Callable[[int, Tensor], Tensor],
        start: Tensor,
        steps: int,
        *,
        back: bool,
        kept: Sequence[int] = (),
    ) -> None:
        """Takes all steps.

        Args:
            step: (k, the carry after k steps) -> the one after k + 1; the same each time.
            start: the carry before the first step.
            steps: inner steps.
            back: whether all will be asked for, the last first; else only the last and `kept`.
            kept: those that are held to the end.
        """
        self._step = step
        self._kept = {steps, *kept}
        every = _spacing(steps) if back else steps + 1
        self._held = {0: start}
        carry = start
        for k in range(steps):
            carry = step(k, carry)
            if (k + 1) % every == 0 or k + 1 in self._kept:
                self._held[k + 1] = carry

    def __getitem__(self, k: int) -> Tensor:
        if k not in self._held:
            for made in range(max(held for held in self._held if held < k), k):
                self._held[made + 1] = self._step(made, self._held[made])
        return self._held[k]

    def pop(self, k: int) -> Tensor:
        """The carry after k steps, asked for the last time unless it is kept."""
        carry = self[k]
        if k not in self._kept:
            del self._held[k]
        return carry


def _spacing(steps: int) -> int:
    return 1 if steps <= ALL_HELD else math.isqrt(steps - 1) + 1
