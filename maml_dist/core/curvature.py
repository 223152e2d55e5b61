"""Curvature: the Hessian of the mean divergence after adapting, times a vector.

    (J^T F J) v,   J = d phi / d meta,   F = (d out / d phi)^T H (d out / d phi)

with H the divergence's Hessian in the policy's outputs. Where the new policy is the one that acted
the divergence has its minimum, so this is its exact Hessian in the meta-parameters: terms of J's
own derivative, and with them third derivatives of the loss, are multiplied by a zero gradient.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad, jvp, vjp

from maml_dist.core.params import Params


def curvature(
    adapt: Callable[[Params], Params],
    output: Callable[[Params], Tensor],
    divergence: Callable[[Tensor, Tensor], Tensor],
    meta: Params,
    vector: Params,
) -> Params:
    """The product of one task, named and shaped as `meta`.

    Args:
        adapt: meta -> phi.
        output: phi -> the policy's outputs on the query batch.
        divergence: (old outputs, new outputs) -> the mean divergence, a scalar.
        meta: the meta-parameters, with which the query batch was collected.
        vector: what to multiply, named and shaped as `meta`.
    """
    phi, phi_along = _along(adapt, meta, vector)
    out, out_along = _along(output, phi, phi_along)

    def divergence_of(new: Tensor) -> Tensor:
        return divergence(out, new)

    _, bent = _along(grad(divergence_of), out, out_along)
    of_phi = vjp(output, phi)[1](bent)[0]
    image: Params = vjp(adapt, meta)[1](of_phi)[0]
    return image


def _along(function: Callable[[Any], Any], at: Any, vector: Any) -> tuple[Any, Any]:
    """The function's value, and its derivative along a vector."""
    both: Any = jvp(function, (at,), (vector,))
    return both[0], both[1]
