"""Functional rules: how a module's layers compute while it is meta-learned, whoever wrote it.

    batch norm   normalises with the current batch, or as told (`Normalise`); changes no buffer
    dropout      drawn from the task's random key; without a key nothing is dropped
    attention    by its formula: the fused kernels have no second derivative
    weight norm  by its formula: that of torch (2.13) has a wrong second derivative
    embedding    of a sparse parameter: among the rows that are there (`lookup`)

The functions of torch.nn.functional are met where they are called, by whatever name, in the thread
that the rules hold for: a TorchFunctionMode sees every function of torch. Other functions that draw
random numbers (torch.dropout, torch.rand) compute as torch does it, which `check` refuses.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from threading import Lock
from types import FunctionType, MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from maml_dist.core.model.batch_norm import differentiates_fast, normalise
from maml_dist.core.model.lookup import Lookup
from maml_dist.core.random import fold, uniform

Normalise = Callable[..., Tensor]  # (x, running mean, variance, weight, bias, eps) -> normalised
Seen = dict[int, list[tuple[Tensor, Tensor]]]  # id of a running mean -> means, variances of batches

_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_batch_norm, _attend = functional.batch_norm, functional.multi_head_attention_forward
# What a table tells of itself; not its shape, which is that of the rows that are there.
_TOLD = {"device", "dtype", "layout", "ndim", "is_leaf", "requires_grad", "is_cuda", "is_cpu"}
_TOLD |= {"is_meta", "is_mps", "is_nested", "is_quantized", "is_sparse", "is_xpu"}
_cudnn = Lock()  # whether it is used is one flag of the process
SELU_LIMIT = 1.7580993408473766  # scale * alpha of SELU: what alpha dropout drops to, negated


class ForwardRules(TorchFunctionMode):
    """Inside, modules compute by the rules above, in this thread."""

    def __init__(
        self,
        *,
        key: Tensor | None,
        normalise: Normalise | None = None,
        followed: Collection[int] = (),
        given: Iterable[Tensor] = (),
        lookups: Mapping[int, tuple[str, Lookup]] = MappingProxyType({}),
    ) -> None:
        """Rules for one pass of a model.

        Args:
            key: seeds what is drawn.
            normalise: how batch norm computes; with the current batch if None.
            followed: ids of the running means that are kept beside the parameters; a batch norm
                called with others computes as torch does it.
            given: the parameters; one of another origin that wants a gradient is refused.
            lookups: by the ids of those that are sparse, their names and what looks them up.
        """
        super().__init__()
        self._given = given
        self._lookups = lookups
        self._rules = _rules(key, normalise, followed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._refuse_others((*args, *kwargs.values()))
        if self._lookups and (table := self._table(args, kwargs)):
            return self._looked_up(table, func, args, kwargs)
        return self._rules.get(func, func)(*args, **kwargs)

    def _table(self, args: Any, kwargs: Any) -> tuple[str, Lookup] | None:
        """The sparse parameter among what a function is given."""
        flat = (*args, *kwargs.values())
        inner = (each for value in flat if type(value) in (list, tuple) for each in value)
        known = (self._lookups.get(id(value)) for value in (*flat, *inner))
        return next(filter(None, known), None)

    def _looked_up(self, table: tuple[str, Lookup], func: Any, args: Any, kwargs: Any) -> Any:
        name, lookup = table
        if func is functional.embedding:
            return lookup(*args, **kwargs)
        used: str = getattr(func, "__name__", str(func))
        if used == "__get__":
            used = getattr(func.__self__, "__name__", used)  # of the attribute
            if used in _TOLD:
                return func(*args, **kwargs)
        raise ValueError(
            f"sparse={name!r}: the model computes with it by {used}, and a table is looked up by "
            "torch.nn.functional.embedding alone; leave it out of sparse"
        )

    def _refuse_others(self, values: Iterable[Any]) -> None:
        for value in values:
            kind = type(value)
            if kind is nn.Parameter and value.requires_grad:
                if not any(value is each for each in self._given):
                    raise ValueError(
                        f"the model computes with a parameter {list(value.shape)} by another way "
                        "than its module's attribute (a plain list, a function): hold it by an "
                        "nn.ModuleList or nn.ParameterList; requires_grad=False if not learned"
                    )
            elif kind is list or kind is tuple:
                self._refuse_others(value)


def _rules(
    key: Tensor | None, normalise: Normalise | None, followed: Collection[int]
) -> dict[Any, Callable[..., Any]]:
    """Functions of torch -> how they compute."""
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

    def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
        """The norm is taken over all axes but `dim`; over all where that is -1."""
        over = [axis for axis in range(v.dim()) if dim == -1 or axis != dim % v.dim()]
        y: Tensor = v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=dim != -1))
        return y

    def attend(*args: Any, **options: Any) -> Any:
        """What nn.MultiheadAttention calls; a mode does not see what it calls in turn."""
        own: dict[str, Any] = {"dropout": dropout, "scaled_dot_product_attention": attention}
        within = {**vars(functional), **own, "has_torch_function": lambda tensors: False}
        run = FunctionType(_attend.__code__, within, argdefs=_attend.__defaults__)
        return run(*args, **options)

    return {
        functional.dropout: dropout,
        functional.dropout1d: channel_dropout(2),
        functional.dropout2d: channel_dropout(None),  # as torch: [n, channels, length] too
        functional.dropout3d: channel_dropout(4),
        functional.alpha_dropout: alpha_dropout,
        functional.feature_alpha_dropout: feature_alpha_dropout,
        functional.scaled_dot_product_attention: attention,
        torch.ops.aten.scaled_dot_product_attention: attention,
        functional.multi_head_attention_forward: attend,
        functional.batch_norm: batch_norm,
        torch._weight_norm: weight_norm,
        torch.view_as_complex: lambda x: torch.view_as_complex(x.clone()),  # of any memory layout
        **{function: partial(_without_cudnn, function) for function in _RECURRENT},
    }


def _without_cudnn(function: Callable[..., Any], x: Tensor, *rest: Any) -> Any:
    """A recurrent layer; cuDNN's have no second derivative."""
    if not x.is_cuda:
        return function(x, *rest)
    with _cudnn, torch.backends.cudnn.flags(enabled=False):
        return function(x, *rest)


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
