"""Knapsack: the discrete solution, its bound, and that no gradient exists."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.func import functionalize, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.data.episode import Batch
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.model.objective import Objective
from maml_dist.learners.maml import MAML
from maml_dist.models.mlp import MLP
from maml_dist.tasks.knapsack import Knapsack

SOURCE = Knapsack(items=8, attributes=3, shots=2, query=3)


def keys(count=4):
    return [TaskKey(0, "train", 0, index) for index in range(count)]


def episodes(source=SOURCE, count=4):
    return source.collect([source.sample(key) for key in keys(count)], steps=1)


def first(source=SOURCE):
    """The query set of the first task, and its value and weight [instance, items]."""
    query = episodes(source).query
    task = source.sample(keys()[0])
    value = task.weight * np.exp(task.attributes @ task.taste)
    shape = (-1, source.items)
    value, weight = (part.reshape(shape)[source.shots :] for part in (value, task.weight))
    return Batch(query.x[0].double(), query.y[0].double()), value, weight


def packed_by_hand(scores, value, weight, capacity):
    room, total = capacity * sum(weight), 0.0
    for item in sorted(range(len(scores)), key=lambda item: -scores[item]):
        if weight[item] > room:
            break
        room -= weight[item]
        total += value[item]
    return total


def bound_by_hand(value, weight, capacity):
    """Linear programming: all vertices have at most one item that is cut."""
    room, best = capacity * sum(weight), 0.0
    items = range(len(value))
    for size in range(len(value) + 1):
        for some in combinations(items, size):
            left = room - sum(weight[item] for item in some)
            if left < -1e-12:
                continue
            rest = [item for item in items if item not in some]
            cut = max((min(1, left / weight[i]) * value[i] for i in rest), default=0.0)
            best = max(best, sum(value[item] for item in some) + cut)
    return best


@pytest.mark.parametrize("capacity", [0.1, 0.3, 0.8])
def test_the_loss_is_the_greedy_solution_s_share_of_the_bound(capacity):
    source = Knapsack(items=8, attributes=3, shots=2, query=3, capacity=capacity)
    batch, value, weight = first(source)
    output = torch.randn(24, 1, generator=torch.Generator().manual_seed(0)).double()
    shares = [
        packed_by_hand(scores, v, w, capacity) / bound_by_hand(v, w, capacity)
        for scores, v, w in zip(output.reshape(3, 8).numpy(), value, weight, strict=True)
    ]
    assert float(source.loss(output, batch)) == pytest.approx(-np.mean(shares), rel=1e-6)
    assert float(source.score(output, batch)["value"]) == -float(source.loss(output, batch))


def test_no_gradient_exists():
    # Not for the scores, not through inner steps of MAML: nothing there could be learned from.
    batch, *_ = first()
    output = torch.randn(24, 1, generator=torch.Generator().manual_seed(0)).double()
    assert not grad(lambda scores: SOURCE.loss(scores, batch))(output).any()
    model = MLP(4, 1, hidden=(6,)).double()
    meta = {name: p.detach() for name, p in model.named_parameters()}
    objective = Objective(model, SOURCE)
    learner = MAML(alpha=0.1, steps=2)
    episode = episodes()._replace(support=(batch, batch), query=batch)
    gradient, _ = learner.gradient(
        objective.loss, objective.query_loss, meta, episode, torch.tensor(0.0)
    )
    assert not any(value.any() for value in gradient.values())


def test_the_loss_is_constant_until_the_order_changes():
    batch, *_ = first()
    output = torch.arange(24.0).reshape(24, 1).double()
    assert SOURCE.loss(output, batch) == SOURCE.loss(3 * output + 0.2 * output.sin(), batch)
    assert SOURCE.loss(output, batch) != SOURCE.loss(-output, batch)


def test_a_policy_that_knows_the_taste_is_better_than_one_that_knows_the_mean():
    source = Knapsack()
    stacked = source.collect([source.sample(key) for key in keys(200)], steps=1).query
    ratio = (stacked.y[..., 0] / stacked.y[..., 1]).unsqueeze(-1)
    mean = stacked.x[..., :-1].sum(-1, keepdim=True)
    none = torch.zeros_like(mean)
    knows, guesses, blind = (
        vmap(lambda out, x, y: source.loss(out, Batch(x, y)))(out, stacked.x, stacked.y).mean()
        for out in (ratio, mean, none)
    )
    assert knows < -0.93 and knows + 0.25 < guesses < blind - 0.2


def test_values_follow_the_task_s_hidden_taste():
    task = SOURCE.sample(keys()[0])
    episode = SOURCE.collect([task], steps=2)
    assert len(episode.support) == 2
    x = torch.cat([episode.support[0].x, episode.query.x], 1)[0].double()
    y = torch.cat([episode.support[0].y, episode.query.y], 1)[0].double()
    assert x.shape == (40, 4) and y.shape == (40, 2)
    torch.testing.assert_close(x[:, -1], y[:, 1])
    logs = (y[:, 0] / y[:, 1]).log()
    instance = torch.eye(5).double().repeat_interleave(8, 0)  # each has a bound of its own
    solution = torch.linalg.lstsq(torch.cat([x[:, :-1], instance], 1), logs[:, None]).solution
    np.testing.assert_allclose(solution[:3, 0], task.taste, rtol=1e-5)


def test_a_task_is_a_pure_function_of_its_key():
    here, there = (SOURCE.sample(key) for key in (keys()[1], keys(2)[1]))
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))
    assert not np.array_equal(SOURCE.sample(keys()[2]).taste, here.taste)


def test_stacked_and_traced_losses_are_those_of_each_task():
    query = episodes().query
    outputs = torch.randn(4, 24, 1, generator=torch.Generator().manual_seed(1))

    def stacked(outputs, x, y):
        return vmap(lambda output, x, y: SOURCE.loss(output, Batch(x, y)))(outputs, x, y)

    alone = torch.stack([SOURCE.loss(outputs[i], Batch(query.x[i], query.y[i])) for i in range(4)])
    traced = make_fx(functionalize(stacked))(-outputs, query.x, query.y)
    torch.testing.assert_close(stacked(outputs, *query[:2]), alone)
    torch.testing.assert_close(traced(outputs, *query[:2]), alone)


@pytest.mark.parametrize(
    "bad", [{"items": 0}, {"attributes": 0}, {"shots": 0}, {"query": 0}, {"capacity": 1.5}]
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"task.{next(iter(bad))}="):
        Knapsack(**bad)
