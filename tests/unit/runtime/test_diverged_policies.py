"""Policies that diverge on some tasks: these are left out of every question, or end the run."""

from pathlib import Path

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.config.compose import compose
from maml_dist.core.outer.optimizers import Adam
from maml_dist.core.outer.trust_region import TrustRegion
from maml_dist.core.params import flatten
from maml_dist.runs.run import Run
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard
from maml_dist.tasks.navigation import Navigation

SMALL = {"iterations": 3, "meta_batch": 3, "checkpoint_every": 2, "validation_tasks": 3}
SMALL |= {"test_steps": 2, "test_tasks": 4, "task.episodes": 3, "task.horizon": 8}
SMALL |= {"engine.running": "eager", "outer.iterations": 3}
RUN = {**SMALL, "local": True, "progress": False}


ROLL = Navigation.roll


@pytest.fixture
def wild(monkeypatch):
    """Makes the policies of chosen tasks diverge once they have adapted: `wild(which)`."""

    def choose(which):
        def roll(source, policy, tasks, *, stage):
            lost = torch.tensor([which(task.key) and stage == 1 for task in tasks])[:, None, None]
            return ROLL(
                source, lambda seen: torch.where(lost, torch.inf, policy(seen)), tasks, stage=stage
            )

        monkeypatch.setattr(Navigation, "roll", roll)

    return choose


def shard(*, slices=1, skip=True, **settings):
    """A shard of a run, its parameters, and others nearby."""
    run = Run(Path("unwritten"), compose("navigation", {**SMALL, **settings}))
    meta = flatten(run.initial).numpy()
    near = meta + 0.01 * np.sin(np.arange(len(meta), dtype=np.float32))
    spec = run.shard_spec._replace(skip=skip, slices=slices)
    return TaskShard(spec), meta, near


def asked(of, meta, near, *, slice=0):
    """What each question about iteration 0 is answered with, the gradient's first."""
    first = of.gradient(meta, 0, slice=slice)
    return (
        first,
        of.objective(meta, 0, near, slice=slice),
        of.curvature(meta, 0, near, slice=slice),
        of.gradient(meta, 0, near, slice=slice),
    )


PENALTY = {"task.policy_gradient.penalty": 0.1, "task.policy_gradient.inner_surrogate": "ratio"}


@pytest.mark.parametrize("batching", ["task", "vmap"])
def test_a_task_left_out_of_the_gradient_is_left_out_of_all_questions(wild, batching):
    settings = {"engine.batching": batching, **PENALTY}
    two, meta, near = shard(meta_batch=2, **settings)
    expected = asked(two, meta, near)  # of tasks that are fine
    wild(lambda key: key.index == 2)
    three, *_ = shard(meta_batch=3, **settings)
    found = asked(three, meta, near)
    assert found[0].skipped == (2,)
    restarted = [
        shard(meta_batch=3, **settings)[0].objective(meta, 0, near),
        shard(meta_batch=3, **settings)[0].curvature(meta, 0, near),
        shard(meta_batch=3, **settings)[0].gradient(meta, 0, near),
    ]
    for ours, theirs in zip([*found, *restarted], [*expected, *expected[1:]], strict=True):
        assert ours.tasks == theirs.tasks == 2
        np.testing.assert_allclose(ours.gradient, theirs.gradient, rtol=1e-4, atol=1e-6)
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4, abs=1e-6)
    for again, ours in zip(restarted, found[1:], strict=True):
        assert np.array_equal(again.gradient, ours.gradient) and again.metrics == ours.metrics


def test_a_slice_none_of_whose_tasks_counts_adds_nothing(wild):
    wild(lambda key: key.index == 2)
    three, meta, near = shard(slices=3)
    for rule in (TrustRegion(), Adam(epochs=2)):
        server = ParameterServer(meta, rule)
        ones, nones = asked(three, meta, near), asked(three, meta, near, slice=2)
        assert [none.tasks for none in nones] == [0] * 4
        for one, none in zip(ones, nones, strict=True):
            alone, both = server._mean((one,)), server._mean((none, one))
            assert torch.equal(alone[0], both[0])
            assert {**alone[1], "skipped/tasks": ""} == {**both[1], "skipped/tasks": ""}


def test_without_skipping_the_tasks_are_named(wild):
    wild(lambda key: key.index == 2)
    all_of_them, meta, _ = shard(skip=False)
    with pytest.raises(FloatingPointError, match=r"iteration 0 is not finite \(tasks \(2,\) of"):
        all_of_them.gradient(meta, 0)


def test_tasks_left_out_of_later_epochs_are_counted_once():
    server = ParameterServer(np.zeros(2, np.float32), Adam(beta=0.1, epochs=3))

    def part(*skipped):
        return Contribution(np.ones(2, np.float32), 3, {"loss/after": 1.0}, skipped)

    for skipped in ((4,), (2, 4), (1,)):
        server.next_request(part(*skipped))
    assert server.finish_update()[1]["skipped/tasks"] == "0:4 0:2 0:1"


def test_a_run_whose_policy_diverges_keeps_what_it_had(wild, tmp_path):
    wild(lambda key: key.split == "train" and key.it == 1 and key.index == 2)
    with pytest.raises(FloatingPointError, match=r"iteration 1 is not finite \(tasks \(2,\)"):
        maml_dist.meta_train("navigation", run=tmp_path / "run", **RUN)
    assert Run.open(tmp_path / "run").checkpoints.last.iteration == 1


@pytest.mark.parametrize("recipe", ["navigation", "navigation-promp"])
def test_or_it_goes_on_without_the_tasks_on_which_it_does(wild, tmp_path, recipe):
    wild(lambda key: key.split == "train" and key.it >= 1 and key.index == 2)
    settings = {**RUN, "engine.batching": "vmap"}
    if recipe == "navigation-promp":
        del settings["outer.iterations"]
    run = maml_dist.meta_train(recipe, run=tmp_path / "run", on_divergence="skip", **settings)
    assert [row.get("skipped/tasks") for row in run.metrics] == [None, "1:2", "2:2"]
    assert all(np.isfinite(row["return/after"]) for row in run.metrics)
    weights = run.weights("last")[0]
    assert flatten(weights).isfinite().all()
    assert not all(torch.equal(run.initial[name], value) for name, value in weights.items())


def test_held_out_tasks_on_which_it_diverges_have_no_score(wild, tmp_path):
    run = maml_dist.meta_train("navigation", run=tmp_path / "run", **{**RUN, "iterations": 1})
    wild(lambda key: key.split == "test" and key.index == 3)
    before, one, two = maml_dist.meta_test(run)["results"][0]["steps"]
    assert np.isfinite(before["mean"]) and one["mean"] is None and two["mean"] is None
