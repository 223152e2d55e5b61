"""The command before it starts Ray, and the recipe that it ends with."""

import sys
from pathlib import Path

import pytest

from maml_dist.cli import guarded
from maml_dist.config.compose import compose, override
from maml_dist.tune import main
from maml_dist.tuning.search_space import Search, read
from maml_dist.tuning.tried import tried
from maml_dist.tuning.tuner import parted, resume

CONFIGS = sorted((Path(__file__).parents[3] / "tune_configs").glob("*.yaml"))


def test_the_best_recipe_trains_as_long_as_the_recipe_says():
    overrides = {"iterations": 5, "checkpoint_every": 1, "shots": 3, "shards": 2, "seed": 4}
    base, budget = parted(Search("sinusoid", {"alpha": {"choice": [0.5]}}, overrides=overrides))
    assert base == compose("sinusoid", {"shots": 3, "shards": 2, "seed": 4})
    assert base["iterations"] == 70000 and budget == {"iterations": 5, "checkpoint_every": 1}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_search_names_its_recipe_and_the_rates(config):
    plan = read(config)
    assert plan.recipe == config.stem and "learner.alpha" in plan.search
    assert {"outer.beta", "outer.bound"} & set(plan.search)
    base, budget = parted(plan)
    for drawn in tried(plan):  # each is a recipe
        assert override(base, budget | drawn)["iterations"] == budget["iterations"]


@pytest.mark.parametrize(
    ("recipe", "search", "words", "said"),
    [
        ("sinusoid", "alhpa: {choice: [1]}", "", "'alhpa'; did you mean 'alpha'?"),
        ("sinusoid", "alpha: {uniform: [-1, 1]}", "", "learner.alpha=-1.0: must be a positive"),
        ("sinusoid", "steps: {choice: [1, x]}", "", "learner.steps: Expected a int"),
        ("sinusoid", "steps: {uniform: [1, 5]}", "", "learner.steps: Expected a int"),
        ("sinusoid", "alpha: {normal: [0.1, 0.1]}", "", "learner.alpha=-0.2"),
        ("sinusoid", "steps: {choice: [1]}", "metric=val/mze", "did you mean 'val/mse'?"),
        ("sinusoid", "steps: {choice: [1]}", "iterationz=3", "did you mean 'iterations'?"),
        ("sinusoid", "steps: {choice: [1]}", "iterations=0", "iterations=0"),
        ("sinusoid", "steps: {choice: [1]}", "--run mine.yaml", "mine.yaml is not a folder"),
        ("sinusoid", "steps: {choice: [1]}", "--run .", "already holds a search"),
        ("sinusoid", "steps: {choice: [1]}", "gpus_per_shard=99", "need 99 GPUs"),
        ("sinusoid", "steps: {choice: [1]}", "--address 127.0.0.1:1", "no Ray cluster at"),
        ("sinusoidd", "steps: {choice: [1]}", "", "did you mean 'sinusoid'?"),
        ("omniglot-5way-1shot", "steps: {choice: [1]}", "", "maml_dist.data omniglot"),
        ("!!python/name:os.system", "steps: {choice: [1]}", "", "not a plain YAML file"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    tmp_path, monkeypatch, capsys, recipe, search, words, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAML_DIST_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "tune").mkdir()
    (tmp_path / "mine.yaml").write_text(f"recipe: {recipe}\nsearch:\n  {search}\n")
    monkeypatch.setattr(sys, "argv", ["tune", "mine.yaml", *words.split()])
    assert guarded(main) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "tune"]


@pytest.mark.parametrize("linked", ["trials", "trials/3", "tune", "finish/trials/1", "study.db"])
def test_a_search_in_which_a_link_leads_elsewhere_is_not_gone_on_with(tmp_path, linked):
    link, mine = tmp_path / "search" / linked, tmp_path / "mine"
    mine.mkdir()
    link.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "search" / "search.yaml").write_text("recipe: sinusoid\n")
    link.symlink_to(mine)
    with pytest.raises(ValueError, match=f"{link} is a link to {mine}") as caught:
        resume(tmp_path / "search", {})
    assert "\n" not in str(caught.value) and not [*mine.iterdir()]
