"""Adagrad (Duchi, Hazan, Singer, JMLR 12, 2011): rates that fall with the squares met so far.

s <- s + g^2,     meta <- meta - rate g / (sqrt(s) + eps)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maml_dist.core.outer.idle import Waiting
from maml_dist.core.outer.optimizers import OuterOptimizer, State
from maml_dist.core.validation import check_minimum, check_positive


@dataclass(frozen=True)
class Adagrad(OuterOptimizer):
    """Adagrad: elements that are seldom met take long steps."""

    by_elements = True

    beta: float = 0.01  # outer rate
    eps: float = 1e-10  # added to the root of the sum
    initial: float = 0.0  # the sum of squares before the first update

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "outer", "eps")
        check_minimum(self, "outer", initial=0)

    def moments(self, meta: Tensor) -> State:
        """The sum of squares."""
        return {"squares": torch.full_like(meta, self.initial)}

    def step(
        self, meta: Tensor, gradient: Tensor, state: State, *, rate: float, count: float
    ) -> tuple[Tensor, State]:
        """Along the gradient over the root of the sum of its squares."""
        squares = state["squares"].addcmul(gradient, gradient)
        root = squares.sqrt().add_(self.eps)
        return meta.addcdiv(gradient, root, value=-rate), {"squares": squares}

    def idle(self, rows: Tensor, moments: State, waiting: Waiting) -> tuple[Tensor, State]:
        """Nothing."""
        return rows, moments
