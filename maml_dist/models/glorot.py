"""Perceptrons as policies have them: ReLU, Glorot's uniform weights, zero biases.

Weights are uniform in ± sqrt(6 / (inputs + outputs)) of their layer (Glorot and Bengio 2010).
"""

from collections.abc import Sequence

from torch import nn


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """[..., inputs] -> [..., outputs]; the last layer is linear."""
    layers: list[nn.Module] = []
    for width, after in zip((inputs, *hidden), (*hidden, outputs), strict=True):
        if layers:
            layers.append(nn.ReLU())
        layer = nn.Linear(width, after)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
    return nn.Sequential(*layers)
