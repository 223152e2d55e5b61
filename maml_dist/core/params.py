"""Parameters as one flat dict, and as the one flat vector that travels between processes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

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


def flatten(params: Params, *, dtype: torch.dtype | None = None) -> Tensor:
    """All parameters as one vector [size], in the dict's order; of none an empty one of `dtype`."""
    if not params:  # all are tables
        return torch.zeros(0, dtype=dtype)
    return torch.cat([value.reshape(-1) for value in params.values()])


def unflatten(vector: Tensor, into: Layout) -> Params:
    """The named tensors of a vector [size]; views of it, so gradients flow back into one vector."""
    parts = vector.split(into.sizes)
    shaped = (part.reshape(shape) for part, shape in zip(parts, into.shapes, strict=True))
    return dict(zip(into.names, shaped, strict=True))


def real_of(value: Tensor) -> Tensor:
    """A parameter as it is learned: a complex one as its real and imaginary parts [..., 2].

    So every rule is that for real numbers, and torch's gradient of a complex parameter, the
    conjugate one, is the gradient of its two parts.
    """
    return torch.view_as_real(value) if value.is_complex() else value


def complex_of(value: Tensor) -> Tensor:
    """The complex parameter of its real and imaginary parts [..., 2], in any memory layout."""
    return torch.complex(*value.unbind(-1))


def own_form(params: Params, model: nn.Module) -> Params:
    """What is learned as the model's own tensors of these names are: complex where they are."""
    own = {name for name, value in model.named_parameters() if value.is_complex()}
    return {name: complex_of(v) if name in own else v for name, v in params.items()}


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Change a model's precision; what is complex stays complex, unlike with `model.to(dtype)`."""

    def moved(value: Tensor) -> Tensor:
        if value.is_complex():
            return value.to(dtype.to_complex())
        return value.to(dtype) if value.is_floating_point() else value

    model._apply(moved)
