"""Runs of 0.1.0, in its words and paths: they open, and go on to the same numbers.

Made by it, trained with `--local` (sinusoid-reptile and navigation, both tiny); `resumed.json` is
its evaluation after going on for `MORE` meta-iterations.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import maml_dist
from maml_dist.reporting.page import report
from maml_dist.runs.run import Run

RUNS = Path(__file__).parents[2] / "data" / "run-0.1.0"
MORE = {"sinusoid": 6, "navigation": 3}


@pytest.fixture(params=MORE)
def old(request, tmp_path):
    """A copy of a run, which is not where it was made."""
    return Path(shutil.copytree(RUNS / request.param, tmp_path / request.param))


def scores(path: Path):
    steps = json.loads(path.read_text())["results"][0]["steps"]
    return [value for step in steps for value in step.values()]


def test_it_says_what_it_was_trained_with_in_the_words_of_today(old):
    assert "maml_dist.core." in (old / "recipe.yaml").read_text()
    config = Run.open(old).config
    assert "maml_dist" not in json.dumps(config) and "ahead" not in config
    assert config["outer"]["class_path"] in ("SGD", "TrustRegion")
    assert config["slices"] == config["shards"]  # each shard had one


def test_its_model_is_loaded_and_adapts(old):
    model = maml_dist.load(old, checkpoint="last")
    stored = Run.open(old).weights("last")[0]
    for name, value in model.named_parameters():
        assert torch.equal(value, stored[name])
    if old.name == "sinusoid":
        x = torch.linspace(-3, 3, 5)[:, None]
        adapted = model.adapt(x, x.sin(), steps=2)
        assert not torch.equal(adapted(x), model(x))


def test_it_is_evaluated_to_the_same_numbers(old):
    before = scores(old / "evaluation.json")
    (old / "evaluation.json").unlink()
    maml_dist.meta_test(Run.open(old))
    assert scores(old / "evaluation.json") == pytest.approx(before, rel=1e-5)


def test_it_goes_on_to_the_same_numbers_and_is_drawn(old):
    last = Run.open(old).checkpoints.last.iteration
    run = maml_dist.meta_train(resume=old, iterations=MORE[old.name], local=True, progress=False)
    assert run.checkpoints.last.iteration == MORE[old.name] > last
    maml_dist.meta_test(run)
    assert scores(old / "evaluation.json") == pytest.approx(scores(old / "resumed.json"), rel=1e-4)
    report(run)
    assert (old / "report.html").exists()
    assert "maml_dist.core." not in (old / "recipe.yaml").read_text()
