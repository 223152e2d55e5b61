"""Categorical policy: for discrete actions; an MLP like the Gaussian one's."""

from collections.abc import Sequence

from torch import Tensor, nn

from maml_dist.models.gaussian_policy import body, linear


class CategoricalPolicy(nn.Module):
    """obs […, observations] -> logits […, actions]."""

    def __init__(
        self, observations: int = 25, actions: int = 4, *, hidden: Sequence[int] = (100, 100)
    ) -> None:
        super().__init__()
        self.body = body(observations, hidden)
        self.logits = linear(hidden[-1] if hidden else observations, actions)

    def forward(self, obs: Tensor) -> Tensor:
        """obs […, observations] -> logits […, actions]."""
        logits: Tensor = self.logits(self.body(obs))
        return logits
