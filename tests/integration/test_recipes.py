"""Every recipe runs, on generated data in the official layout."""

import pytest
from generated import fill_data_home

import maml_dist
from maml_dist.recipe import recipes

SMALL = {"iterations": 2, "checkpoint_every": 2, "log_every": 1, "meta_batch": 2, "local": True}
SMALL |= {"validation_tasks": 2, "test_tasks": 2, "test_steps": 1, "progress": False}
SMALL |= {"engine.running": "eager"}  # the traces take longer than the iterations


@pytest.fixture(scope="module")
def data_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    fill_data_home(home)
    return home


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_runs(tmp_path, monkeypatch, data_home, recipe):
    monkeypatch.setenv("MAML_DIST_DATA", str(data_home))
    small = dict(SMALL)
    lived = recipe.startswith(("navigation", "half-cheetah", "ant", "grid"))
    if lived:
        small |= {"task.episodes": 2, "task.horizon": 3}
    elif not recipe.startswith("sinusoid"):
        small |= {"query": 1}
    if recipe.startswith(("mini", "omniglot")) and not recipe.endswith("mlp"):
        small |= {"filters": 4}
    run = maml_dist.meta_train(recipe, run=tmp_path / recipe, **small)
    modes = [result["mode"] for result in run.evaluate()["results"]]
    batch_norm = not (lived or recipe.startswith(("sinusoid", "knapsack")))
    assert modes == (["transductive", "inductive"] if batch_norm else ["default"])
