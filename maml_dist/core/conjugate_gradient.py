"""Linear systems solved by products alone: conjugate gradient, and the Hessian's product.

    (A + damping I) x = b,   x_{i+1} = x_i + a_i p_i  with conjugate p_i   (Hestenes, Stiefel 1952)
    H v = (d grad f / d x)^T v                        (H is symmetric)

Nothing here decides by a tensor's value in Python: iterations that come after the end are masked,
so that a solve can be vmapped, traced and compiled. Legend: size = elements of a flat vector.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp

from maml_dist.core.params import Params, flatten, layout, unflatten


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    iterations: int,
    damping: float = 0.0,
    tolerance: float = 0.0,
) -> Tensor:
    """x [size] with (A + damping I) x = b, started at zero; A symmetric.

    It ends where |residual| <= tolerance |b| (at least the rounding error), or at a direction of
    no positive curvature, which would lead away: with the x before, or with b itself if it is the
    first. So x is never against b, whatever A. What is not finite makes x not finite.

    Args:
        product: v [size] -> A v [size].
        b: the right-hand side [size].
        iterations: products at most; all are computed, those after the end are not used.
        damping: added to the diagonal of A.
        tolerance: relative to the norm of b.
    """
    x = torch.zeros_like(b)
    residual, along = b, b
    squared = (b * b).sum()
    enough = max(tolerance, torch.finfo(b.dtype).eps) ** 2 * squared
    for number in range(iterations):
        image = product(along) + damping * along
        curvature = (along * image).sum()
        # Not the opposite comparisons: what is not a number must not end it, unseen.
        ended = (squared <= enough) | (curvature <= 0)
        length = torch.where(ended, 0.0, squared / torch.where(ended, 1.0, curvature))
        x = x + length * along if number else torch.where(ended, b, length * b)
        residual = residual - length * image
        before, squared = squared, (residual * residual).sum()
        share = squared / torch.where(ended, 1.0, before)
        along = torch.where(ended, along, residual + share * along)
    return x


def solve(
    product: Callable[[Params], Params],
    b: Params,
    *,
    iterations: int,
    damping: float = 0.0,
    tolerance: float = 0.0,
) -> Params:
    """`conjugate_gradient` on named tensors; `product` gives what is named and shaped as `b`."""
    into = layout(b)

    def flat(vector: Tensor) -> Tensor:
        image = product(unflatten(vector, into))
        return flatten({name: image[name] for name in into.names})

    x = conjugate_gradient(
        flat, flatten(b), iterations=iterations, damping=damping, tolerance=tolerance
    )
    return unflatten(x, into)


def hessian(function: Callable[[Params], Tensor], at: Params) -> Callable[[Params], Params]:
    """v -> H v, the Hessian of a scalar function at `at`; its gradient is computed once for all v.

    Reverse over reverse: every layer that has a second derivative has it.
    """
    pull = vjp(grad(function), at)[1]

    def product(vector: Params) -> Params:
        image: Params = pull({name: vector[name] for name in at})[0]
        return image

    return product
