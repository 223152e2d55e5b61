"""Parameters as one flat dict, and as the one flat vector that travels between processes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Params = dict[str, Tensor]  # flat: name -> tensor; all that is meta-learned


class Layout(NamedTuple):
    """How a flat vector splits into named tensors: the names in order and their shapes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor."""
        return [math.prod(shape) for shape in self.shapes]


def layout(params: Params) -> Layout:
    """The layout of `params`, in the dict's order."""
    return Layout(tuple(params), tuple(tuple(value.shape) for value in params.values()))


def flatten(params: Params) -> Tensor:
    """All parameters as one vector [size], in the dict's order."""
    return torch.cat([value.reshape(-1) for value in params.values()])


def unflatten(vector: Tensor, into: Layout) -> Params:
    """The named tensors of a vector [size]; views of it, so gradients flow back into one vector."""
    parts = vector.split(into.sizes)
    shaped = (part.reshape(shape) for part, shape in zip(parts, into.shapes, strict=True))
    return dict(zip(into.names, shaped, strict=True))
