"""Linear systems solved by products alone: conjugate gradient, and the Hessian's product.

    (A + damping I) x = b,   x_{i+1} = x_i + a_i p_i  with conjugate p_i   (Hestenes, Stiefel 1952)
    H v = (d grad f / d x)^T v                        (H is symmetric)

Nothing here decides by a tensor's value in Python: iterations that come after the end are masked,
so that a solve can be vmapped, traced and compiled. Legend: size = elements of a flat vector.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from maml_dist.core.params import Params, flatten, layout, unflatten

Dot = Callable[[Tensor, Tensor], Tensor]


def summed(a: Tensor, b: Tensor) -> Tensor:
    """Their inner product, which a compiler can fuse with its neighbours; torch.dot cannot."""
    return (a * b).sum()


class Iterate(NamedTuple):
    """Conjugate gradient between two products; vectors are [size], the rest scalars []."""

    x: Tensor
    image: Tensor  # (A + damping I) x
    residual: Tensor  # b - image
    along: Tensor  # the direction whose product is wanted next
    squared: Tensor  # |residual|^2
    enough: Tensor  # the |residual|^2 at which x is good enough
    curvature: Tensor  # of the direction before: its product with its image
    ended: Tensor  # whether the direction before led nowhere, and x stayed


def first_iterate(b: Tensor, *, tolerance: float = 0.0, dot: Dot = summed) -> Iterate:
    """x = 0, and b the first direction; `tolerance` as in `conjugate_gradient`."""
    zero, squared = torch.zeros_like(b), dot(b, b)
    enough = max(tolerance, torch.finfo(b.dtype).eps) ** 2 * squared
    return Iterate(zero, zero, b, b, squared, enough, squared, squared <= enough)


def next_iterate(
    before: Iterate, product: Tensor, *, damping: float = 0.0, dot: Dot = summed
) -> Iterate:
    """One step on, along the direction whose product with A is given.

    At the end, a residual that is small enough or a direction of no positive curvature, x stays.
    """
    along, squared = before.along, before.squared
    image = product + damping * along
    curvature = dot(along, image)
    # Not the opposite comparisons: what is not a number must not end it, unseen.
    ended = (squared <= before.enough) | (curvature <= 0)
    length = torch.where(ended, 0.0, squared / torch.where(ended, 1.0, curvature))
    residual = before.residual - length * image
    after = dot(residual, residual)
    share = after / torch.where(ended, 1.0, squared)
    return Iterate(
        before.x + length * along,
        before.image + length * image,
        residual,
        torch.where(ended, along, residual + share * along),
        after,
        before.enough,
        curvature,
        ended,
    )


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
    iterate = first_iterate(b, tolerance=tolerance)
    for number in range(iterations):
        iterate = next_iterate(iterate, product(iterate.along), damping=damping)
        if not number:
            iterate = iterate._replace(x=torch.where(iterate.ended, b, iterate.x))
    return iterate.x


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
