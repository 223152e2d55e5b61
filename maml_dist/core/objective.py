"""Objective: a model and a task source joined into functions of the parameters.

Batch norm normalises with the current batch while training. At test there are up to three modes:

    transductive   the queries by themselves, as the paper does
    inductive      the queries with the statistics of the support set
    running        the queries with running statistics: kept beside the meta-parameters, they
                   follow the queries of training at the adapted parameters
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from maml_dist.core.episode import Batch, Episode
from maml_dist.core.forward import Normalise, Seen, by_first, by_running, forward_rules, observing
from maml_dist.core.params import Params
from maml_dist.core.source import TaskSource

_ARITHMETIC = {
    "sub",
    "rsub",
    "add",
    "radd",
    "mul",
    "rmul",
    "div",
    "truediv",
    "rtruediv",
    "eq",
    "ne",
}
Mode = Literal["transductive", "inductive", "running"]  # what batch norm normalises queries by


def modes(model: nn.Module) -> tuple[Mode, ...]:
    """The modes in which a model can be scored; none where it has no batch norm."""
    with _in(training_modes(model)):
        norms = [part for part in model.modules() if _follows_batch(part)]
    running: tuple[Mode, ...] = ("running",) if running_statistics(model) else ()
    return ("transductive", "inductive", *running) if norms else ()


def running_statistics(model: nn.Module) -> Params:
    """The running means and variances of a model's batch norms, and counts where those matter."""
    return {
        f"{name}.{kind}": getattr(part, kind)
        for name, part in _followed(model).items()
        for kind in _kept(part)
    }


class Objective:
    """The losses and scores of one task as functions of (parameters, data)."""

    def __init__(self, model: nn.Module, source: TaskSource, *, bfloat16: bool = False) -> None:
        self._model = model
        self._source = source
        self._bfloat16 = bfloat16
        self._recurs = any(isinstance(part, nn.RNNBase) for part in model.modules())
        self._norms = _followed(model)
        still = set(self._norms.values())  # so that they leave their own counters alone
        self._training = [(p, mode and p not in still) for p, mode in training_modes(model)]
        self.kept = tuple(running_statistics(model))  # names of what is kept, not differentiated

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The inner loss, a scalar."""
        return self._source.loss(self.output(params, batch.x, key=batch.key), batch)

    def query_loss(self, params: Params, batch: Batch) -> Tensor:
        """The outer loss, a scalar."""
        return self._source.query_loss(self.output(params, batch.x, key=batch.key), batch)

    def divergence(self, params: Params, batch: Batch) -> Tensor:
        """On-policy: the mean KL divergence from the policy that acted, a scalar."""
        return self._source.divergence(self.output(params, batch.x, key=batch.key), batch)

    def between(self, old: Tensor, new: Tensor, batch: Batch) -> Tensor:
        """On-policy: the mean KL divergence of outputs from others on the same batch, a scalar."""
        return self._source.divergence(new, batch._replace(y=batch.y._replace(before=old)))

    def scores(
        self,
        params: Params,
        episode: Episode,
        *,
        mode: Mode = "transductive",
        kept: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The scalars to report of the query set.

        Inductive needs a support set; running needs the running statistics, `kept`.
        """
        query = episode.query
        if mode == "inductive":
            support = episode.support[0].x
            both = torch.cat([support, query.x])
            output = self.output(params, both, normalise=by_first(len(support)))[len(support) :]
        elif mode == "running":
            assert kept is not None
            values = {
                id(part.running_mean): (kept[f"{name}.running_mean"], kept[f"{name}.running_var"])
                for name, part in self._norms.items()
            }
            output = self.output(params, query.x, normalise=by_running(values))
        else:
            output = self.output(params, query.x)
        return self._source.score(output, query)

    def statistics(self, params: Params, kept: Mapping[str, Tensor], batch: Batch) -> Params:
        """The running statistics after this batch, from those before."""
        seen: Seen = {}
        self.output(params, batch.x, key=batch.key, normalise=observing(seen))
        new = dict(kept)
        for name, part in self._norms.items():
            for mean, var in seen.get(id(part.running_mean), ()):
                share: Tensor | float | None = part.momentum
                if share is None:  # the mean over all batches so far
                    count = new[f"{name}.num_batches_tracked"] + 1
                    new[f"{name}.num_batches_tracked"], share = count, 1 / count.to(mean.dtype)
                for kind, now in (("running_mean", mean), ("running_var", var)):
                    old = new[f"{name}.{kind}"]
                    new[f"{name}.{kind}"] = old + share * (now - old)
        return new

    def output(
        self,
        params: Params,
        x: Tensor,
        *,
        key: Tensor | None = None,
        normalise: Normalise | None = None,
    ) -> Tensor:
        """The model's output [n, …] at x [n, …]; dropout is drawn from `key`, or none."""
        followed = [id(part.running_mean) for part in self._norms.values()]
        with ExitStack() as rules:
            rules.enter_context(forward_rules(key=key, normalise=normalise, followed=followed))
            rules.enter_context(_in(self._training))
            if self._recurs:  # cuDNN's recurrent layers have no second derivative
                rules.enter_context(torch.backends.cudnn.flags(enabled=False))
            if self._bfloat16:
                cast = torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
                rules.enter_context(cast)
            output: Tensor = functional_call(self._model, params, (x,))
        return output.float() if self._bfloat16 else output


