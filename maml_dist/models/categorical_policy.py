"""A policy for one of n actions: a perceptron's logits."""

from collections.abc import Sequence

from torch import Tensor, nn

from maml_dist.core.validation import check_layers
from maml_dist.models.glorot import perceptron


class CategoricalPolicy(nn.Module):
    """Observations [..., obs_dim] -> logits [..., action_dim]."""

    def __init__(
        self,
        obs_dim: int = 2,
        action_dim: int = 4,
        *,
        hidden: Sequence[int] = (100, 100),
    ) -> None:
        super().__init__()
        check_layers("model", obs_dim=obs_dim, hidden=hidden, action_dim=action_dim)
        self.logits = perceptron(obs_dim, hidden, action_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., obs_dim] -> [..., action_dim]."""
        logits: Tensor = self.logits(x)
        return logits
