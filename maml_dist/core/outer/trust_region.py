"""TRPO's update (Schulman et al., arXiv 1502.05477), asked of the tasks and applied here.

(A + damping I) d = gradient                       A: the KL's curvature, by products
meta <- meta - shrink^j beta sqrt(2 bound / d^T A d) d      for the first j at which
the loss falls and the mean KL is at most `bound`;  meta stays where there is none
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maml_dist.core.conjugate_gradient import first_iterate, next_iterate
from maml_dist.core.outer.optimizers import OuterOptimizer, Request, State, UpdateRounds
from maml_dist.core.validation import check_minimum, check_positive, check_share


@dataclass(frozen=True)
class TrustRegion(OuterOptimizer):
    """The longest step along the natural gradient that stays near the policies that acted."""

    on_policy = True

    beta: float = 1.0  # of the first step tried: 1 reaches the bound, by the curvature
    bound: float = 0.01  # mean KL divergence of the adapted policies, in nats
    iterations: int = 10  # of conjugate gradient: products with the curvature
    damping: float = 1e-5  # added to the curvature's diagonal
    share: float = 1.0  # of each task's episodes after adapting that the curvature is taken over
    support_share: float = 1.0  # of those adapted to; a small one bends more: beta makes up for it
    shrink: float = 0.8  # from one step tried to the next
    tries: int = 15  # steps tried

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs != 1:
            raise ValueError(f"outer.epochs={self.epochs}: a trust region makes one update")
        check_positive(self, "outer", "bound")
        check_minimum(self, "outer", iterations=1, tries=1, damping=0)
        check_share(self, "outer", "share", "support_share", most=1)
        check_share(self, "outer", "shrink", most=0.999)

    @property
    def multi_round(self) -> bool:
        """Always: curvature and line search."""
        return True

    def moments(self, meta: Tensor) -> State:
        """None."""
        return {}

    def step(
        self, meta: Tensor, gradient: Tensor, state: State, *, rate: float, count: float
    ) -> tuple[Tensor, State]:
        """Along a direction that is given."""
        return meta.add(gradient, alpha=-rate), {}

    def update_in_rounds(
        self, meta: Tensor, gradient: Tensor, scalars: dict[str, float], state: State
    ) -> UpdateRounds:
        """Conjugate gradient by the tasks' products, then a line search by their objectives."""
        gradient = self.clipped(gradient).double()  # what is summed up magnifies rounding
        shares = {"share": self.share, "support_share": self.support_share}
        solved = first_iterate(gradient, tolerance=torch.finfo(meta.dtype).eps, dot=torch.dot)
        for _ in range(self.iterations):
            if not solved.squared > solved.enough:
                break
            response = yield Request("curvature", solved.along.to(meta.dtype), shares)
            assert response.vector is not None
            product = response.vector.double()
            after = next_iterate(solved, product, damping=self.damping, dot=torch.dot)
            if not after.curvature > 0:  # rounding, or no curvature at all: what there is must do
                break
            solved = after
        bend = float(solved.x @ solved.image)
        if not (bend > 0 and math.isfinite(bend)):
            return meta, self.counted({}, state), {"accepted": 0.0, "kl": 0.0, "tries": 0.0}
        rate = self.rate(state) * math.sqrt(2 * self.bound / bend)
        loss, direction = scalars["loss/after"], solved.x.to(meta.dtype)
        for number in range(1, self.tries + 1):
            candidate, _ = self.step(meta, direction, state, rate=rate, count=number)
            response = yield Request("objective", candidate)
            reached, apart = response.scalars["loss/after"], response.scalars["kl"]
            # What is not finite is no step, whatever its sign.
            if -math.inf < reached < loss and -math.inf < apart <= self.bound:
                result = {"accepted": 1.0, "kl": apart, "tries": float(number)}
                return candidate, self.counted({}, state), result
            rate *= self.shrink
        result = {"accepted": 0.0, "kl": 0.0, "tries": float(self.tries)}
        return meta, self.counted({}, state), result
