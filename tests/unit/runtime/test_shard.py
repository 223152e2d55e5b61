import numpy as np
import pytest
import torch

from maml_dist.core.data.episode import map_tensors
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.engine.engine import Engine
from maml_dist.core.outer.optimizers import Adam
from maml_dist.core.params import flatten, layout
from maml_dist.learners.maml import MAML
from maml_dist.models.mlp import MLP
from maml_dist.runtime.messages import ShardSpec
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard
from maml_dist.tasks.sinusoid import Sinusoid


def setting(source=None, meta_batch=6, alpha=0.01):
    torch.manual_seed(0)
    model = MLP(1, 1, hidden=(8, 8)).double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    learner = MAML(alpha=alpha, steps=1)
    size = sum(value.numel() for value in params.values())
    engine = Engine(running="eager", precision="float64")
    spec = ShardSpec(
        source or Sinusoid(), model, learner, engine, layout(params), 3, meta_batch, size
    )
    return spec, flatten(params).numpy()


def sliced(slices: int, **options) -> tuple[TaskShard, np.ndarray]:
    """A shard of a run whose meta-batches are cut into so many slices, and its parameters."""
    spec, meta = setting(**options)
    return TaskShard(spec._replace(slices=slices)), meta


def after(slices: int, iterations: int, *, shards: int = 1) -> np.ndarray:
    spec, meta = setting()
    actors = [TaskShard(spec._replace(slices=slices)) for _ in range(shards)]
    server = ParameterServer(meta, Adam(beta=0.01))
    for it in range(iterations):
        parts = [actors[n % shards].gradient(meta, it, slice=n) for n in range(slices)]
        meta, _ = server.update(*parts)
    return meta


@pytest.mark.parametrize("slices", [2, 4])
def test_any_number_of_slices_gives_the_same_weights_to_rounding(slices):
    np.testing.assert_allclose(after(slices, 5), after(1, 5), rtol=1e-8)


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_any_number_of_shards_gives_the_same_bits(shards):
    assert np.array_equal(after(5, 5, shards=shards), after(5, 5, shards=5))


def test_shards_that_come_and_go_change_no_bit():
    spec, meta = setting()
    actors = [TaskShard(spec._replace(slices=5)) for _ in range(5)]
    server = ParameterServer(meta, Adam(beta=0.01))
    for it, shards in enumerate((1, 3, 5, 2, 1)):
        parts = [actors[n % shards].gradient(meta, it, slice=n) for n in range(5)]
        meta, _ = server.update(*parts)
    assert np.array_equal(meta, after(5, 5))


def test_a_shard_forgets_the_slices_that_others_have_now():
    shard, meta = sliced(3)
    first = [shard.gradient(meta, 0, slice=number) for number in range(3)]
    for it in (1, 2):
        shard.gradient(meta, it, slice=1)
    assert set(shard._collectors) == {1}
    again = [shard.gradient(meta, 0, slice=number) for number in range(3)]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.gradient, other.gradient)


def test_the_slices_hold_every_task_once():
    shard, meta = sliced(4)
    parts = [shard.gradient(meta, 0, slice=number) for number in range(4)]
    assert [part.tasks for part in parts] == [2, 2, 1, 1]


def test_a_restarted_shard_gives_the_same_bits():
    old, meta = sliced(2)
    for it in range(3):
        before = old.gradient(meta, it, slice=1)
    after = sliced(2)[0].gradient(meta, 2, slice=1)
    assert np.array_equal(before.gradient, after.gradient)


def test_scores_of_a_slice_are_those_of_the_whole():
    spec, meta = setting()
    whole = TaskShard(spec).scores(meta, 0, split="val", tasks=5, steps=3)["mse"]
    assert whole.shape == (5, 4)
    ask = {"split": "val", "tasks": 5, "steps": 3}
    part = sliced(2)[0].scores(meta, 0, **ask, slice=1)["mse"]
    np.testing.assert_allclose(part, whole[1::2], rtol=1e-10)
    assert sliced(4)[0].scores(meta, 0, **{**ask, "tasks": 2}, slice=3) == {}


