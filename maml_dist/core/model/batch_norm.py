"""Batch norm on a CPU whose second derivative is a few passes over the data.

    y = weight * (x - mean) * rstd + bias,    rstd = (variance + eps)^(-1/2)      (arXiv 1502.03167)

torch writes out the derivative of its backward as some fifty element-wise operations, most of the
time of a small convolution network's second order. Sums over a channel are all that is needed
besides g and v, the gradients that come in first and second; mean and rstd are results too, so that
derivatives of any order are right.

Legend: channel = the second axis of x; n = elements of a channel.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import Function
from torch.func import vmap


def differentiates_fast(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether `normalise` takes x: on a CPU, in one precision, with two values a channel or more.

    Elsewhere torch's own is as fast, or computes in mixed precision, or says what is wrong; and it
    alone has a forward-mode derivative.
    """
    single = {value.dtype for value in (x, weight, bias) if value is not None}
    return (
        x.device.type == "cpu"
        and single in ({torch.float32}, {torch.float64})
        and x.dim() > 1
        and x.numel() > x.shape[1]
        and all(each.key() != TransformType.Jvp for each in retrieve_all_functorch_interpreters())
    )


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x [batch, channel, …] normalised with its own mean and variance."""
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    y: Tensor = _normalise(x, weight, bias, eps)[0]
    return y


class _Normalise(Function):
    """(x, weight, bias) -> (y, mean, rstd)."""

    functional = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.eps = inputs
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return vmap(_Normalise.forward, in_dims)(*operands), (0, 0, 0)

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        g, of_mean, of_rstd = along
        of_x = of_weight = of_bias = None
        if g is not None:
            of_x, of_weight, of_bias = _pull(g, x, weight, mean, rstd, ctx.eps)
        if of_mean is not None and of_rstd is not None:  # from _Pull, both or none
            n = x.numel() // x.shape[1]
            slope = _wide(-of_rstd * rstd**3 / n, x)
            part = torch.addcmul(_wide(of_mean / n, x), x - _wide(mean, x), slope)
            of_x = part if of_x is None else of_x + part
        return of_x, of_weight, of_bias, None


class _Pull(Function):
    """(g, x, weight, mean, rstd) -> the gradients in x, weight and bias, with h = (x - mean) rstd:

    weight rstd (g - sum(g) / n - h sum(g h) / n),   sum(g h),   sum(g)
    """

    functional = True

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, rstd, True, eps, [True, True, True]
        )
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return vmap(_Pull.forward, in_dims)(*operands), (0, 0, 0)

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> Any:
        """As of the sum of v times the first result, a times the second, b times the third."""
        g, x, weight, mean, rstd, sum_gh, sum_g = ctx.saved_tensors
        v, a, b = along
        n = x.numel() // x.shape[1]
        zero = torch.zeros_like(mean)
        a = zero if a is None else a
        of_g, of_weight, of_rstd = None, None, zero
        by_g, by_v, sum_v, sum_vh = a, zero, zero, zero  # of h: by_g * g + by_v * v
        if v is not None:
            of_g, sum_vh, sum_v = _pull(v, x, weight, mean, rstd, ctx.eps)
            moved = (v * g).sum([d for d in range(x.dim()) if d != 1])
            moved = moved - (sum_v * sum_g + sum_vh * sum_gh) / n
            of_weight, of_rstd = rstd * moved, weight * moved
            by_g, by_v = a - weight * rstd * sum_vh / n, -weight * rstd * sum_gh / n
        of_g = _plus(of_g, x - _wide(mean, x), _wide(a * rstd, x))
        if b is not None:
            of_g = of_g + _wide(b, x)
        of_x = g * _wide(by_g * rstd, x)
        if v is not None:
            of_x = of_x.addcmul(v, _wide(by_v * rstd, x))
        of_mean = -rstd * (by_g * sum_g + by_v * sum_v)
        of_rstd = of_rstd + (by_g * sum_gh + by_v * sum_vh) / rstd
        return of_g, of_x, of_weight, of_mean, of_rstd, None


_normalise: Any = _Normalise.apply
_pull: Any = _Pull.apply


def _plus(sum: Tensor | None, x: Tensor, factor: Tensor) -> Tensor:
    return x * factor if sum is None else sum.addcmul(x, factor)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """A value for each channel, as it broadcasts against x."""
    return values.reshape(-1, *[1] * (x.dim() - 2))
