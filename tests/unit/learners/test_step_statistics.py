"""Batch norm's running statistics for each step: rows 0 … K beside the meta-parameters."""

from itertools import product

import pytest
import torch
from torch import nn

from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.model.objective import Objective, running_statistics
from maml_dist.core.params import flatten, layout, unflatten
from maml_dist.learners.maml_plus_plus import MAMLPlusPlus
from maml_dist.tasks.sinusoid import Sinusoid

TASKS, STEPS = 3, 2
IT = torch.tensor(0.0)


def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    learner = MAMLPlusPlus(steps=STEPS, alpha=0.1, step_statistics=True)
    params = {name: p.detach() for name, p in model.named_parameters()}
    kept = running_statistics(model)
    rows = {name: value.expand(STEPS + 1, *value.shape).clone() for name, value in kept.items()}
    support, query = (
        Batch(torch.randn(TASKS, n, 1).double(), torch.randn(TASKS, n, 1).double()) for n in (5, 7)
    )
    return model, learner, {**params, **rows}, supervised(support, query, steps=STEPS)


def hidden(params, x):
    return x @ params["0.weight"].T + params["0.bias"]


@pytest.mark.parametrize(
    ("batching", "memory", "running"),
    [
        *product(["task", "vmap"], ["graph", "steps"], ["eager"]),
        ("task", "steps", "traced"),
        ("vmap", "graph", "traced"),
        pytest.param("task", "graph", "traced", marks=pytest.mark.slow),
        pytest.param("vmap", "steps", "traced", marks=pytest.mark.slow),
    ],
)
def test_each_row_follows_the_queries_after_its_step(batching, memory, running):
    model, learner, meta, episodes = setting()
    engine = Engine(batching, memory=memory, running=running, precision="float64")
    objective = Objective(model, Sinusoid())
    summed = MetaGradient(engine, learner, objective, into=layout(meta))
    new = unflatten(summed(flatten(meta), episodes, IT).gradient, layout(meta))
    mean, var = torch.zeros(STEPS + 1, 4).double(), torch.zeros(STEPS + 1, 4).double()
    for task in range(TASKS):
        support = Batch(episodes.support[0].x[task], episodes.support[0].y[task])
        start = {name: value for name, value in meta.items() if "running" not in name}
        path = learner.path(objective.loss, start, (support,) * STEPS, IT)
        for k, phi in enumerate(path):
            seen = hidden(phi, episodes.query.x[task])
            mean[k] += 0.1 * seen.mean(0)
            var[k] += 0.9 + 0.1 * seen.var(0)
    torch.testing.assert_close(new["1.running_mean"], mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(new["1.running_var"], var, rtol=1e-10, atol=1e-12)


def test_a_prediction_after_k_steps_is_normalised_by_row_k():
    model, learner, meta, episodes = setting()
    meta["1.running_mean"] = torch.arange(12).reshape(3, 4).double()
    engine = Engine("vmap", running="eager", precision="float64")
    scores = PathScores(engine, learner, Objective(model, Sinusoid()), into=layout(meta))
    mse = scores(flatten(meta), episodes, IT, mode="running")["mse"]
    support, query = (
        Batch(batch.x[0], batch.y[0]) for batch in (episodes.support[0], episodes.query)
    )
    start = {name: value for name, value in meta.items() if "running" not in name}
    objective = Objective(model, Sinusoid())
    for k, phi in enumerate(learner.path(objective.loss, start, (support,) * STEPS, IT)):
        normal = (hidden(phi, query.x) - meta["1.running_mean"][k]) / (1 + 1e-5) ** 0.5
        normal = torch.tanh(normal * phi["1.weight"] + phi["1.bias"])
        output = normal @ phi["3.weight"].T + phi["3.bias"]
        torch.testing.assert_close(mse[0, k], ((output - query.y) ** 2).mean())
