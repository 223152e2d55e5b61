"""Sparse parameters over Ray: the bits of this process, whoever owns the rows."""

import numpy as np
import pytest

import maml_dist

pytestmark = pytest.mark.ray

RECIPE = {"task.items": 50, "model.rows": 50, "outer.beta": 0.01, "outer.weight_decay": 0.1}
RECIPE |= {"iterations": 30, "checkpoint_every": 10, "log_every": 10, "meta_batch": 4, "slices": 3}
RECIPE |= {"validation_tasks": 5, "test_steps": 2, "test_tasks": 10, "engine.running": "eager"}
SMALL = {**RECIPE, "progress": False}


def weights(run):
    return {name: value.numpy() for name, value in run.weights("last")[0].items()}


def same(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run in this process."""
    folder = tmp_path_factory.mktemp("local")
    return maml_dist.meta_train("ratings", run=folder / "run", local=True, **SMALL)


@pytest.mark.parametrize(
    "mode",
    [
        {"server": "spread", "shards": 2},
        {"server": "split", "servers": 3, "shards": 2},
        pytest.param({"server": "spread", "shards": 1}, marks=pytest.mark.slow),
        pytest.param({"server": "split", "servers": 1, "shards": 3}, marks=pytest.mark.slow),
    ],
)
def test_whoever_owns_the_rows_the_bits_are_the_same(tmp_path, ray_here, local, mode):
    run = maml_dist.meta_train("ratings", run=tmp_path / "run", **mode, **SMALL)
    same(weights(run), weights(local))
    mine, theirs = ([row["val/mse"] for row in each.metrics] for each in (run, local))
    assert mine == theirs and len(mine) == 3


def test_a_shard_that_is_killed_with_its_rows_changes_no_bit(tmp_path, ray_here, local, groups):
    def kill_a_shard(row):
        if row["iteration"] == 20:
            ray_here.kill(groups[0].shards[0].actor)

    run = maml_dist.meta_train(
        "ratings", run=tmp_path / "run", shards=2, on_validation=kill_a_shard, **SMALL
    )
    same(weights(run), weights(local))


def test_a_run_goes_on_in_this_process(tmp_path, ray_here, local):
    run = maml_dist.meta_train(
        "ratings", run=tmp_path / "run", shards=2, **{**SMALL, "iterations": 17}
    )
    run = maml_dist.meta_train(resume=run.path, iterations=30, local=True, progress=False)
    same(weights(run), weights(local))
