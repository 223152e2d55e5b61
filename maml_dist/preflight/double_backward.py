"""Double backward: is the second derivative of a custom autograd.Function that of its backward?

For b(x, g), the gradient that `backward` gives for the output's gradient g, along random u, v, w:

    d/dt <u, b(x + t v, g + t w)>   by differentiating `backward`  =  by finite differences

It is the function's own backward that is compared, so that straight-through and other intended
gradients pass; a kink would show as differences that change with their step, and is let pass.
"""

from collections.abc import Callable
from threading import get_ident
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.autograd_function import custom_function_call
from torch.autograd import function
from torch.func import grad, vjp

from maml_dist.core.process_lock import EXCLUSIVE

STEPS = (1e-5, 1e-6)  # of the two finite differences
ERROR = 1e-3  # relative; a missing term is far more, rounding far less


def wrong_second_derivative(run: Callable[..., Tensor], *arguments: Any) -> str | None:
    """The name of a custom function in `run(*arguments)` whose second derivative is wrong."""
    calls: dict[Any, tuple[Any, ...]] = {}

    own = get_ident()

    def noting(kind: Any, *values: Any, **options: Any) -> Any:
        if get_ident() == own:
            calls.setdefault(kind, tuple(map(_plain, values)))
        return custom_function_call(kind, *values, **options)

    with EXCLUSIVE, mock.patch.object(function, "custom_function_call", noting):
        grad(run)(*arguments)
    return next((kind.__name__ for kind, values in calls.items() if _wrong(kind, values)), None)


def _plain(value: Any) -> Any:
    while isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        value = _functorch.get_unwrapped(value)
    return value.detach() if isinstance(value, Tensor) else value


def _wrong(kind: Any, values: tuple[Any, ...]) -> bool:
    places = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.is_floating_point()]
    draw = torch.Generator().manual_seed(0)

    def like(tensors: list[Tensor]) -> list[Tensor]:
        drawn = (torch.randn(t.shape, generator=draw, dtype=torch.float64) for t in tensors)
        return [noise.to(t.device) for noise, t in zip(drawn, tensors, strict=True)]

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        merged = list(values)
        for place, value in zip(places, inputs, strict=True):
            merged[place] = value
        outputs = kind.apply(*merged)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(each for each in outputs if each.is_floating_point())

    inputs = [values[place].double() for place in places]
    # Not at the point itself: zeros, which data are full of, are where kinks are.
    inputs = [x + 0.01 * x.abs().mean() * n for x, n in zip(inputs, like(inputs), strict=True)]
    try:
        given = like(list(forward(*inputs)))
        along, side, aside = like(inputs), like(inputs), like(given)

        def projected(x: list[Tensor], g: list[Tensor]) -> Tensor:
            back = vjp(forward, *x)[1](tuple(g))
            return torch.stack([(u * b).sum() for u, b in zip(along, back, strict=True)]).sum()

        def moved(t: float) -> Tensor:
            x = [a + t * b for a, b in zip(inputs, side, strict=True)]
            return projected(x, [a + t * b for a, b in zip(given, aside, strict=True)])

        pulled = vjp(projected, inputs, given)[1](torch.ones((), dtype=torch.float64))
        by_backward = sum((a * b).sum() for a, b in zip(sum(pulled, []), side + aside, strict=True))
        coarse, fine = ((moved(step) - moved(-step)) / (2 * step) for step in STEPS)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return False  # what cannot be computed is said where it is
    scale = fine.abs() + abs(by_backward) + 1e-4 * projected(inputs, given).abs()
    settled = (coarse - fine).abs() <= 0.1 * ERROR * scale
    return bool(settled & ((by_backward - fine).abs() > ERROR * scale))
