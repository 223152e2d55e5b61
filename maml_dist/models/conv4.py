"""The four-block network of few-shot learning (arXiv 1606.04080; 1703.03400, section 5.2).

Omniglot: stride 2 and the mean over space. miniImagenet: 2x2 max-pooling, then flattened.
"""

from typing import Literal

from torch import Tensor, nn

from maml_dist.core.validation import check_layers


class Conv4(nn.Module):
    """x [n, channels, size, size] -> [n, outputs]."""

    def __init__(
        self,
        outputs: int = 5,
        *,
        channels: int = 1,
        filters: int = 64,
        size: int = 28,  # pixels a side; matters to the pooled form alone
        downsample: Literal["stride", "pool"] = "stride",
        running_statistics: bool = False,  # keep batch norm's, for predictions one by one
    ) -> None:
        super().__init__()
        side = size // 16 if downsample == "pool" else 1  # pixels a side that the head sees
        check_layers(
            "model",
            outputs=outputs,
            channels=channels,
            filters=filters,
            size=size,
            weights=9 * filters * (channels + 3 * filters) + filters * side**2 * outputs,
        )
        if not side:
            raise ValueError(f"model.size={size}: must be 16 or more with model.downsample=pool")
        pools = downsample == "pool"
        layers: list[nn.Module] = []
        for _ in range(4):
            # No bias: batch norm takes it away again.
            layers += [
                nn.Conv2d(channels, filters, 3, stride=1 if pools else 2, padding=1, bias=False),
                nn.BatchNorm2d(filters, track_running_stats=running_statistics),
                nn.ReLU(),
            ]
            if pools:
                layers.append(nn.MaxPool2d(2))
            channels = filters
        self.body = nn.Sequential(*layers)
        self.mean_over_space = not pools
        self.head = nn.Linear(filters * side**2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] -> [n, outputs]."""
        features: Tensor = self.body(x)
        features = features.mean((2, 3)) if self.mean_over_space else features.flatten(1)
        logits: Tensor = self.head(features)
        return logits
