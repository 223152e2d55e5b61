"""The curvature of a trust region: the Hessian, at theta, of the mean KL after adapting.

    d^2/dv^2 KL(pi_adapt(theta) || pi_adapt(v)) at v = theta   =   J^T F J
    J = d output(adapt(theta)) / d theta,   F = d^2 KL(old || new) / d new^2 at new = old

At theta the KL and its gradient are zero, so adapting is differentiated as for a meta-gradient and
no more: no third derivative (arXiv 1502.05477, appendix C). One task; vmapped, it is many.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp

from maml_dist.core.params import Params


def curvature(
    adapt: Callable[[Params], Params],
    output: Callable[[Params], Tensor],
    kl: Callable[[Tensor, Tensor], Tensor],
    meta: Params,
    vector: Params,
) -> Params:
    """J^T F J vector, named and shaped as `meta`.

    Args:
        adapt: theta -> phi, differentiable.
        output: phi -> the policy's outputs on the query batch.
        kl: of the outputs (old, new), the mean KL(old || new), a scalar.
        meta: theta.
        vector: what is multiplied.
    """
    return linearised(adapt, output, kl, meta)(vector)


def linearised(
    adapt: Callable[[Params], Params],
    output: Callable[[Params], Tensor],
    kl: Callable[[Tensor, Tensor], Tensor],
    meta: Params,
) -> Callable[[Params], Params]:
    """vector -> `curvature` of it; what does not depend on the vector is computed once for all.

    Reverse mode alone (J v is the derivative of J^T w in w, which is linear): on a perceptron and
    one CPU thread half the time of forward over reverse, and no operation needs a forward rule.
    """
    at, pull = vjp(lambda theta: output(adapt(theta)), meta)[:2]

    def transposed(w: Tensor) -> Params:
        image: Params = pull(w)[0]
        return image

    push = vjp(transposed, torch.zeros_like(at))[1]

    def kl_of(new: Tensor) -> Tensor:
        return kl(at, new)

    fisher = vjp(grad(kl_of), at)[1]  # F is symmetric

    def product(vector: Params) -> Params:
        along = push({name: vector[name] for name in meta})[0]
        return transposed(fisher(along)[0])

    return product
