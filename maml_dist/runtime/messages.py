"""What passes between a run and its shards: the work that they are given, what they contribute."""

from typing import NamedTuple

import numpy as np
from torch import nn

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.engine.engine import Engine
from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.params import Layout
from maml_dist.core.tables import Table

# Of each table the ids of some rows, ascending [u], and these [u, dim].
RowValues = dict[str, tuple[np.ndarray, np.ndarray]]


class Contribution(NamedTuple):
    """What a slice gives to one meta-update: sums over its tasks."""

    gradient: np.ndarray  # [size], summed; for what is kept (running statistics) its new values
    tasks: int  # that were summed
    metrics: dict[str, float]  # summed
    skipped: tuple[int, ...] = ()  # tasks left out: their loss or gradient is not finite
    warnings: tuple[str, ...] = ()  # of the engine, for the user
    rows: RowValues = {}  # of the tables' rows that the slice has touched: summed gradients


class ShardSpec(NamedTuple):
    """What every shard of a run is given."""

    source: TaskSource
    model: nn.Module
    learner: Learner
    engine: Engine
    layout: Layout
    seed: int
    meta_batch: int
    learned: int  # elements of the vector that are meta-learned; the rest is kept
    skip: bool = False  # leave a task that is not finite out, instead of stopping
    max_parallel_envs: int | None = None  # that are simulated at once at the most; null: all
    slices: int = 1  # that a meta-batch is cut into: of them bits depend, on who computes them not
    tables: tuple[Table, ...] = ()  # parameters that stand in no vector; the model has them empty
    labels: dict[str, str] = {}  # of the metrics that Ray is told; none: it is told nothing


class Start(NamedTuple):
    """What a run's actors start from."""

    shard: ShardSpec
    meta: np.ndarray  # [size]
    outer: OuterOptimizer
    modules: object = None  # the user's own; they are unpickled before the rest
    title: str = ""  # of the recipe, for the dashboard
    multi_round: bool = False  # whether an update asks the tasks back
    tables: dict[str, np.ndarray] = {}  # the values of each [rows, dim]
