"""A policy for one of n actions: a perceptron's logits."""

from collections.abc import Sequence

from torch import Tensor, nn

from maml_dist.core.validation import check_layers
from maml_dist.models.glorot import perceptron


class CategoricalPolicy(nn.Module):
    """Observations [..., observations] -> logits [..., actions]."""

    def __init__(
        self,
        observations: int = 2,
        actions: int = 4,
        *,
        hidden: Sequence[int] = (100, 100),
    ) -> None:
        super().__init__()
        check_layers("model", observations=observations, hidden=hidden, actions=actions)
        self.logits = perceptron(observations, hidden, actions)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., observations] -> [..., actions]."""
        logits: Tensor = self.logits(x)
        return logits