def test_without_steps_there_is_still_an_inductive_score():
    spec, _ = setting()
    model = MLP(1, 1, hidden=(8,), batch_norm=True).double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    shard = TaskShard(spec._replace(model=model, layout=layout(params)))
    meta = flatten(params).numpy()
    ask = {"split": "test", "tasks": 3, "mode": "inductive"}
    none, two = (shard.scores(meta, 0, steps=steps, **ask)["mse"] for steps in (0, 2))
    assert none.shape == (3, 1)
    assert np.array_equal(none[:, 0], two[:, 0])


def test_scores_are_those_of_a_hand_written_loop():
    spec, meta = setting()
    scores = TaskShard(spec).scores(meta, 0, split="test", tasks=2, steps=2)
    model = spec.model
    task = spec.source.sample(TaskKey(3, "test", 0, 1))
    episode = map_tensors(torch.Tensor.double, spec.source.collect([task], steps=1))
    (x, y, *_), query = episode.support[0], episode.query
    for _ in range(2):
        loss = ((model(x[0]) - y[0]) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.01 * g
    by_hand = ((model(query.x[0]) - query.y[0]) ** 2).mean().item()
    assert scores["mse"][1, 2] == pytest.approx(by_hand, rel=1e-10)


class Poisoned(Sinusoid):
    """Task 4 of every meta-batch is not a number."""

    def collect(self, tasks, *, steps, adapt=None):
        episodes = super().collect(tasks, steps=steps)
        episodes.query.y[[wave.key.index == 4 for wave in tasks]] = float("nan")
        return episodes


def test_the_task_that_is_not_finite_is_named():
    spec, meta = setting(Poisoned())
    with pytest.raises(FloatingPointError, match=r"iteration 0 is not finite \(tasks \(4,\)"):
        TaskShard(spec._replace(slices=2)).gradient(meta, 0)


def test_or_it_is_left_out_and_counted():
    spec, meta = setting(Poisoned())
    shard = TaskShard(spec._replace(skip=True, slices=2))
    parts = [shard.gradient(meta, 0, slice=number) for number in (0, 1)]
    assert [part.tasks for part in parts] == [2, 3]
    assert [part.skipped for part in parts] == [(4,), ()]
    fine = sliced(2, meta_batch=4)[0].gradient(meta, 0)
    np.testing.assert_allclose(parts[0].gradient, fine.gradient, rtol=1e-12)
    assert parts[0].metrics == pytest.approx(fine.metrics, rel=1e-12)
    _, metrics = ParameterServer(meta, Adam()).update(*parts)
    assert metrics["skipped/tasks"] == "0:4"


def test_where_all_tasks_are_left_out_nothing_is_learned():
    spec, meta = setting(Poisoned())
    part = TaskShard(spec._replace(skip=True, slices=5)).gradient(meta, 0, slice=4)
    after, metrics = ParameterServer(meta, Adam()).update(part)
    assert part.tasks == 0 and np.array_equal(after, meta)
    assert np.isnan(metrics["loss/after"]) and metrics["skipped/tasks"] == "0:4"


def test_blocks_of_iterations_are_those_of_a_resumed_run():
    spec, meta = setting()
    shard = TaskShard(spec)
    for it in range(20):
        before = shard.gradient(meta, it)
    assert np.array_equal(TaskShard(spec).gradient(meta, 19).gradient, before[0])


def test_the_server_takes_the_mean_over_tasks_and_can_be_restored():
    spec, meta = setting()
    shard = TaskShard(spec._replace(slices=2))
    parts = [shard.gradient(meta, 0, slice=number) for number in range(2)]
    server = ParameterServer(meta, Adam(beta=0.01))
    _, metrics = server.update(*parts)
    total = sum(part.metrics["loss/after"] for part in parts)
    assert metrics["loss/after"] == pytest.approx(total / 6)
    saved = server.state()
    expected, _ = server.update(*parts)
    other = ParameterServer(np.zeros_like(meta), Adam(beta=0.01))
    other.restore(saved)
    assert np.array_equal(other.update(*parts)[0], expected)
