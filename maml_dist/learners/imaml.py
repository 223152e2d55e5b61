"""iMAML: meta-learning with implicit gradients (arXiv 1909.04630).

    phi* = argmin L_support(phi) + lambda / 2 |phi - meta|^2
    d L_query(phi*) / d meta = (I + H / lambda)^-1 grad L_query(phi*),   H = Hessian of L_support

phi* is approached by `steps` steps of gradient descent, or of a Newton method that builds no
Hessian; the inverse is applied by conjugate gradient. No derivative goes through the inner steps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from maml_dist.core.adaptation.inner_optimizers import (
    SGD,
    InnerOptimizer,
    Loss,
    State,
    adapting,
    check_patterns,
    support_gradient,
)
from maml_dist.core.adaptation.learner import Learner, StepContext
from maml_dist.core.conjugate_gradient import hessian, solve
from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.params import Params
from maml_dist.core.validation import check_choice, check_minimum, check_positive


@dataclass(frozen=True)
class IMAML(Learner):
    """An inner problem held near the meta-parameters, differentiated at its solution."""

    differentiation = "from_adapted"

    steps: int = 16  # inner steps while meta-training
    strength: float = 2.0  # lambda: how strongly phi is held near the meta-parameters
    solver: Literal["descent", "hessian-free"] = "descent"  # of the inner problem
    alpha: float = 0.1  # descent: inner rate
    inner: InnerOptimizer = SGD()  # descent: how the inner gradient becomes a direction
    solver_iterations: int = 5  # hessian-free: of conjugate gradient, a step
    halvings: int = 4  # hessian-free: step lengths 1, 1/2, … 2^-halvings are tried
    tolerance: float = 0.0  # norm of the inner problem's gradient from which steps change nothing
    cg_iterations: int = 5  # of conjugate gradient, for the meta-gradient
    damping: float = 0.0  # added to the diagonal of I + H / lambda
    cg_tolerance: float = 0.0  # residual at which it stops, relative to the right-hand side
    adapted: tuple[str, ...] = ("*",)  # patterns of the parameters that adapt; the rest stay

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "learner", "alpha", "strength")
        check_minimum(self, "learner", cg_iterations=1, solver_iterations=1)
        check_minimum(self, "learner", halvings=0, tolerance=0, damping=0, cg_tolerance=0)
        check_choice(self, "learner", "solver")

    def init(self, params: Params) -> Params:
        """The parameters themselves, where each pattern of `adapted` matches one or more."""
        return check_patterns(self.adapted, params)

    def start(self, meta: Params) -> tuple[Params, State]:
        """The meta-parameters, and the inner optimizer's state for those that adapt."""
        free = self.solver == "hessian-free"
        return meta, () if free else self.inner.init(adapting(meta, self.adapted))

    def step(self, phi: Params, state: State, context: StepContext) -> tuple[Params, State]:
        """One step of the solver on the adapted parameters, unless they are good enough."""
        loss, meta, batch, k, _ = context
        gradient = {
            name: g + self.strength * (phi[name] - meta[name])
            for name, g in support_gradient(loss, phi, batch, adapted=self.adapted).items()
        }
        if self.solver == "descent":
            direction, new = self.inner.direction(gradient, state, k)
            moved = {name: phi[name] - self.alpha * along for name, along in direction.items()}
        else:
            moved, new = self._newton(loss, meta, phi, batch, gradient), state
        if self.tolerance:
            solved = torch.stack([(g * g).sum() for g in gradient.values()]).sum().sqrt()
            solved = solved <= self.tolerance  # false where it is not a number, which must be seen
            moved = {name: torch.where(solved, phi[name], value) for name, value in moved.items()}
            new = pytree.tree_map(lambda old, new: torch.where(solved, old, new), state, new)
        return {**phi, **moved}, new

    def gradient_from_adapted(
        self,
        loss: Loss,
        query_loss: Loss,
        meta: Params,
        phi: Params,
        episode: Episode,
        it: Tensor,
    ) -> tuple[Params, Tensor]:
        """v = (I + H / lambda)^-1 grad L_query; what does not adapt: grad L_query - M v / lambda.

        M: the mixed derivatives of L_support, by which the rest moves the solution.
        """
        gradient, after = grad_and_value(lambda phi: query_loss(phi, episode.query))(phi)
        if not episode.support:
            return gradient, after
        batch = episode.support[-1]
        solved = self._inverse(loss, phi, batch, adapting(gradient, self.adapted))
        rest = {name: value for name, value in phi.items() if name not in solved}
        if rest:
            moved = {name: value.new_zeros(value.shape) for name, value in rest.items()}
            mixed = hessian(lambda phi: loss(phi, batch), phi)({**moved, **solved})
            gradient = {name: g - mixed[name] / self.strength for name, g in gradient.items()}
        return {**gradient, **solved}, after

    @property
    def second_order(self) -> bool:
        """By products with the Hessian."""
        return True

    def _inverse(
        self, loss: Loss, phi: Params, batch: Batch, b: Params, *, iterations: int | None = None
    ) -> Params:
        """(I + H / lambda + damping I)^-1 b in the adapted parameters, H at phi."""
        product = hessian(lambda inner: loss({**phi, **inner}, batch), adapting(phi, self.adapted))

        def curved(vector: Params) -> Params:
            return {name: vector[name] + h / self.strength for name, h in product(vector).items()}

        return solve(
            curved,
            b,
            iterations=iterations or self.cg_iterations,
            damping=self.damping,
            tolerance=self.cg_tolerance,
        )

    def _newton(
        self, loss: Loss, meta: Params, phi: Params, batch: Batch, gradient: Params
    ) -> Params:
        """phi - length * (H + lambda I)^-1 gradient, of the lengths tried that with the least loss.

        A step that makes the inner problem's loss larger, or not a number, is not taken.
        """
        scaled = {name: g / self.strength for name, g in gradient.items()}
        direction = self._inverse(loss, phi, batch, scaled, iterations=self.solver_iterations)

        def after(length: float | Tensor) -> Params:
            return {name: phi[name] - length * along for name, along in direction.items()}

        def problem(inner: Params) -> Tensor:
            far = [((value - meta[name]) ** 2).sum() for name, value in inner.items()]
            return loss({**phi, **inner}, batch) + self.strength / 2 * torch.stack(far).sum()

        least = problem(after(0.0))
        best = torch.zeros_like(least)
        for number in range(self.halvings + 1):
            value = problem(after(0.5**number))
            best = torch.where(value < least, 0.5**number, best)
            least = torch.where(value < least, value, least)
        return after(best)
