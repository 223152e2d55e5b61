"""Objective: a model and a task source joined into functions of the parameters.

Batch norm normalises with the current batch while training. At test there are up to three modes:

    transductive   the queries by themselves, as the paper does
    inductive      the queries with the statistics of the support set
    running        the queries with running statistics: kept beside the meta-parameters, they
                   follow the queries of training at the adapted parameters
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _BatchNorm

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.model.equal_shapes import broadcasting_refused
from maml_dist.core.model.functional_call import (
    Modes,
    Stateless,
    present_modes,
    training_modes,
)
from maml_dist.core.model.functional_rules import (
    ForwardRules,
    Normalise,
    Seen,
    by_first,
    by_running,
    observing,
)
from maml_dist.core.model.lookup import Among, Lookup, Noted, each_once
from maml_dist.core.params import Params, complex_of
from maml_dist.core.tables import Table

Mode = Literal["transductive", "inductive", "running"]  # what batch norm normalises queries by


def modes(model: nn.Module) -> tuple[Mode, ...]:
    """The modes in which a model can be scored; none where it has no batch norm."""
    norms = [part for part, training in training_modes(model) if _follows_batch(part, training)]
    running: tuple[Mode, ...] = ("running",) if running_statistics(model) else ()
    return ("transductive", "inductive", *running) if norms else ()


def running_statistics(model: nn.Module) -> Params:
    """The running means and variances of a model's batch norms, and counts where those matter."""
    return {
        f"{name}.{kind}": getattr(part, kind)
        for name, part in _followed(model, training_modes(model)).items()
        for kind in _kept(part)
    }


