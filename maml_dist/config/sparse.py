"""Sparse: which parameters of an experiment are tables, and what cannot learn them exactly.

A row that no task of an iteration touches is what it would be in a dense vector. What decides by
all of a parameter at once, or draws or learns something of its size, cannot be had without it.
"""

from fnmatch import fnmatchcase

import torch
from torch import nn

from maml_dist.config.experiment import Experiment
from maml_dist.config.recipe import nearest
from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.params import Params
from maml_dist.core.tables import Table

BY_ROWS = ("update", "clipped", "counted", "averaged", "init")  # what rows do without


def patterns_of(experiment: Experiment) -> tuple[str, ...]:
    """Of names of parameters."""
    given = experiment.sparse
    return (given,) if isinstance(given, str) else tuple(given)


def tables_of(experiment: Experiment) -> tuple[Table, ...]:
    """The parameters that are tables, in the model's order.

    Raises:
        ValueError: a pattern matches none, or what is no table; or the settings learn none.
    """
    if not experiment.sparse:
        return ()
    _refuse_unsuited(experiment)
    named = {n: p for n, p in experiment.model.named_parameters() if p.requires_grad}
    patterns = patterns_of(experiment)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(
                f"sparse={pattern!r}: matches no parameter{nearest(pattern, [*named])}"
            )
    found = []
    for name, value in named.items():
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if value.dim() != 2 or value.is_complex():
            raise ValueError(
                f"sparse={name!r}: is {list(value.shape)}: a table has rows, [rows, dim] of real "
                "numbers, as the weight of an nn.Embedding"
            )
        _refuse_options(name, experiment.model)
        found.append(Table(name, *value.shape))
    return tuple(found)


def refuse_learned_alike(tables: tuple[Table, ...], own: Params, learner: Learner) -> None:
    """Raise ValueError where the learner learns something more of a table's size."""
    learned = learner.init(own) if tables else {}
    for table in tables:
        fewer = learner.init({**own, table.name: own[table.name][:-1]})
        for name, value in learned.items():
            there = fewer.get(name)
            if name != table.name and (there is None or there.shape != value.shape):
                raise ValueError(
                    f"sparse={table.name!r}: the learner learns {name} {list(value.shape)}, which "
                    "has an element for each of the table's; use a learner with rates by layer"
                )


def _refuse_unsuited(experiment: Experiment) -> None:
    """Raise ValueError where the settings cannot learn tables."""
    outer, learner = experiment.outer, experiment.learner
    kind, how = type(outer).__name__, type(learner).__name__
    own = ", ".join(name for name in BY_ROWS if _has_own(outer, name))
    for wrong, what in (
        (experiment.task.on_policy, f"task={type(experiment.task).__name__} has policies"),
        (learner.zeroth_order, f"learner={how} perturbs every parameter; use MAML, say"),
        (experiment.multi_round, f"this update by {kind} asks the tasks back; use outer.epochs=1"),
        (
            not outer.divisible,
            f"outer={kind} is not said to be by elements; use SGD, Adam, Adagrad",
        ),
        (own, f"outer={kind} has its own {own}, and rows are updated by `step`; use that alone"),
        (
            not _of_count(outer),
            f"outer={kind} has a rate of more than the count of updates; use outer.schedule",
        ),
        (outer.average is not None, f"outer.average={outer.average} is of all rows; leave it out"),
        (outer.clip_norm is not None, f"outer.clip_norm={outer.clip_norm}: use outer.clip"),
        (experiment.relaxed, "max_staleness and backup need one server; leave them out"),
        (experiment.server == "one", "server=one owns no rows; use spread or split"),
    ):
        if wrong:
            raise ValueError(f"sparse={_shown(patterns_of(experiment))}: {what}")


def _has_own(outer: OuterOptimizer, name: str) -> bool:
    return getattr(type(outer), name) is not getattr(OuterOptimizer, name)


def _of_count(outer: OuterOptimizer) -> bool:
    """Whether the rate of an update can be had when it is long over."""
    try:
        outer.rate({"count": torch.tensor(0.0, dtype=torch.float64)})
    except KeyError:
        return False
    return True


def _refuse_options(name: str, model: nn.Module) -> None:
    """Of an embedding whose rows are changed otherwise than by their gradients."""
    part = model.get_submodule(name.rpartition(".")[0])
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and (value := getattr(part, option)):
            raise ValueError(
                f"sparse={name!r}: an embedding with {option}={value} is not learned by rows; "
                f"leave {option} out"
            )
    if isinstance(part, nn.EmbeddingBag):
        raise ValueError(f"sparse={name!r}: is an nn.EmbeddingBag's; use nn.Embedding, and a mean")


def _shown(patterns: tuple[str, ...]) -> str:
    return repr(patterns[0]) if len(patterns) == 1 else repr([*patterns])
