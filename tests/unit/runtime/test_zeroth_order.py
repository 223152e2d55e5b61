"""Evolution over rollouts in a shard: against a loop that rolls out one candidate at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.engine.engine import Engine
from maml_dist.core.params import flatten, layout, unflatten
from maml_dist.core.random import fold, keys, normal
from maml_dist.learners.evolution import ESMAML
from maml_dist.models.categorical_policy import CategoricalPolicy
from maml_dist.models.gaussian_policy import GaussianPolicy
from maml_dist.runtime.collectors import Placement
from maml_dist.runtime.messages import ShardSpec
from maml_dist.runtime.rollout_worker import RolloutWorker
from maml_dist.runtime.shard import TaskShard
from maml_dist.tasks.grid import Grid
from maml_dist.tasks.navigation import Navigation

LEARNER = ESMAML(
    alpha=0.2, steps=1, sigma=0.3, inner_sigma=0.4, num_perturbations=2, num_inner_perturbations=3
)


def setting(learner=LEARNER, **more):
    source = Grid(episodes=3, horizon=8)
    torch.manual_seed(0)
    model = CategoricalPolicy(25, 5, hidden=(4,)).double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    engine = Engine(running="eager", precision="float64")
    meta = flatten(params)
    spec = ShardSpec(source, model, learner, engine, layout(params), 5, 4, len(meta))
    return spec._replace(**more), meta.numpy()


def loss(spec, task, vector, stage):
    """Minus the mean return of one policy in one task, rolled out alone."""
    params = {name: p.float() for name, p in unflatten(vector, spec.layout).items()}
    rolled = spec.source.roll(
        lambda seen: functional_call(spec.model, params, (seen,)), [task], stage=stage
    )
    return -rolled.rewards[0].double().sum() / spec.source.episodes


def drawn(key, count, size):
    return normal(fold(key, 1 << 30), (count, size), dtype=torch.float64)


def adapted(spec, task, key, start, stage):
    around = 0.4 * drawn(fold(key, 2 * stage), 3, len(start))
    slope = sum(
        (loss(spec, task, start + o, stage) - loss(spec, task, start - o, stage)) * o
        for o in around
    )
    return start - 0.2 * slope / (2 * 3 * 0.4**2)


def test_the_summed_estimate_is_a_loop_that_lives_every_candidate_alone():
    spec, meta = setting()
    found = TaskShard(spec).gradient(meta, 3)
    center, total, after = torch.from_numpy(meta), 0.0, 0.0
    for index, key in enumerate(keys(5, "train", 3, range(4))):
        task = spec.source.sample(TaskKey(5, "train", 3, index))
        for offset in 0.3 * drawn(key, 2, len(meta)):
            up, down = (
                loss(spec, task, adapted(spec, task, key, center + sign * offset, 0), 1)
                for sign in (1, -1)
            )
            total = total + (up - down) * offset / (2 * 2 * 0.3**2)
        after += float(loss(spec, task, adapted(spec, task, key, center, 0), 1))
    assert total.any()
    np.testing.assert_allclose(found.gradient, total.numpy(), rtol=1e-8, atol=1e-10)
    assert found.metrics["loss/after"] == pytest.approx(after, rel=1e-6)
    assert found.metrics["return/after"] == pytest.approx(-after, rel=1e-6)


def test_three_slices_give_the_sum_of_one():
    spec, meta = setting()
    whole = TaskShard(spec).gradient(meta, 0)
    shard = TaskShard(spec._replace(slices=3))
    parts = [shard.gradient(meta, 0, slice=number) for number in range(3)]
    summed = sum(part.gradient for part in parts)
    np.testing.assert_allclose(summed, whole.gradient, rtol=1e-10, atol=1e-12)
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name] for part in parts) == pytest.approx(value, rel=1e-6)


def test_a_restarted_shard_with_few_environments_gives_the_same_bits(monkeypatch):
    spec, meta = setting()
    shard = TaskShard(spec)
    shard.gradient(meta, 0)
    before = shard.gradient(meta, 1)
    monkeypatch.setattr("maml_dist.runtime.zeroth_order.GATHERED", 7 * len(meta))
    after = TaskShard(spec._replace(max_parallel_envs=6)).gradient(meta, 1)
    assert np.array_equal(before.gradient, after.gradient) and before.metrics == after.metrics


def test_scores_are_those_of_policies_that_adapt_by_hand():
    spec, meta = setting(replace(LEARNER, steps=2))
    shard = TaskShard(spec._replace(slices=2))
    scores = shard.scores(meta, 9, split="test", tasks=4, steps=2, slice=1)
    assert {"return", "steps", "entropy", "explained"} <= set(scores)
    for row, index in enumerate((1, 3)):
        task = spec.source.sample(TaskKey(5, "test", 0, index))
        key, phi = keys(5, "test", 0, [index])[0], torch.from_numpy(meta)
        for stage in range(3):
            expected = -float(loss(spec, task, phi, stage))
            assert scores["return"][row, stage] == pytest.approx(expected, rel=1e-5)
            phi = adapted(spec, task, key, phi, stage)


def test_all_steps_lived_are_counted():
    spec, meta = setting(source=Navigation(episodes=2, horizon=5))
    model = GaussianPolicy(2, 2, hidden=(4,)).double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    meta = flatten(params)
    spec = spec._replace(model=model, layout=layout(params), learned=len(meta))
    shard = TaskShard(spec)
    steps = shard.scores(meta.numpy(), 0, split="val", tasks=2, steps=2)["steps"]
    assert steps.tolist() == [[10, 10 * (2 + 6), 10 * (3 + 12)]] * 2  # none reaches its goal
    # A task: five candidates that try six, the four that are judged, and meta twice.
    assert shard.gradient(meta.numpy(), 0).metrics["steps/after"] == 4 * 10 * (5 * 6 + 4 + 2)


def test_what_was_lived_is_summed_where_the_losses_are(monkeypatch):
    """On a GPU these are elsewhere than the environments: all is put on the shard's device."""
    spec, meta = setting()
    shard, moved = TaskShard(spec), []
    move = Placement._moved

    def noted(placement, value):
        moved.append(value.clone())
        return move(placement, value)

    monkeypatch.setattr(Placement, "_moved", noted)
    sums = shard.gradient(meta, 0).metrics
    lived = {name: value for name, value in sums.items() if not name.startswith("loss/")}
    there = [float(value.double().sum()) for value in moved if value.shape == (4,)]
    assert lived and sorted(there) == pytest.approx(sorted(lived.values()), rel=1e-6)


