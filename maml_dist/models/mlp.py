"""Multi-layer perceptron: the paper's for sinusoids (40-40) and Omniglot (256-128-64-64)."""

from collections.abc import Sequence

from torch import Tensor, nn

from maml_dist.core.validation import check_layers


class MLP(nn.Module):
    """x [n, …] (flattened to [n, inputs]) -> [n, outputs]; hidden layers with ReLU."""

    def __init__(
        self,
        inputs: int = 1,
        outputs: int = 1,
        *,
        hidden: Sequence[int] = (40, 40),
        batch_norm: bool = False,  # with the statistics of the current batch, always
    ) -> None:
        super().__init__()
        check_layers("model", inputs=inputs, hidden=hidden, outputs=outputs)
        layers: list[nn.Module] = []
        for width_in, width_out in zip((inputs, *hidden), hidden, strict=False):
            layers.append(nn.Linear(width_in, width_out))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width_out, track_running_stats=False))
            layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1] if hidden else inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, …] -> [n, outputs]."""
        outputs: Tensor = self.head(self.body(x.flatten(1)))
        return outputs
