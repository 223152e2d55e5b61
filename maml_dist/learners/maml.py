"""Model-Agnostic Meta-Learning (Finn, Abbeel, Levine, arXiv 1703.03400).

    phi_{k+1} = phi_k - alpha * grad L_support(phi_k)
    meta      = meta - beta * grad_meta L_query(phi_K)

First order (section 5.2) takes the inner gradient as a constant. ANIL (arXiv 1909.09157) adapts the
head alone: `adapted: ["head.*"]`. With no steps it is joint training, the paper's *pretrained*.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor
from torch.func import grad

from maml_dist.core.episode import Batch
from maml_dist.core.learner import Learner, Loss, State
from maml_dist.core.params import Params


@dataclass(frozen=True)
class MAML(Learner):
    """Inner gradient descent from a learned initialisation."""

    alpha: float = 0.01  # inner rate
    first_order: bool = False  # take the inner gradient as a constant
    adapted: tuple[str, ...] = ("*",)  # patterns of the parameters that adapt; the rest stay

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"learner.alpha={self.alpha}: must be a positive number")

    def init(self, params: Params) -> Params:
        """The parameters themselves.

        Raises:
            ValueError: a pattern of `adapted` matches no parameter.
        """
        for pattern in self.adapted:
            if not any(fnmatchcase(name, pattern) for name in params):
                raise ValueError(
                    f"learner.adapted={pattern!r} matches no parameter; "
                    f"there are {', '.join(params)}"
                )
        return params

    def step(
        self, loss: Loss, meta: Params, phi: Params, state: State, batch: Batch, k: int, it: Tensor
    ) -> tuple[Params, State]:
        """One step of gradient descent with rate alpha on the adapted parameters."""
        inner = {name: value for name, value in phi.items() if self._adapts(name)}
        gradient = grad(lambda inner: loss({**phi, **inner}, batch))(inner)
        if self.first_order:
            gradient = {name: g.detach() for name, g in gradient.items()}
        moved = {name: value - self.alpha * gradient[name] for name, value in inner.items()}
        return {**phi, **moved}, state

    def _adapts(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.adapted)
