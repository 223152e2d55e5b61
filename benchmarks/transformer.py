"""A small transformer over the patches of an image, its attention by the formula.

    tokens = W patches + position,   layers of x + attend(norm x), x + mlp(norm x),   mean, head

So that torch.func, which has no second derivative of the fused kernels, computes the same.
Legend: n = images, token = patches.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 4  # pixels a side
HEADS = 4


class Layer(nn.Module):
    """Attention and perceptron, each behind a layer norm and beside a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, token, width] -> the same shape."""
        n, tokens, width = x.shape
        heads = self.qkv(self.first(x)).reshape(n, tokens, 3, HEADS, width // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(width // HEADS)).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Classifies images [n, channels, size, size]."""

    def __init__(self, outputs: int, *, channels: int, size: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels * PATCH**2, width)
        self.position = nn.Parameter(0.02 * torch.randn((size // PATCH) ** 2, width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] -> logits [n, outputs]."""
        n, channels, height, width = x.shape
        x = x.reshape(n, channels, height // PATCH, PATCH, width // PATCH, PATCH)
        x = self.embed(x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))
