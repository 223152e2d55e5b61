"""The meta-parameters of an experiment before its first iteration."""

from functools import cached_property

import numpy as np

from maml_dist.config.experiment import Experiment
from maml_dist.config.sparse import refuse_learned_alike, tables_of
from maml_dist.core.model.objective import running_statistics
from maml_dist.core.params import Layout, Params, flatten, layout, real_of
from maml_dist.core.tables import Table


class MetaParameters:
    """What is meta-learned, and behind it the running statistics, which are kept."""

    def __init__(self, learned: Params, statistics: Params, tables: tuple[Table, ...] = ()) -> None:
        """`tables`: those of what is learned that stand in no vector."""
        self.values = {**learned, **statistics}
        self.tables, apart = tables, {table.name for table in tables}
        # Elements of the vector.
        self.learned = sum(v.numel() for name, v in learned.items() if name not in apart)

    @cached_property
    def layout(self) -> Layout:
        """How the flat vector splits into named tensors."""
        return layout(self.in_vector(self.values))

    def in_vector(self, values: Params) -> Params:
        """Those of the values that stand in the vector."""
        apart = {table.name for table in self.tables}
        return {name: value for name, value in values.items() if name not in apart}

    def vector(self, values: Params) -> np.ndarray:
        """The vector [size] of the values; where all are tables, of their precision."""
        dtype = values[self.tables[0].name].dtype if self.tables else None
        return flatten(self.in_vector(values), dtype=dtype).numpy()

    def taken_from(self, loaded: Params, *, name: str) -> Params:
        """The values of another run, in these precisions; `name` says which run.

        Raises:
            ValueError: its parameters are others.
        """
        for key in {**self.values, **loaded}:
            sides = (loaded, self.values)
            there, here = (list(side[key].shape) if key in side else None for side in sides)
            if here != there:
                raise ValueError(f"{name}: {key} is {there} there, {here} here")
        return {key: loaded[key].to(value.dtype) for key, value in self.values.items()}


def meta_parameters(experiment: Experiment) -> MetaParameters:
    """The model's parameters that require a gradient, what the learner adds, and statistics.

    Raises:
        ValueError: there is nothing to learn, or there are no statistics that a learner keeps, or
            what is to be sparse cannot be.
    """
    learner, model = experiment.learner, experiment.model
    statistics = running_statistics(model)
    if learner.per_step_statistics and not statistics:
        raise ValueError(
            "learner.step_statistics=true: no batch norm of the model keeps running statistics "
            "(model.running_statistics=true, where the model has it)"
        )
    named = model.named_parameters()
    own = {name: real_of(p.detach()) for name, p in named if p.requires_grad}  # frozen: not
    if not own:
        raise ValueError("the model has no parameter that requires a gradient")
    rows = (learner.steps + 1,) if learner.per_step_statistics else ()
    tables = tables_of(experiment)
    refuse_learned_alike(tables, own, learner)
    return MetaParameters(
        learner.init(own),
        {name: value.expand((*rows, *value.shape)).clone() for name, value in statistics.items()},
        tables,
    )
