"""Inner optimizers: phi_{k+1} = phi_k - alpha * direction(gradient), all differentiable.

    gradient descent   direction = g
    momentum           v <- decay * v + g,  direction = v          (Nesterov: g + decay * v)
    Adam               arXiv 1412.6980, algorithm 1

A learner's `inner` argument is one of them; alpha, which may be learned, stays with the learner.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from maml_dist.core.data.episode import Batch
from maml_dist.core.params import Params
from maml_dist.core.validation import check_decays, check_positive, check_share

Loss = Callable[[Params, Batch], Tensor]  # scalar loss of one task
State = Any  # what an optimizer carries from step to step: a tree of floating-point tensors


@dataclass(frozen=True)
class InnerOptimizer(ABC):
    """How a gradient becomes a direction."""

    def init(self, phi: Params) -> State:
        """The state before the first step, for the parameters that adapt."""
        return ()

    @abstractmethod
    def direction(self, gradient: Params, state: State, k: Tensor) -> tuple[Params, State]:
        """What to step along (before alpha) after `k` steps, and the next state."""


@dataclass(frozen=True)
class SGD(InnerOptimizer):
    """Gradient descent."""

    def direction(self, gradient: Params, state: State, k: Tensor) -> tuple[Params, State]:
        """The gradient itself."""
        return gradient, state


@dataclass(frozen=True)
class Momentum(InnerOptimizer):
    """Gradient descent with momentum."""

    decay: float = 0.9  # of the velocity, a step
    nesterov: bool = False  # look one step ahead

    def __post_init__(self) -> None:
        check_share(self, "learner.inner", "decay", zero=True)

    def init(self, phi: Params) -> State:
        """No velocity."""
        return {name: torch.zeros_like(value) for name, value in phi.items()}

    def direction(self, gradient: Params, state: State, k: Tensor) -> tuple[Params, State]:
        """The velocity."""
        velocity = {name: self.decay * state[name] + g for name, g in gradient.items()}
        if not self.nesterov:
            return velocity, velocity
        return {name: g + self.decay * velocity[name] for name, g in gradient.items()}, velocity


@dataclass(frozen=True)
class Adam(InnerOptimizer):
    """Adam; `floor` stands under its root, whose derivative at zero is infinite."""

    decays: tuple[float, float] = (0.9, 0.999)  # of the first and second moment
    eps: float = 1e-8  # added to the root of the second moment
    floor: float = 1e-16  # added under the root

    def __post_init__(self) -> None:
        check_decays(self, "learner.inner", "decays")
        check_positive(self, "learner.inner", "eps", "floor")

    def init(self, phi: Params) -> State:
        """Both moments at zero."""
        first, second = (
            {name: torch.zeros_like(value) for name, value in phi.items()} for _ in range(2)
        )
        return first, second

    def direction(self, gradient: Params, state: State, k: Tensor) -> tuple[Params, State]:
        """The bias-corrected first moment over the root of the second."""
        decay1, decay2 = self.decays
        first = {name: decay1 * state[0][name] + (1 - decay1) * g for name, g in gradient.items()}
        second = {
            name: decay2 * state[1][name] + (1 - decay2) * g * g for name, g in gradient.items()
        }
        count = (k + 1).to(torch.float64)  # in float32, 1 - 0.999^1 has three right digits less
        scale1, scale2 = 1 - decay1**count, 1 - decay2**count

        def along(m: Tensor, v: Tensor) -> Tensor:
            m, v = m / scale1.to(m.dtype), v / scale2.to(v.dtype)
            return m / ((v + self.floor).sqrt() + self.eps)

        return {name: along(first[name], second[name]) for name in gradient}, (first, second)


def check_patterns(patterns: tuple[str, ...], params: Params, *, field: str = "adapted") -> Params:
    """The parameters themselves, where a learner's patterns fit them.

    Raises:
        ValueError: one of the patterns matches no parameter, or nothing is adapted.
    """
    if not patterns and field == "adapted":
        raise ValueError("learner.adapted=(): must be one pattern or more")
    for pattern in patterns:
        if not adapting(params, (pattern,)):
            raise ValueError(
                f"learner.{field}={pattern!r} matches no parameter; there are {', '.join(params)}"
            )
    return params


def adapting(params: Params, adapted: tuple[str, ...]) -> Params:
    """Those parameters whose name matches one of the patterns `adapted`."""
    return {
        name: value
        for name, value in params.items()
        if any(fnmatchcase(name, pattern) for pattern in adapted)
    }


def support_gradient(
    loss: Loss, phi: Params, batch: Batch, *, adapted: tuple[str, ...], first_order: bool = False
) -> Params:
    """The inner loss's gradient in the adapting parameters; first order: taken as a constant."""
    gradient = grad(lambda inner: loss({**phi, **inner}, batch))(adapting(phi, adapted))
    return {name: g.detach() for name, g in gradient.items()} if first_order else gradient


def at_step(rows: Tensor, k: Tensor) -> Tensor:
    """Row k of rows [steps, ...]; the last for all later steps, which a test may make.

    Not by indexing: torch 2.13's inductor compiles the vmapped gradient of `index_select` wrongly
    (it adds all tasks into one).
    """
    here = torch.arange(len(rows), device=k.device) == k.clamp(max=len(rows) - 1)
    return torch.where(here.reshape(-1, *[1] * (rows.dim() - 1)), rows, 0).sum(0)
