"""Compiled by inductor, the meta-gradient is that of the eager engine."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import cross_entropy, mse_loss

from maml_dist.core.adaptation.inner_optimizers import Adam
from maml_dist.core.compile.partial_eval import PartialEval
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.learners.imaml import IMAML
from maml_dist.learners.maml import MAML
from maml_dist.learners.maml_plus_plus import MAMLPlusPlus
from maml_dist.learners.meta_sgd import MetaSGD
from maml_dist.models.mlp import MLP

TASKS = 3
SLOW = pytest.mark.slow
IT = torch.tensor(4.0)


class Regression(TaskSource):
    def sample(self, key):
        return None

    def collect(self, tasks, *, steps, adapt=None):
        raise AssertionError("not collected here")

    def loss(self, output, batch):
        return mse_loss(output, batch.y)


class Classification(Regression):
    def loss(self, output, batch):
        return cross_entropy(output, batch.y)


class Attentive(nn.Module):
    """As small as it can be, since inductor takes a second for each of its kernels."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.embed(x)
        return self.head(functional.scaled_dot_product_attention(h, h, h)[:, 0])


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def classes(n):
    return torch.arange(3).repeat(TASKS, n // 3)


def regression():
    sets = (Batch(normal(TASKS, n, 2), normal(TASKS, n, 1)) for n in (5, 7))
    return MLP(2, 1, hidden=(8,)).double(), Regression(), *sets


def words():
    sets = (Batch(torch.randint(7, (TASKS, n, 4)), classes(n)) for n in (3, 6))
    return Attentive().double(), Classification(), *sets


def images():
    sets = (Batch(normal(TASKS, n, 1, 6, 6), classes(n)) for n in (3, 6))
    block = [nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()]
    model = nn.Sequential(*block, nn.Flatten(), nn.Linear(16, 3))
    return model.double(), Classification(), *sets


@pytest.mark.parametrize(
    ("setting", "learner", "batching", "memory"),
    [
        (regression, MAML(1, 0.1), "vmap", "graph"),
        (
            regression,
            MAMLPlusPlus(5, 0.1, learned_rates=True, multi_step_iterations=10),
            "vmap",
            "steps",
        ),
        (words, MAML(1, 0.1), "vmap", "graph"),
        (images, MAML(1, 0.1), "task", "graph"),
        pytest.param(regression, MAML(2, 0.1, inner=Adam()), "vmap", "steps", marks=SLOW),
        pytest.param(regression, MetaSGD(2, 0.1, each="layer-step"), "vmap", "steps", marks=SLOW),
        pytest.param(regression, IMAML(2, 1.0, solver="hessian-free"), "vmap", "graph", marks=SLOW),
    ],
    ids=["mlp", "mlp-steps", "attention", "conv", "adam", "layer-step rates", "imaml"],
)
def test_compiled_is_eager(setting, learner, batching, memory):
    torch.manual_seed(0)
    model, source, support, query = setting()
    meta = learner.init({name: p.detach() for name, p in model.named_parameters()})
    episode = supervised(support, query, steps=learner.steps)

    def summed(running):
        engine = Engine(batching, running=running, memory=memory)
        gradient = MetaGradient(engine, learner, Objective(model, source), into=layout(meta))
        return [gradient(at, episode, IT) for at in (flatten(meta), flatten(meta) * 0.9)]

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="engine.running=compiled")
        compiled = summed("compiled")
    for ours, eager in zip(compiled, summed("eager"), strict=True):
        assert (ours.gradient - eager.gradient).norm() <= 1e-8 * eager.gradient.norm()
        assert ours.finite.tolist() == eager.finite.tolist() == [True] * TASKS
        torch.testing.assert_close(ours.metrics, eager.metrics, rtol=1e-8, atol=1e-10)


def test_what_is_prepared_and_compiled_is_eager():
    def function(tensor, a):
        held = (a @ a.T).exp()
        sliced, row = held[:, :2], held[0].expand(4, 4)  # views that are not dense
        return sliced.T @ tensor + (row * tensor)[:2] + held.T[:2]

    torch.manual_seed(0)
    a, *tensors = (normal(4, 4) for _ in range(3))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="engine.running=compiled")
        product, held = PartialEval(function, compiled=True)(a, like=a, room=1e9)
    assert held
    for tensor in tensors:
        torch.testing.assert_close(product(tensor), function(tensor, a), rtol=1e-12, atol=1e-12)
