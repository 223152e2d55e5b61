"""Every learner, trained by its recipe: shards, kills and resuming change nothing."""

import numpy as np
import pytest

import maml_dist
from maml_dist.runs.run import Run
from maml_dist.runtime.server import ParameterServer

LEARNERS = {
    "sinusoid": {},
    "sinusoid-first-order": {},
    "sinusoid-anil": {},
    "sinusoid-meta-sgd": {},
    "sinusoid-layer-rates": {"steps": 2},
    "sinusoid-maml-plus-plus": {"steps": 2},
    "sinusoid-reptile": {"steps": 3},
    "sinusoid-imaml": {"steps": 2},
    "sinusoid-es": {"num_perturbations": 4, "num_inner_perturbations": 4},
    "navigation-es": {
        **{"num_perturbations": 4, "num_inner_perturbations": 4},
        **{"task.episodes": 1, "task.horizon": 5},
    },
    "knapsack-es": {"num_perturbations": 4, "num_inner_perturbations": 4},
}
SMALL = {"iterations": 5, "checkpoint_every": 5, "meta_batch": 6, "local": True, "progress": False}
SMALL |= {"validation_tasks": 2, "test_steps": 1, "model.hidden": [6], "engine.running": "eager"}


# One with parameters of its own, one without a meta-gradient, one by scores of episodes.
QUICK = ("sinusoid-maml-plus-plus", "sinusoid-reptile", "navigation-es")


def recipes(*quick):
    """All recipes; all but these are slow."""
    return [
        pytest.param(recipe, marks=[] if recipe in quick else pytest.mark.slow)
        for recipe in LEARNERS
    ]


def weights(run: Run) -> np.ndarray:
    """Those that training goes on from."""
    saved = run.saved()
    return saved[1] if saved else np.array(())


@pytest.mark.parametrize("recipe", recipes("sinusoid", *QUICK))
def test_one_shard_and_four_agree(tmp_path, recipe):
    small = {**SMALL, **LEARNERS[recipe], "engine.precision": "float64"}
    one, four = (
        weights(maml_dist.meta_train(recipe, run=tmp_path / str(n), shards=n, **small))
        for n in (1, 4)
    )
    assert one.dtype == np.float64
    np.testing.assert_allclose(four, one, rtol=1e-8, atol=1e-12)


class Killed(Exception):
    pass


@pytest.mark.parametrize("recipe", recipes(*QUICK))
def test_killed_and_resumed_is_undisturbed(tmp_path, monkeypatch, recipe):
    """Killed one update after a checkpoint."""
    small = {**SMALL, **LEARNERS[recipe], "checkpoint_every": 3, "pipeline_depth": 1}
    whole = maml_dist.meta_train(recipe, run=tmp_path / "whole", **small)
    update = ParameterServer.update

    def dies(self, *parts):
        if self.state()[0] == 4:
            raise Killed
        return update(self, *parts)

    with monkeypatch.context() as deadly, pytest.raises(Killed):
        deadly.setattr(ParameterServer, "update", dies)
        maml_dist.meta_train(recipe, run=tmp_path / "parts", **small)
    assert Run.open(tmp_path / "parts").checkpoints.last.iteration == 3
    parts = maml_dist.meta_train(resume=tmp_path / "parts", local=True, progress=False)
    assert np.array_equal(weights(parts), weights(whole))


@pytest.mark.ray
@pytest.mark.parametrize("recipe", recipes("sinusoid"))
def test_ray_and_this_process_give_the_same_bits(tmp_path, ray_here, recipe):
    small = {**SMALL, **LEARNERS[recipe], "shards": 2, "iterations": 3}
    if recipe == "sinusoid":
        small |= {"engine.running": "traced"}
    here = maml_dist.meta_train(recipe, run=tmp_path / "here", **small)
    on_ray = maml_dist.meta_train(recipe, run=tmp_path / "ray", **{**small, "local": False})
    assert np.array_equal(weights(on_ray), weights(here))
