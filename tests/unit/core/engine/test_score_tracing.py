"""A score may be anything: its numbers are those of each task, however the engine runs."""

import numpy as np
import pytest
import torch

from maml_dist.core.data.episode import map_tensors
from maml_dist.core.data.task_source import TaskKey, keys_of
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import PathScores
from maml_dist.core.engine.score_tracing import ScoreFunction
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.learners.maml import MAML
from maml_dist.models.mlp import MLP
from maml_dist.tasks.sinusoid import Sinusoid

ENGINES = [
    Engine(batching, running=running)
    for batching in ("task", "vmap")
    for running in ("eager", "traced")
]


def by_torch(output, batch):
    return {"mse": (output - batch.y).square().mean()}


def by_numpy(output, batch):
    return {"mse": float(np.mean((output.detach().cpu().numpy() - batch.y.numpy()) ** 2))}


def of_numpy(output, batch):  # a tensor again, made of what numpy computed
    return {"mse": torch.tensor(np.square(np.asarray(output) - np.asarray(batch.y)).mean())}


def by_item(output, batch):
    return {"mse": sum(x.item() ** 2 for x in (output - batch.y).flatten()) / output.numel()}


def by_lists(output, batch):
    pairs = zip(output.flatten().tolist(), batch.y.flatten().tolist(), strict=True)
    return {"mse": np.float64(np.mean([(a - b) ** 2 for a, b in pairs]))}


def by_if(output, batch):
    error = (output - batch.y).square().mean()
    if error > 4:
        return {"mse": 4 + (error - 4)}
    return {"mse": error * 1}


SCORES = [by_torch, by_numpy, of_numpy, by_item, by_lists, by_if]


def told(engine, score, steps=2, tasks=3):
    source = type("ScoreFunction", (Sinusoid,), {"score": lambda self, o, b: score(o, b)})()
    torch.manual_seed(0)
    model = MLP()
    meta = {name: p.detach() for name, p in model.named_parameters()}
    keys = [TaskKey(0, "val", 0, index) for index in range(tasks)]
    episodes = source.collect([source.sample(key) for key in keys], steps=steps)
    episodes = episodes._replace(key=keys_of(keys))
    paths = PathScores(engine, MAML(alpha=0.05), Objective(model, source), into=layout(meta))
    twice = [paths(flatten(meta) * share, episodes, torch.tensor(0.0))["mse"] for share in (1, 1.5)]
    return torch.stack(twice), map_tensors(lambda tensor: tensor, episodes)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda each: f"{each.batching}-{each.running}")
@pytest.mark.parametrize("score", SCORES)
def test_every_task_step_and_validation_has_its_own_score(engine, score):
    ours, _ = told(engine, score)
    expected, _ = told(Engine("task", running="eager"), by_torch)
    assert len(set(expected.flatten().tolist())) == expected.numel()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_what_the_engine_follows_is_not_computed_task_by_task():
    calls = []

    def score(output, y):
        calls.append(0)
        return {"mse": (output - y).square().mean()}

    scored = ScoreFunction(Engine("vmap", running="traced"), score)
    many = torch.randn(5, 4)
    for _ in range(3):
        torch.testing.assert_close(scored(many, many + 2)["mse"], torch.full((5,), 4.0))
    assert len(calls) == 1 and not scored.as_written


def test_a_score_is_followed_or_not_once_for_all():
    calls = []

    def score(output, y):
        calls.append(0)
        return {"mse": float(np.mean((output - y).numpy() ** 2))}

    scored = ScoreFunction(Engine("vmap", running="traced"), score)
    many = torch.randn(5, 4)
    for _ in range(3):
        torch.testing.assert_close(scored(many, many + 2)["mse"], torch.full((5,), 4.0))
    assert len(calls) == 1 + 3 * 5 and scored.as_written


def test_what_a_score_raises_itself_is_raised():
    scored = ScoreFunction(Engine("vmap", running="traced"), lambda output: {"mse": output.nowhere})
    with pytest.raises(AttributeError, match="nowhere"):
        scored(torch.zeros(2, 3))