@pytest.mark.parametrize("hidden", [(), (9,)])
@pytest.mark.parametrize("episodes", [1, 4])
@pytest.mark.parametrize("counts", [(1, 10), (4, 4, 3)])
def test_the_returns_of_candidates_do_not_depend_on_their_number_to_the_bit(
    hidden, episodes, counts
):
    source, model = Navigation(episodes=episodes, horizon=20), GaussianPolicy(2, 2, hidden=hidden)
    tasks = [source.sample(TaskKey(0, "train", 0, index % 3)) for index in range(11)]
    weights = {
        name: np.random.default_rng(0).normal(size=(11, *p.shape)).astype(np.float32)
        for name, p in model.named_parameters()
    }
    whole = RolloutWorker(source, model).returns(weights, tasks, stage=1)
    parts, start = [], 0
    for count in counts:
        some = slice(start, start + count)
        own = {name: value[some] for name, value in weights.items()}
        parts.append(RolloutWorker(source, model).returns(own, tasks[some], stage=1))
        start += count
    assert np.array_equal(np.concatenate(parts, 1), whole) and len(np.unique(whole[0])) == 11
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    worker = RolloutWorker(source, model)
    rolled = worker.here(tensors, tasks, stage=1)
    np.testing.assert_allclose(whole[0], rolled.rewards.sum(2).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(whole[1], rolled.mask.sum((1, 2)))
    assert worker.steps == whole[1].sum() > 0  # those of all episodes, once


def test_a_policy_that_walks_to_where_its_bias_says_finds_the_goal():
    source, model = Navigation(episodes=1), GaussianPolicy(2, 2, hidden=(), log_std=-3.0)
    with torch.no_grad():
        model.mean[0].weight.copy_(-5 * torch.eye(2))  # rests at bias / 5
    params = {name: p.detach() for name, p in model.named_parameters()}
    learner = ESMAML(
        alpha=0.15, inner_sigma=2.0, num_inner_perturbations=10, adapted=("mean.0.bias",)
    )
    meta, into = flatten(params).numpy(), layout(params)
    spec = ShardSpec(source, model, learner, Engine(running="eager"), into, 0, 1, len(meta))
    found = TaskShard(spec).scores(meta, 0, split="test", tasks=16, steps=3)
    goals = [source.sample(TaskKey(0, "test", 0, index)).value for index in range(16)]
    away = np.linalg.norm(goals, axis=1)
    np.testing.assert_allclose(found["return"][:, 0], -100 * away, rtol=0.1)  # stays at the start
    means = found["return"].mean(0)
    assert (means[1:] > means[:-1]).all() and means[3] > 0.2 * means[0]
