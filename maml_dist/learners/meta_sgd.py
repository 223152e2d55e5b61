"""Meta-SGD (Li, Zhou, Chen, Li, arXiv 1707.09835): the inner rates are meta-learned too.

    phi_{k+1}   = phi_k - alpha * grad L_support(phi_k)     alpha: a rate for each weight
    meta, alpha = (meta, alpha) - beta * grad_{meta, alpha} L_query(phi_K)

A learned rate may become negative. Coarser: a rate for each parameter tensor, or for each tensor
and step (as in MAML++, arXiv 1810.09502).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from maml_dist.core.adaptation.inner_optimizers import (
    SGD,
    InnerOptimizer,
    State,
    adapting,
    at_step,
    check_patterns,
    support_gradient,
)
from maml_dist.core.adaptation.learner import Learner, StepContext
from maml_dist.core.params import Params
from maml_dist.core.random import keys, uniform
from maml_dist.core.validation import check_choice, check_minimum

_PREFIX = "alpha."  # of the rates' names among the meta-parameters


@dataclass(frozen=True)
class MetaSGD(Learner):
    """Inner steps with learned rates, from a learned initialisation."""

    alpha: float | tuple[float, float] = (0.005, 0.1)  # start of the rates; two: uniform between
    each: Literal["weight", "layer", "layer-step"] = "weight"  # what has a rate of its own
    seed: int = 0  # of the rates drawn at the start
    inner: InnerOptimizer = SGD()  # how the inner gradient becomes a direction
    first_order: bool = False  # take the inner gradient as a constant
    adapted: tuple[str, ...] = ("*",)  # patterns of the parameters that adapt; the rest stay

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, "learner", steps=1, seed=0)
        low, high = self._between
        if not 0 < low <= high < float("inf"):
            raise ValueError(
                f"learner.alpha={self.alpha}: must be a positive number, or two, the lower first"
            )
        check_choice(self, "learner", "each")

    def init(self, params: Params) -> Params:
        """The parameters and, of each that adapts, the rates at the start.

        Returns:
            Beside a parameter that adapts "alpha.<name>": shaped as it (weight), [] (layer) or
            [steps] (layer-step), row k for step k, the last for all later ones.

        Raises:
            ValueError: a pattern of `adapted` matches no parameter, or a parameter's name begins
                as a rate's does.
        """
        check_patterns(self.adapted, params)
        for name in params:
            if name.startswith(_PREFIX):
                raise ValueError(f"model.{name}: Meta-SGD gives this name to a rate of its own")
        learned = adapting(params, self.adapted)
        drawn = keys(self.seed, "learner.alpha", 0, range(len(learned)))
        rates = {
            _PREFIX + name: self._rates(value, key.to(value.device))
            for (name, value), key in zip(learned.items(), drawn, strict=True)
        }
        return {**params, **rates}

    def start(self, meta: Params) -> tuple[Params, State]:
        """The model's parameters, and the inner optimizer's state for those that adapt."""
        phi = {name: value for name, value in meta.items() if not name.startswith(_PREFIX)}
        return phi, self.inner.init(adapting(phi, self.adapted))

    def step(self, phi: Params, state: State, context: StepContext) -> tuple[Params, State]:
        """One step with the learned rates on the adapted parameters."""
        gradient = support_gradient(
            context.loss, phi, context.batch, adapted=self.adapted, first_order=self.first_order
        )
        direction, state = self.inner.direction(gradient, state, context.k)
        rates = {name: context.meta[_PREFIX + name] for name in direction}
        if self.each == "layer-step":
            rates = {name: at_step(rows, context.k) for name, rows in rates.items()}
        moved = {name: phi[name] - rates[name] * along for name, along in direction.items()}
        return {**phi, **moved}, state

    @property
    def second_order(self) -> bool:
        """Not in first order."""
        return super().second_order and not self.first_order

    @property
    def _between(self) -> tuple[float, float]:
        return self.alpha if isinstance(self.alpha, tuple) else (self.alpha, self.alpha)

    def _rates(self, value: Tensor, key: Tensor) -> Tensor:
        shapes = {"weight": value.shape, "layer": (), "layer-step": (self.steps,)}
        low, high = self._between
        return low + (high - low) * uniform(key, shapes[self.each], dtype=value.dtype)
