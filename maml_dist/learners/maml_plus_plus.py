"""MAML++ (Antoniou, Edwards, Storkey, arXiv 1810.09502): MAML, and four remedies for its training.

    phi_{k+1} = phi_k - alpha_{k,name} * grad L_support(phi_k, norm_k)      learned rates and norms
    meta      = meta - beta * grad_meta sum_k w_k(it) L_query(phi_k, norm_k)       multi-step loss
    w_k(it)   = (1 - it / multi_step_iterations) / K  for 0 < k < K,  w_K the rest of 1,  w_0 = 0

and first order at first (derivative-order annealing). Each argument turns on one of them; the
cosine outer rate is the outer optimiser's `schedule`.
"""

from dataclasses import dataclass

import torch
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
from maml_dist.core.data.episode import Batch
from maml_dist.core.params import Params
from maml_dist.core.validation import check_minimum, check_positive


@dataclass(frozen=True)
class MAMLPlusPlus(Learner):
    """Inner descent with a rate and norms for each step; at first the loss of every step counts."""

    alpha: float = 0.01  # inner rate; where rates are learned, their start
    inner: InnerOptimizer = SGD()  # how the inner gradient becomes a direction
    adapted: tuple[str, ...] = ("*",)  # patterns of the parameters that adapt; the rest stay
    learned_rates: bool = False  # meta-learn a rate for each parameter and step
    multi_step_iterations: int = 0  # until the last step's loss alone counts; 0: from the start
    first_order_iterations: int = 0  # with the inner gradient as a constant (no faster: one trace)
    per_step: tuple[str, ...] = ()  # patterns of parameters learned for each step, not adapted
    step_statistics: bool = False  # keep batch norm's running statistics for each step

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, "learner", steps=1, multi_step_iterations=0, first_order_iterations=0)
        check_positive(self, "learner", "alpha")

    @property
    def per_step_statistics(self) -> bool:
        """As asked for."""
        return self.step_statistics

    def init(self, params: Params) -> Params:
        """The parameters, those of `per_step` as rows, and the learned rates.

        Returns:
            Instead of a parameter of `per_step` [...] "step.<name>" [steps + 1, ...], row k for the
            model after k steps; beside one that adapts "alpha.<name>" [steps], row k for step k.

        Raises:
            ValueError: a pattern matches no parameter (for `adapted`: outside `per_step`), or a
                parameter's name begins as an added one's does.
        """
        check_patterns(self.per_step, params, field="per_step")
        for name in params:
            if name.startswith(self._added):
                raise ValueError(f"model.{name}: MAML++ gives this name to a parameter of its own")
        stepped = adapting(params, self.per_step)
        phi = {name: value for name, value in params.items() if name not in stepped}
        check_patterns(self.adapted, phi)
        rows = {
            f"step.{name}": value.expand(self.steps + 1, *value.shape).clone()
            for name, value in stepped.items()
        }
        if not self.learned_rates:
            return {**phi, **rows}
        rates = {
            f"alpha.{name}": value.new_full((self.steps,), self.alpha)
            for name, value in adapting(phi, self.adapted).items()
        }
        return {**phi, **rows, **rates}

    def start(self, meta: Params) -> tuple[Params, State]:
        """The parameters that have one value, and the inner optimizer's state of those."""
        phi = {name: value for name, value in meta.items() if not name.startswith(self._added)}
        return phi, self.inner.init(adapting(phi, self.adapted))

    def step(self, phi: Params, state: State, context: StepContext) -> tuple[Params, State]:
        """One step on the adapted parameters, with the rates and the norms of step k."""
        loss, meta, batch, k, it = context

        def at_k(phi: Params, batch: Batch) -> Tensor:
            return loss(self.weights(meta, phi, k), batch)

        gradient = support_gradient(at_k, phi, batch, adapted=self.adapted)
        if self.first_order_iterations:
            early = it < self.first_order_iterations
            gradient = {name: torch.where(early, g.detach(), g) for name, g in gradient.items()}
        direction, state = self.inner.direction(gradient, state, k)
        moved = {
            name: phi[name] - self._rate(meta, name, k) * along for name, along in direction.items()
        }
        return {**phi, **moved}, state

    def weights(self, meta: Params, phi: Params, k: Tensor) -> Params:
        """phi and, of the parameters of `per_step`, row k."""
        if not self.per_step:
            return phi
        rows = {
            name.removeprefix("step."): at_step(value, k)
            for name, value in meta.items()
            if name.startswith("step.")
        }
        return {**phi, **rows}

    def step_loss_weights(self, it: Tensor) -> Tensor | None:
        """Uniform over steps 1 … K at first, linearly annealed to the last alone."""
        if not self.multi_step_iterations:
            return None
        share = (1 - it.to(torch.float64) / self.multi_step_iterations).clamp(min=0) / self.steps
        earlier = [share] * (self.steps - 1)
        return torch.stack([torch.zeros_like(share), *earlier, 1 - share * len(earlier)])

    @property
    def _added(self) -> tuple[str, ...]:
        """What the names of added meta-parameters begin with."""
        return ("alpha.",) * self.learned_rates + ("step.",) * bool(self.per_step)

    def _rate(self, meta: Params, name: str, k: Tensor) -> float | Tensor:
        return at_step(meta[f"alpha.{name}"], k) if self.learned_rates else self.alpha
