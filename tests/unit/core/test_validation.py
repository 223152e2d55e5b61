"""Every number of a recipe has its bounds, under its key."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from maml_dist.config.experiment import Experiment
from maml_dist.core.adaptation import inner_optimizers
from maml_dist.core.engine import engine
from maml_dist.core.outer import optimizers, schedules, trust_region
from maml_dist.core.rl import baseline, policy_gradient
from maml_dist.core.validation import check_layers, check_minimum, check_range, check_size
from maml_dist.learners import evolution, imaml, maml, maml_plus_plus, meta_sgd, reptile
from maml_dist.models.categorical_policy import CategoricalPolicy
from maml_dist.models.conv4 import Conv4
from maml_dist.models.gaussian_policy import GaussianPolicy
from maml_dist.models.mlp import MLP
from maml_dist.tasks import grid, knapsack, navigation, records, sinusoid
from maml_dist.tasks.mujoco import ant, half_cheetah
from maml_dist.tuning.search_space import Search

NOT = (float("nan"), float("inf"), -float("inf"), 10**400, -1, "3", True, [1], None)
CLASSES = (
    *(sinusoid.Sinusoid, knapsack.Knapsack, grid.Grid, navigation.Navigation, ant.Ant),
    *(half_cheetah.HalfCheetah, maml.MAML, meta_sgd.MetaSGD, maml_plus_plus.MAMLPlusPlus),
    *(
        reptile.Reptile,
        imaml.IMAML,
        evolution.ESMAML,
        optimizers.Adam,
        optimizers.SGD,
        inner_optimizers.Adam,
    ),
    *(trust_region.TrustRegion, inner_optimizers.Momentum, baseline.Linear),
    *(schedules.Constant, policy_gradient.PolicyGradient, engine.Engine),
)
REQUIRED = {
    records.Records: {"path": "x", "features": ("a",), "target": "y"},
    schedules.Linear: {"until": 10},
    schedules.Cosine: {"until": 10},
    Search: {"recipe": "sinusoid", "search": {"alpha": {"uniform": [0.1, 1.0]}}},
    Experiment: {"task": SimpleNamespace(), "model": None, "learner": None, "outer": None},
}
EVERY = {**{kind: {} for kind in CLASSES}, **REQUIRED}
NUMBERS = [
    (kind, item.name)
    for kind in EVERY
    for item in dataclasses.fields(kind)
    if item.type in (int, float, int | None, float | None)
]


@pytest.mark.parametrize(
    ("kind", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part)
)
def test_no_number_of_a_class_is_without_bounds(kind, name):
    defaults = {item.name: item.default for item in dataclasses.fields(kind)}
    for value in NOT:
        if value == -1 and name == "cost" or (value is None and defaults[name] is None):
            continue  # a reward has any sign
        with pytest.raises(ValueError, match=name):
            kind(**{**EVERY[kind], name: value})


@dataclasses.dataclass(frozen=True)
class Owner:
    steps: int = 1
    rate: float = 0.5
    chunk: int | None = None
    seed: int = 0


def test_messages_say_what_is_allowed():
    for given, bounds, said in (
        ({"steps": 0}, {"steps": 1}, "own.steps=0: must be 1 or more$"),
        ({"steps": 2**31}, {"steps": 1}, "own.steps=2147483648: must be 1 … 2147483647$"),
        ({"chunk": 0}, {"chunk": 1}, "own.chunk=0: must be 1 or more, or null$"),
        ({"seed": 2**64}, {"seed": 0}, "own.seed=18446744073709551616: must be 0 … "),
        ({"rate": float("nan")}, {"rate": 0}, "own.rate=nan: must be 0 or more"),
        ({"steps": "3"}, {"steps": 1}, "own.steps='3': must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=said):
            check_minimum(Owner(**given), "own", **bounds)
    with pytest.raises(ValueError, match="^rate=2.0: must be 0 … 1$"):
        check_range(Owner(rate=2.0), "", rate=(0, 1))
    check_minimum(
        Owner(steps=np.int64(3), rate=np.float32(1), seed=2**64 - 1), "own", steps=1, seed=0
    )
    with pytest.raises(
        ValueError, match="own.steps=7, own.rate=0.5: a task would hold 300,000,000"
    ):
        check_size(Owner(steps=7), "own", "steps", "rate", numbers=300_000_000)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MLP(hidden=[0]), r"model.hidden=\[0\]: each must be 1 or more"),
        (lambda: MLP(hidden=[-1]), "model.hidden"),
        (lambda: MLP(hidden=[2.0]), "model.hidden"),
        (lambda: MLP(hidden=[True]), "model.hidden"),
        (lambda: MLP(outputs=0), "model.outputs=0: must be 1 or more"),
        (lambda: MLP(hidden=[100_000, 100_000]), "10,000,200,000 weights; at most"),
        (lambda: Conv4(filters=0), "model.filters=0"),
        (lambda: Conv4(filters=100_000), "weights; at most 1,073,741,824"),
        (lambda: Conv4(size=8, downsample="pool"), "model.size=8: must be 16 or more"),
        (lambda: GaussianPolicy(hidden=[10**10]), "model.hidden"),
        (lambda: GaussianPolicy(log_std=float("nan")), "model.log_std=nan"),
        (lambda: CategoricalPolicy(action_dim=0), "model.action_dim=0"),
        (lambda: sinusoid.Sinusoid(query=10**11), "task.query=100000000000"),
        (lambda: sinusoid.Sinusoid(query=10**9), "a task would hold 4,000,000,040 numbers"),
        (lambda: grid.Grid(size=1000, episodes=100, horizon=100), "a task would hold"),
    ],
)
def test_what_no_memory_holds_and_what_is_no_width(make, said):
    with pytest.raises(ValueError, match=said):
        make()
    check_layers("model", inputs=1, hidden=(), outputs=1)
