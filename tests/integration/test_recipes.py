"""Every recipe starts, trains, evaluates and reports, on generated data in the official layout."""

from itertools import product

import pytest
from generated import fill_data_home

import maml_dist
from maml_dist.config.recipe import recipes
from maml_dist.reporting.page import report

SMALL = {"iterations": 2, "checkpoint_every": 2, "log_every": 1, "meta_batch": 2, "local": True}
SMALL |= {"validation_tasks": 2, "test_tasks": 2, "test_steps": 1, "progress": False}
EAGER = {"engine.running": "eager"}  # the traces take longer than the iterations
LIVED = ("navigation", "half-cheetah", "ant", "grid")
SEEDS = range(5)
PRECISIONS = ("float32", "float64", "bfloat16")
SAMPLE = {  # of all recipes, seeds and precisions
    ("omniglot-20way-1shot", 0, "float32"),
    *(("mini-imagenet-5way-1shot", 3, "bfloat16"), ("sinusoid", 4, "float64")),
    *(("navigation", 2, "float64"), ("ant-velocity", 0, "bfloat16")),
}
QUICK = {  # one of each kind: all others are slow
    *("sinusoid-oracle", "sinusoid-imaml", "omniglot-5way-5shot-mlp", "mini-imagenet-5way-1shot"),
    "ratings",
    *("knapsack-es", "navigation-promp", "grid", "half-cheetah-direction", "ant-velocity-oracle"),
}


@pytest.fixture(scope="module")
def data_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    fill_data_home(home)
    return home


def small(recipe):
    """What makes a recipe quick."""
    settings = dict(SMALL)
    if recipe.startswith(LIVED):
        settings |= {"task.episodes": 2, "task.horizon": 3}
    elif not recipe.startswith("sinusoid"):
        settings |= {"query": 1}
    if recipe.startswith(("mini", "omniglot")) and not recipe.endswith("mlp"):
        settings |= {"filters": 4}
    return settings


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in recipes()],
)
def test_every_recipe_runs(tmp_path, monkeypatch, data_home, recipe):
    monkeypatch.setenv("MAML_DIST_DATA", str(data_home))
    run = maml_dist.meta_train(recipe, run=tmp_path / recipe, **small(recipe), **EAGER)
    modes = [result["mode"] for result in maml_dist.meta_test(run)["results"]]
    batch_norm = not recipe.startswith((*LIVED, "sinusoid", "knapsack", "ratings"))
    assert modes == (["transductive", "inductive"] if batch_norm else ["default"])


def combinations():
    """Every recipe with every seed and precision; all but a sample are slow."""
    return [
        pytest.param(*each, marks=[] if each in SAMPLE else pytest.mark.slow)
        for each in product(recipes(), SEEDS, PRECISIONS)
    ]


@pytest.mark.parametrize(("recipe", "seed", "precision"), combinations())
def test_every_recipe_from_start_to_report(
    tmp_path, monkeypatch, data_home, recipe, seed, precision
):
    monkeypatch.setenv("MAML_DIST_DATA", str(data_home))
    settings = small(recipe) | {"seed": seed, "engine.precision": precision}
    if precision != "float32" and seed:
        settings |= EAGER
    folder = tmp_path / "run"
    if recipe.startswith(LIVED) and precision == "bfloat16":
        with pytest.raises(ValueError, match="engine.precision=bfloat16: rollouts act in float32"):
            maml_dist.meta_train(recipe, run=folder, **settings)
        return
    run = maml_dist.meta_train(recipe, run=folder, **settings)
    maml_dist.meta_test(run)
    assert report(run).exists()
    assert maml_dist.load(run.path) is not None
