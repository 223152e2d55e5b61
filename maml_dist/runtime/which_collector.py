"""Which collector a shard's slices have, by the learner, the source and the parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.engine.policy_terms import PolicyTerms
from maml_dist.core.engine.with_rows import BySize, RowsVector
from maml_dist.core.model.objective import Objective
from maml_dist.runtime.collectors import (
    Collector,
    OnPolicyCollector,
    Placement,
    Slice,
    SupervisedCollector,
)
from maml_dist.runtime.messages import ShardSpec
from maml_dist.runtime.rollout_worker import Returns, Roll, RolloutWorker
from maml_dist.runtime.sparse_collector import SparseCollector
from maml_dist.runtime.zeroth_order import ZerothOrderCollector


def which_collector(
    spec: ShardSpec,
    placement: Placement,
    engine: Engine,
    objective: Objective,
    terms: PolicyTerms,
    *,
    roll: Roll | None,
    returns: Returns | None,
) -> Callable[[int], Collector]:
    """What makes the collector of a slice; all slices share its traces.

    `roll` and `returns` act in the environments; without, the shard does it itself.
    """
    made = engine, spec.learner, objective
    gradient: Any = MetaGradient(*made, into=spec.layout)
    make: Callable[..., Collector]
    if spec.tables:
        vector = RowsVector(spec.layout, spec.tables, learned=spec.learned)
        gradient = BySize(lambda into: MetaGradient(*made, into=into), vector)
        scores: Any = BySize(lambda into: PathScores(*made, into=into), vector)
        make = partial(SparseCollector, vector=vector, objective=objective, scores=scores)
    elif not spec.source.on_policy:
        make = partial(SupervisedCollector, scores=PathScores(*made, into=spec.layout))
    else:
        alone = RolloutWorker(spec.source, spec.model, max_parallel_envs=spec.max_parallel_envs)
        roll, returns = roll or alone.here, returns or alone.returns
        if spec.learner.zeroth_order:
            kept = objective.kept
            make = partial(ZerothOrderCollector, roll=roll, returns=returns, kept=kept)
        else:
            make = partial(OnPolicyCollector, terms=terms, roll=roll)
    return lambda number: make(spec, Slice(number, spec.slices), placement, gradient)