class Objective:
    """The losses and scores of one task as functions of (parameters, data)."""

    def __init__(
        self,
        model: nn.Module,
        source: TaskSource,
        *,
        bfloat16: bool = False,
        strict: bool = False,
        tables: Sequence[Table] = (),
        named: bool = False,
        as_it_is: bool = False,
    ) -> None:
        """`strict`: an inner loss that broadcasts its arguments raises a RuntimeError.

        `as_it_is`: the model's parts are in the modes that they are in now, not in training.

        `tables`: parameters of which the rows are given that each batch names; others that are
        looked up make the output NaN, or raise a ValueError where all must be `named`.
        """
        self._all_named = named
        self._vmaps = True  # until it has not
        self._tables = {table.name: table for table in tables}
        own = dict(model.named_parameters()) if tables else {}
        self._empty = {name: own[name].detach()[:0] for name in self._tables}
        self._model = Stateless(model)
        self._source = source
        self._bfloat16 = bfloat16
        self._strict = strict
        self._complex = {name for name, p in model.named_parameters() if p.is_complex()}
        training = present_modes(model) if as_it_is else training_modes(model)
        self._norms = _followed(model, training)
        still = set(self._norms.values())  # so that they leave their own counters alone
        self._training = [(p, mode and p not in still) for p, mode in training]
        self.kept = tuple(running_statistics(model))  # names of what is kept, not differentiated

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The inner loss, a scalar."""
        output = self._of(params, batch)
        targets = [batch.y] if isinstance(batch.y, Tensor) else []
        with broadcasting_refused(*targets) if self._strict else nullcontext():
            return self._source.loss(output, batch)

    def query_loss(self, params: Params, batch: Batch) -> Tensor:
        """The outer loss, a scalar."""
        return self._source.query_loss(self._of(params, batch), batch)

    def kl(self, params: Params, batch: Batch) -> Tensor:
        """On-policy: the mean KL divergence from the policy that acted, a scalar."""
        return self._source.kl(self._of(params, batch), batch)

    def kl_between(self, old: Tensor, new: Tensor, batch: Batch) -> Tensor:
        """On-policy: the mean KL divergence of outputs from others on the same batch, a scalar."""
        return self._source.kl(new, batch._replace(y=batch.y._replace(old_output=old)))

    def answer(
        self,
        params: Params,
        episode: Episode,
        *,
        mode: Mode = "transductive",
        kept: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The output [n, …] for the query set, as it is scored: nothing is dropped.

        Inductive needs a support set; running needs the running statistics, `kept`.
        """
        query = episode.query
        if mode == "inductive":
            support = episode.support[0].x
            both = torch.cat([support, query.x])
            first = by_first(len(support))
            return self.output(params, both, normalise=first, rows=query.rows)[len(support) :]
        if mode == "running":
            assert kept is not None
            values = {
                id(part.running_mean): (kept[f"{name}.running_mean"], kept[f"{name}.running_var"])
                for name, part in self._norms.items()
            }
            return self.output(params, query.x, normalise=by_running(values), rows=query.rows)
        return self.output(params, query.x, rows=query.rows)

    def score(self, output: Tensor, query: Batch) -> dict[str, Tensor]:
        """The numbers to report of the query set, from the model's output for it."""
        return self._source.score(output, query)

    def statistics(self, params: Params, kept: Mapping[str, Tensor], batch: Batch) -> Params:
        """The running statistics after this batch, from those before."""
        seen: Seen = {}
        self._of(params, batch, normalise=observing(seen))
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
        rows: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The model's output [n, …] at x [n, …]; dropout is drawn from `key`, or none.

        `rows`: of tables the ids whose rows the parameters are, ascending.
        """
        (output,) = self._outputs(params, x, key=key, normalise=normalise, rows=rows)
        return output

    def touched(self, params: Params, x: Tensor) -> dict[str, Tensor]:
        """The ids of the rows [u] of each table that the model looks up for tasks' x, ascending.

        x [task, n, …], each task by itself, for a model may look at the places along n. `params`
        need not hold tables.
        """
        none = {name: self._empty[name].new_zeros((1, 1)) for name in self._tables}

        def one(x: Tensor) -> Params:
            noted = {name: Noted(table) for name, table in self._tables.items()}
            self._outputs({**params, **none}, x, key=None, lookups=noted)
            return {name: each.ids() for name, each in noted.items()}

        with torch.no_grad():
            try:
                found = [vmap(one)(x)] if self._vmaps else [one(each) for each in x]
            except RuntimeError:  # what has no vmap; or what this one raises too
                self._vmaps, found = False, [one(each) for each in x]
        return {
            name: each_once(table, torch.cat([ids[name].reshape(-1) for ids in found]))
            for name, table in self._tables.items()
        }

    def _of(self, params: Params, batch: Batch, *, normalise: Normalise | None = None) -> Tensor:
        return self.output(params, batch.x, key=batch.key, normalise=normalise, rows=batch.rows)

    def remembers(self, params: Params, batch: Batch) -> bool:
        """Whether the model's output differs where it is called twice in a row."""
        first, second = self._outputs(params, batch.x, key=batch.key, rows=batch.rows, times=2)
        return not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)

    def _outputs(
        self,
        params: Params,
        x: Tensor,
        *,
        key: Tensor | None,
        normalise: Normalise | None = None,
        rows: Mapping[str, Tensor] | None = None,
        lookups: Mapping[str, Lookup] | None = None,
        times: int = 1,
    ) -> list[Tensor]:
        """Of so many calls in a row: what the model keeps of one, the next sees."""
        found = {
            name: Among(self._tables[name], ids, strict=self._all_named)
            for name, ids in (rows or {}).items()
        }
        lookups = found if lookups is None else lookups
        given = {
            name: complex_of(value) if name in self._complex else value
            for name, value in params.items()
        }
        followed = [id(part.running_mean) for part in self._norms.values()]
        cast: Any = nullcontext()
        if self._bfloat16:
            cast = torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
        outputs = []
        with self._model.given(given, self._training) as model, cast:
            for _ in range(times):
                rules = ForwardRules(
                    key=key,
                    normalise=normalise,
                    followed=followed,
                    given=given.values(),
                    lookups={id(given[name]): (name, by) for name, by in lookups.items()},
                )
                with rules:
                    output: Tensor = model(x)
                if isinstance(output, Tensor) and output.is_floating_point():
                    for there in (each for by in found.values() for each in by.there):
                        # Whatever hides a NaN; by a product, so that its gradient is NaN too.
                        output = output * torch.where(there, 1.0, torch.nan).to(output.dtype)
                outputs.append(output.float() if self._bfloat16 else output)
        return outputs


def _follows_batch(part: nn.Module, training: bool) -> bool:
    """A batch norm that normalises with the batch while it trains: not one held in evaluation."""
    return isinstance(part, _BatchNorm) and (training or part.running_mean is None)


def _followed(model: nn.Module, modes: Modes) -> dict[str, _BatchNorm]:
    """The batch norms whose running statistics follow what is seen in training."""
    training = dict(modes)
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, _BatchNorm) and training[part] and part.running_mean is not None
    }


def _kept(part: _BatchNorm) -> tuple[str, ...]:
    counts = ("num_batches_tracked",) if part.momentum is None else ()
    return ("running_mean", "running_var", *counts)
