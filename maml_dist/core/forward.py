"""Forward: how a module's layers compute while it is meta-learned, whoever wrote the module.

    batch norm   normalises with the current batch, or as told (`Normalise`); changes no buffer
    dropout      drawn from the task's random key; without a key nothing is dropped
    attention    by its formula: the fused kernels have no second derivative

The functions of torch.nn.functional are replaced while the module runs: torch's own modules call
them there, and so does most code of users. What a user bound under another name before computes as
torch does it, which `check` refuses where it draws random numbers or changes a buffer.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from maml_dist.core.batch_norm import differentiates_fast, normalise
from maml_dist.core.random import fold, uniform

Normalise = Callable[..., Tensor]  # (x, running mean, variance, weight, bias, eps) -> normalised
Seen = dict[int, list[tuple[Tensor, Tensor]]]  # id of a running mean -> means, variances of batches

_batch_norm = functional.batch_norm
SELU_LIMIT = 1.7580993408473766  # scale * alpha of SELU: what alpha dropout drops to, negated


@contextmanager
def forward_rules(
    *, key: Tensor | None, normalise: Normalise | None = None, followed: Collection[int] = ()
) -> Iterator[None]:
    """Inside, modules compute by the rules above.

    Args:
        key: seeds what is drawn.
        normalise: how batch norm computes; with the current batch if None.
        followed: ids of the running means that are kept beside the parameters; a batch norm
            called with others computes as torch does it.
    """
    drawn = 0

    def keep(x: Tensor, p: float, shape: tuple[int, ...]) -> Tensor:
        """1 where kept, else 0; every call has a stream of its own."""
        nonlocal drawn
        assert key is not None
        if not 0 <= p <= 1:
            raise ValueError(f"dropout with p={p}: must be in [0, 1]")
        drawn += 1
        return (uniform(fold(key, drawn), shape, dtype=torch.float32) >= p).to(x.dtype)

    def zeroed(x: Tensor, p: float, training: bool, shape: tuple[int, ...]) -> Tensor:
        if not training or key is None or p == 0:
            return x
        return x * keep(x, p, shape) * (1 / (1 - p) if p < 1 else 0.0)

    def limited(x: Tensor, p: float, training: bool, shape: tuple[int, ...]) -> Tensor:
        """Dropped to SELU's limit, then mean and variance restored (arXiv 1706.02515)."""
        if not training or key is None or p == 0:
            return x
        kept = keep(x, p, shape)
        scale = ((1 - p) * (1 + p * SELU_LIMIT**2)) ** -0.5 if p < 1 else 0.0
        return scale * (x * kept - SELU_LIMIT * (1 - kept) + p * SELU_LIMIT)

    # In place or not, the result is a new tensor: what is in place may be a task's data.
    def dropout(
        input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        return zeroed(input, p, training, tuple(input.shape))

    def alpha_dropout(
        input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
    ) -> Tensor:
        return limited(input, p, training, tuple(input.shape))

    def feature_alpha_dropout(
        input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
    ) -> Tensor:
        return limited(input, p, training, _channels(input, 2))

    def channel_dropout(unbatched: int | None) -> Callable[..., Tensor]:
        """Drops whole channels; an input of `unbatched` dimensions has no batch."""

        def rule(
            input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
        ) -> Tensor:
            shape = _channels(input, 1 if input.dim() == unbatched else 2)
            return zeroed(input, p, training, shape)

        return rule

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = query * scale @ key.transpose(-2, -1)
        if is_causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~seen, -torch.inf)
        if attn_mask is None:
            weights = scores.softmax(-1)
        else:
            masked = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
            blind = (scores == -torch.inf).all(-1, keepdim=True)  # sees nothing: zero, not NaN
            weights = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        return dropout(weights, dropout_p) @ value

    def batch_norm(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if running_mean is not None and id(running_mean) not in followed:
            return _batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        by = by_batch if normalise is None else normalise
        return by(input, running_mean, running_var, weight, bias, eps)

    rules: dict[str, Any] = {
        "dropout": dropout,
        "dropout1d": channel_dropout(2),
        "dropout2d": channel_dropout(None),  # as torch, which takes [n, channels, length] too
        "dropout3d": channel_dropout(4),
        "alpha_dropout": alpha_dropout,
        "feature_alpha_dropout": feature_alpha_dropout,
        "scaled_dot_product_attention": attention,
        "batch_norm": batch_norm,
    }
    before = {name: getattr(functional, name) for name in rules}
    vars(functional).update(rules)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # for attention that is not called by the name replaced
            yield
    finally:
        vars(functional).update(before)


def _channels(x: Tensor, leading: int) -> tuple[int, ...]:
    return (*x.shape[:leading], *(1 for _ in x.shape[leading:]))


def by_batch(x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Tensor:
    """Batch norm with mean and variance of the current batch."""
    if differentiates_fast(x, weight, bias):
        return normalise(x, weight, bias, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # vmap has none in mixed precision
    y: Tensor = _batch_norm(wide, None, None, weight, bias, training=True, eps=eps)
    return y.to(x.dtype)


def by_first(n: int) -> Normalise:
    """Batch norm with mean and variance of the first `n` examples of a batch alone."""

    def normalise(x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        mean, var = _moments(x[:n], correction=0)
        return _batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    return normalise


def observing(seen: Seen) -> Normalise:
    """Batch norm on the current batch that notes mean and unbiased variance by its buffer's id."""

    def normalise(x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        if mean is not None:
            seen.setdefault(id(mean), []).append(_moments(x, correction=1))
        return by_batch(x, mean, var, weight, bias, eps)

    return normalise


def by_running(values: Mapping[int, tuple[Tensor, Tensor]]) -> Normalise:
    """Batch norm with given statistics, found by the id of the module's own buffer."""

    def normalise(x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        if mean is None:
            return by_batch(x, mean, var, weight, bias, eps)
        mean, var = values[id(mean)]
        return _batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    return normalise


def _moments(x: Tensor, *, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    over = [dim for dim in range(x.dim()) if dim != 1]
    var, mean = torch.var_mean(x, over, correction=correction)
    return mean, var