Modes = list[tuple[nn.Module, bool]]  # modules, and whether each is in training mode


def training_modes(model: nn.Module) -> Modes:
    """The modes of a model's parts after its own `train()`, which may leave some as they are."""
    before = [(part, part.training) for part in model.modules()]
    model.train()
    after = [(part, part.training) for part in model.modules()]
    for part, mode in before:
        part.training = mode
    return after


@contextmanager
def _in(training: Modes) -> Iterator[None]:
    """Inside, the modules are in these modes."""
    changed = [part for part, mode in training if part.training != mode]
    for part in changed:
        part.training = not part.training
    try:
        yield
    finally:
        for part in changed:
            part.training = not part.training


def _follows_batch(part: nn.Module) -> bool:
    """A batch norm that normalises with the batch while it trains: not one held in evaluation."""
    return isinstance(part, _BatchNorm) and (part.training or part.running_mean is None)


def _followed(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms whose running statistics follow what is seen in training."""
    with _in(training_modes(model)):
        return {
            name: part
            for name, part in model.named_modules()
            if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None
        }


def _kept(part: _BatchNorm) -> tuple[str, ...]:
    counts = ("num_batches_tracked",) if part.momentum is None else ()
    return ("running_mean", "running_var", *counts)


@contextmanager
def broadcasting_refused(*targets: Tensor) -> Iterator[None]:
    """Inside, a loss whose arguments differ in shape raises a UserWarning and computes nothing.

    So does arithmetic of one of the `targets` and another tensor whose result has the shape of
    neither: [n] and [n, 1] make [n, n], which is never meant.
    """
    with warnings.catch_warnings(), _NoOuter(targets):
        warnings.filterwarnings("error", message="Using a target size")
        yield


class _NoOuter(TorchFunctionMode):
    """Refuses arithmetic by which a target and another tensor are both made larger."""

    def __init__(self, targets: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._targets = {id(target) for target in targets}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        pair = args[:2] if getattr(func, "__name__", "").strip("_") in _ARITHMETIC else ()
        if len(pair) == 2 and all(isinstance(part, Tensor) for part in pair):
            shapes = [part.shape for part in pair]
            if self._targets & {id(part) for part in pair} and shapes[0] != shapes[1]:
                result = torch.broadcast_shapes(*shapes)
                if result not in shapes:
                    raise UserWarning(
                        f"the loss broadcasts {list(shapes[0])} and {list(shapes[1])} to "
                        f"{list(result)}: give y the shape of the model's output"
                    )
        return func(*args, **(kwargs or {}))
