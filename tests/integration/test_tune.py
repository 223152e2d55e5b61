"""Small searches on a real Ray."""

import csv
import sys
import time
from pathlib import Path

import pytest
import yaml
from generated import omniglot_folder

import maml_dist
from maml_dist.cli import guarded
from maml_dist.tasks.images.omniglot import convert
from maml_dist.tune import main

pytestmark = pytest.mark.ray

CONFIGS = sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml"))
SMALL = ["iterations=20", "checkpoint_every=10", "num_samples=2", "meta_batch=4", "grace_period=10"]
SMALL += ["validation_tasks=4", "test_tasks=4", "engine.running=eager", "test_steps=1"]


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    convert(omniglot_folder(folder / "images", characters=30), folder / "omniglot.arrow")
    return folder / "omniglot.arrow"


def tune(monkeypatch, file, *words):
    monkeypatch.setattr(sys, "argv", ["tune", str(file), *SMALL, *words])
    return guarded(main)


def table(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def all_resources_are_free(ray):
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem == "sinusoid" else pytest.mark.slow)
        for path in CONFIGS
    ],
)
def test_every_search_runs(tmp_path, monkeypatch, ray_here, omniglot, file):
    words = [f"path={omniglot}", "filters=4"] if "omniglot" in file.stem else []
    assert tune(monkeypatch, file, *words, "--run", str(tmp_path / "search")) == 0
    rows = table(tmp_path / "search")
    assert len(rows) == 2
    assert all(row["status"] in ("finished", "stopped") for row in rows)
    recipe = tmp_path / "search" / "best.yaml"
    best = yaml.safe_load(recipe.read_text())
    for key in ("alpha", "steps"):
        assert str(best["learner"]["init_args"][key]) == rows[0][f"learner.{key}"]
    small = {"iterations": 2, "validation_tasks": 2, "meta_batch": 2, "engine.running": "eager"}
    run = maml_dist.meta_train(recipe, run=tmp_path / "run", local=True, progress=False, **small)
    assert run.finished


def test_a_trial_that_diverges_is_a_row(tmp_path, monkeypatch, ray_here, capsys):
    (tmp_path / "mine.yaml").write_text(
        "recipe: sinusoid\nsearch: {alpha: {choice: [0.01, 1.0e+30]}}\nscheduler: fifo\n"
    )
    folder = tmp_path / "search"
    # The draws of this seed differ.
    assert tune(monkeypatch, tmp_path / "mine.yaml", "seed=1", "--run", str(folder)) == 0
    best, worst = table(folder)
    assert best["alpha"] == "0.01" and best["status"] == "finished" and best["iterations"] == "20"
    assert worst["alpha"] == "1e+30" and worst["status"] == "failed"
    assert "FloatingPointError: the meta-gradient of iteration 0 is not finite" in worst["error"]
    assert worst["error"] in capsys.readouterr().out
    assert all_resources_are_free(ray_here)
    with (folder / "tune" / best["trial"] / "run" / "recipe.yaml").open() as file:
        assert yaml.safe_load(file)["learner"]["init_args"]["alpha"] == 0.01
