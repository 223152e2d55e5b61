import math
from dataclasses import replace

import pytest
import torch
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.adaptation.inner_optimizers import Adam
from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.model.objective import Objective
from maml_dist.core.random import keys
from maml_dist.learners.evolution import ESMAML
from maml_dist.models.mlp import MLP
from maml_dist.tasks.knapsack import Knapsack
from maml_dist.tasks.sinusoid import Sinusoid

IT = torch.tensor(0.0)
WHOLE = ESMAML(steps=2, num_perturbations=2, num_inner_perturbations=3)


def knapsack(tasks=6, hidden=(6,)):
    source = Knapsack(items=8, attributes=3, shots=6, query=6)
    model = MLP(4, 1, hidden=hidden).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        meta = {name: 0.5 * torch.randn_like(p) for name, p in model.named_parameters()}
    drawn = [source.sample(TaskKey(0, "train", 0, index)) for index in range(tasks)]
    stacked = source.collect(drawn, steps=1)
    data = [
        tensor.double() for batch in (stacked.support[0], stacked.query) for tensor in batch[:2]
    ]
    return Objective(model, source).loss, meta, (*data, keys(0, "train", 0, range(tasks)))


def episode_of(data, steps):
    return Episode((Batch(*data[:2]),) * steps, Batch(*data[2:4]), data[4])


def test_hill_climbing_is_never_worse_on_the_support_set():
    judge, meta, data = knapsack(tasks=20)
    learner = ESMAML(adaptation="hill-climb", steps=5, inner_sigma=0.3)
    better = 0
    for task in zip(*data, strict=True):
        batches = episode_of(task, 5).support
        path = learner.path(judge, meta, batches, IT, task[4])
        losses = [float(judge(phi, batches[0])) for phi in path]
        assert losses == sorted(losses, reverse=True)
        better += losses[-1] < losses[0]
    assert better > 15


SMALL = {"num_perturbations": 2, "num_inner_perturbations": 2}
TRACED = {
    "adam": ESMAML(steps=2, **SMALL, inner=Adam()),
    "hill-climb, chunks": ESMAML(steps=1, **SMALL, adaptation="hill-climb", chunk=3),
    "one by one": ESMAML(steps=0, **SMALL, chunk=1),
}


@pytest.mark.parametrize("kind", TRACED)
def test_one_trace_over_all_tasks_is_every_task_alone(kind):
    judge, meta, data = knapsack(tasks=2, hidden=())
    learner, names = TRACED[kind], list(meta)

    def one(it, values, *data):
        episode = episode_of(data, learner.steps)
        return learner.gradient(judge, judge, dict(zip(names, values, strict=True)), episode, it)

    many = vmap(one, in_dims=(None, None, 0, 0, 0, 0, 0))
    values = list(meta.values())
    other = [-value for value in values], *(part.flip(0) for part in data)
    traced = make_fx(functionalize(many))(IT, *other)
    stacked = many(IT, values, *data)
    torch.testing.assert_close(traced(IT, values, *data), stacked, rtol=1e-10, atol=1e-12)
    for row, task in enumerate(zip(*data, strict=True)):
        gradient, metrics = one(IT, values, *task)
        assert any(value.any() for value in gradient.values())
        for ours, theirs in ((gradient, stacked[0]), (metrics, stacked[1])):
            expected = {name: value[row] for name, value in theirs.items()}
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adapted", [("*",), ("head.*",)])
def test_torch_s_own_losses_are_vmapped_over_tasks_candidates_and_inner_candidates(adapted):
    model, source = MLP(1, 1, hidden=(3,)).double(), Sinusoid(shots=4, query=4)
    meta = {name: p.detach() for name, p in model.named_parameters()}
    drawn = [source.sample(TaskKey(0, "train", 0, index)) for index in range(3)]
    episodes = source.collect(drawn, steps=2)
    data = [tensor.double() for tensor in (*episodes.support[0][:2], *episodes.query[:2])]
    data = (*data, keys(0, "train", 0, range(3)))
    judge = Objective(model, source).loss  # mse_loss
    learner = replace(WHOLE, adapted=adapted)

    def one(*data):
        return learner.gradient(judge, judge, meta, episode_of(data, 2), IT)[0]

    stacked = vmap(one)(*data)
    for row, task in enumerate(zip(*data, strict=True)):
        expected = {name: value[row] for name, value in stacked.items()}
        torch.testing.assert_close(one(*task), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adaptation", ["es", "hill-climb"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_in_chunks_it_is_the_same(chunk, adaptation):
    judge, meta, data = knapsack(tasks=1)
    episode = episode_of([tensor[0] for tensor in data], 2)
    learner = replace(WHOLE, adaptation=adaptation)
    whole, chunks = (
        each.gradient(judge, judge, meta, episode, IT)[0]
        for each in (learner, replace(learner, chunk=chunk))
    )
    torch.testing.assert_close(chunks, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adaptation", ["es", "hill-climb"])
def test_one_by_one_a_loss_may_read_what_it_computes(adaptation):
    judge, meta, data = knapsack(tasks=1)
    episode = episode_of([tensor[0] for tensor in data], 2)
    learner = replace(WHOLE, adaptation=adaptation)

    def reads(params, batch):
        return torch.tensor(judge(params, batch).item(), dtype=torch.float64)

    expected, _ = learner.gradient(judge, judge, meta, episode, IT)
    singly, _ = replace(learner, chunk=1).gradient(reads, reads, meta, episode, IT)
    torch.testing.assert_close(singly, expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(RuntimeError, match="item"):
        replace(learner, chunk=2).gradient(reads, reads, meta, episode, IT)


@pytest.mark.parametrize("adaptation", ["es", "hill-climb"])
def test_it_adapts_where_no_gradient_exists(adaptation):
    judge, meta, data = knapsack(tasks=60)
    learner = ESMAML(alpha=0.5, steps=5, inner_sigma=0.2, adaptation=adaptation)

    def gains(*task):
        episode = episode_of(task, 5)
        phi = learner.adapt(judge, meta, episode.support, IT, episode.key)
        return judge(meta, episode.query) - judge(phi, episode.query)

    gained = vmap(gains)(*data)
    assert gained.mean() > 3 * gained.std() / math.sqrt(60)
