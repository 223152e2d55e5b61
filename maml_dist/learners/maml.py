"""Model-Agnostic Meta-Learning (Finn, Abbeel, Levine, arXiv 1703.03400).

    phi_{k+1} = phi_k - alpha * grad L_support(phi_k)     (or along momentum's, Adam's direction)
    meta      = meta - beta * grad_meta L_query(phi_K)

First order (section 5.2) takes the inner gradient as a constant. ANIL (arXiv 1909.09157) adapts the
head alone: `adapted: ["head.*"]`. With no steps it is joint training, the paper's *pretrained*.
"""

from dataclasses import dataclass

from torch import Tensor

from maml_dist.core.adaptation.inner_optimizers import (
    SGD,
    InnerOptimizer,
    State,
    adapting,
    check_patterns,
    support_gradient,
)
from maml_dist.core.adaptation.learner import Learner, StepContext
from maml_dist.core.params import Params
from maml_dist.core.validation import check_positive


@dataclass(frozen=True)
class MAML(Learner):
    """Inner gradient descent from a learned initialisation."""

    alpha: float = 0.01  # inner rate
    later_share: float = 1.0  # the inner rate after the first step is alpha times this
    inner: InnerOptimizer = SGD()  # how the inner gradient becomes a direction
    first_order: bool = False  # take the inner gradient as a constant
    adapted: tuple[str, ...] = ("*",)  # patterns of the parameters that adapt; the rest stay

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "learner", "alpha", "later_share")

    def init(self, params: Params) -> Params:
        """The parameters themselves, where each pattern of `adapted` matches one or more."""
        return check_patterns(self.adapted, params)

    def start(self, meta: Params) -> tuple[Params, State]:
        """The meta-parameters, and the inner optimizer's state for those that adapt."""
        return meta, self.inner.init(adapting(meta, self.adapted))

    def step(self, phi: Params, state: State, context: StepContext) -> tuple[Params, State]:
        """One step with rate alpha on the adapted parameters."""
        gradient = support_gradient(
            context.loss, phi, context.batch, adapted=self.adapted, first_order=self.first_order
        )
        direction, state = self.inner.direction(gradient, state, context.k)
        rate: Tensor | float = self.alpha
        if self.later_share != 1:
            rate = self.alpha * (1 + (context.k > 0).double() * (self.later_share - 1))
        moved = {name: phi[name] - rate * along for name, along in direction.items()}
        return {**phi, **moved}, state

    @property
    def second_order(self) -> bool:
        """Not in first order."""
        return super().second_order and not self.first_order
