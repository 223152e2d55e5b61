"""Small searches on a real Ray."""

import csv
import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from generated import omniglot_folder

import maml_dist
from maml_dist.cli import guarded
from maml_dist.config.compose import override
from maml_dist.runs.fork import fork
from maml_dist.runs.run import Run
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
    monkeypatch.setattr(sys, "argv", ["tune", str(file), *small(*words)])
    return guarded(main)


def small(*words):
    """These words, and those that make a search small."""
    given = {word.partition("=")[0] for word in words}
    return [*(word for word in SMALL if word.partition("=")[0] not in given), *words]


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


def test_a_trial_that_diverges_is_stopped_and_named_so(tmp_path, monkeypatch, ray_here, capsys):
    (tmp_path / "mine.yaml").write_text(
        "recipe: sinusoid\nsearch: {alpha: {grid: [0.01, 1.0e+30, 3.0]}}\nscheduler: fifo\n"
    )
    folder = tmp_path / "search"
    words = ["num_samples=1", "on_divergence=skip", "--run", str(folder)]
    assert tune(monkeypatch, tmp_path / "mine.yaml", *words) == 0
    best, *others = table(folder)
    assert best["alpha"] == "0.01" and best["status"] == "finished" and best["iterations"] == "20"
    worst = next(row for row in others if row["alpha"] == "1e+30")
    assert worst["status"] == "diverged" and worst["score"] == "nan"
    assert int(worst["iterations"]) <= 10
    out, err = capsys.readouterr()
    assert "diverged" in out and "1 diverged" in err
    assert all_resources_are_free(ray_here)
    run = Run.open(folder / "trials" / best["trial"])
    assert run.finished and run.config["learner"]["init_args"]["alpha"] == 0.01


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(tmp_path, command, monkeypatch):
    """Killed, then terminated: what was begun ends with the bits of an undisturbed run."""
    (tmp_path / "mine.yaml").write_text(
        "recipe: sinusoid\n"
        "search: {alpha: {loguniform: [0.001, 0.1]}, learner.steps: {choice: [1, 2]}}\n"
        "scheduler: fifo\nalgorithm: tpe\nmax_concurrent: 1\nnum_samples: 2\n"
    )
    words = small("num_samples=2", "iterations=600", "checkpoint_every=30")
    folder = tmp_path / "search"
    search = command("tune", "mine.yaml", *words, "--run", str(folder))
    first = folder / "trials" / "0" / "metrics.jsonl"
    wait_for(lambda: first.exists() and first.read_text().count("val/mse/path") > 1, search)
    search.kill()
    search.wait()
    reached = len(first.read_text().splitlines())
    search = command("tune", "--resume", str(folder))
    wait_for(lambda: len(first.read_text().splitlines()) > reached + 2, search)
    search.send_signal(signal.SIGTERM)
    out, err = search.communicate(timeout=60)
    assert search.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    assert f"--resume {folder} goes on" in err and "interrupted" in out
    assert [row["status"] for row in table(folder)] == ["interrupted"]
    search = command("tune", "--resume", str(folder), "num_samples=2")
    out, err = search.communicate(timeout=120)
    assert search.returncode == 0 and "Traceback" not in err
    rows = table(folder)
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert {row["trial"] for row in rows} == {"0", "1"}
    for number in ("0", "1"):
        run = Run.open(folder / "trials" / number)
        kept = {"shards": 1, "slices": 1}
        there = override(run.config, kept)
        recipe = tmp_path / f"{number}.yaml"
        recipe.write_text(yaml.safe_dump(there))
        other = maml_dist.meta_train(
            recipe, run=tmp_path / f"local-{number}", local=True, progress=False
        )
        assert other.metrics[-1]["val/mse/path"] == run.metrics[-1]["val/mse/path"]
        for name, value in other.weights("last")[0].items():
            assert torch.equal(value, run.weights("last")[0][name])


def population(folder):
    """The file of a small one; its first exploit is after 10 iterations."""
    (folder / "mine.yaml").write_text(
        "recipe: sinusoid\n"
        "search: {alpha: {loguniform: [0.001, 0.1]}, outer.beta: {loguniform: [0.0001, 0.01]}}\n"
        "scheduler: pbt\nperturbation_interval: 10\n"
    )
    return folder / "mine.yaml"


def exploits(folder):
    """Those of a population, in order."""
    lines = map(json.loads, (folder / "trials.jsonl").read_text().splitlines())
    return [line["exploit"] for line in lines if "exploit" in line]


def test_a_trial_of_a_population_takes_over_another_whole(tmp_path, monkeypatch, ray_here, capsys):
    folder = tmp_path / "search"
    words = ["grace_period=1000", "finish={top: 1}", "--run", str(folder)]
    assert tune(monkeypatch, population(tmp_path), *words) == 0
    (found,) = exploits(folder)
    (takeover,) = found["takeovers"]
    source, new = str(takeover["source"]), f"{takeover['trial']}-10"
    runs = {name: Run.open(folder / "trials" / name) for name in (source, new)}
    both = [
        run.checkpoints.load(str(run.path / "checkpoints" / "00000010.safetensors"))[0]
        for run in runs.values()
    ]
    assert any(name.startswith("outer/") for name in both[0]) and both[0].keys() == both[1].keys()
    for name, value in both[0].items():
        assert torch.equal(value, both[1][name])
    # The same in this process: the other's first iterations, then its own values.
    config = override(runs[source].config, {"iterations": 10})
    (tmp_path / "source.yaml").write_text(yaml.safe_dump(config))
    before = maml_dist.meta_train(
        tmp_path / "source.yaml", run=tmp_path / "before", local=True, progress=False
    )
    after = fork(before, tmp_path / "after", takeover["values"])
    again = maml_dist.meta_train(resume=after.path, iterations=20, local=True, progress=False)
    for name, value in again.weights("last")[0].items():
        assert torch.equal(value, runs[new].weights("last")[0][name])
    assert runs[new].metrics[0]["forked/from"] == str(runs[source].path)
    rows = {row["trial"]: row for row in table(folder)}
    assert rows[str(takeover["trial"])]["lineage"] == f"{source}, {takeover['trial']} from 10"
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert "goes on from trial" in capsys.readouterr().err
    assert "mse on test after 1 steps" in (folder / "best.yaml").read_text()


@pytest.mark.slow
def test_a_population_that_is_killed_goes_the_way_of_an_undisturbed_one(tmp_path, command):
    population(tmp_path)
    words = small("num_samples=3", "iterations=150", "checkpoint_every=50", "grace_period=1000")
    words += ["perturbation_interval=50", "max_concurrent=2"]
    whole, folder = tmp_path / "whole", tmp_path / "search"
    search = command("tune", "mine.yaml", *words, "--run", str(folder))
    for exploited in (0, 1):  # in the first interval, and in the second

        def half_way(count=exploited):
            record = folder / "trials.jsonl"
            begun = record.exists() and record.read_text().count('"interval"') > 3 * count
            return begun and len(exploits(folder)) == count

        wait_for(half_way, search, seconds=240)
        search.kill()
        search.wait()
        search = command("tune", "--resume", str(folder))
    out, err = search.communicate(timeout=300)
    assert search.returncode == 0 and "Traceback" not in err
    other = command("tune", "mine.yaml", *words, "--run", str(whole))
    other.communicate(timeout=400)
    assert exploits(folder) == exploits(whole) and len(exploits(whole)) == 2
    names = sorted(path.name for path in (whole / "trials").iterdir())
    assert names == sorted(path.name for path in (folder / "trials").iterdir()) and len(names) == 5
    for name in names:
        here, there = (Run.open(each / "trials" / name) for each in (folder, whole))
        for key, value in there.weights("last")[0].items():
            assert torch.equal(value, here.weights("last")[0][key])
    best = [(each / "best.yaml").read_text().replace(str(each), "") for each in (folder, whole)]
    assert best[0] == best[1]


def wait_for(condition, process, *, seconds=90):
    """Until it holds; fails where the process ends before, or takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_the_best_are_finished_over_seeds_and_the_winner_scored_on_test(
    tmp_path, monkeypatch, ray_here, capsys
):
    (tmp_path / "mine.yaml").write_text(
        "recipe: sinusoid\n"
        "search:\n"
        "  learner: {choice: [MAML, MetaSGD]}\n"
        "  learner.alpha: {loguniform: [0.001, 0.1], when: {learner: MAML}}\n"
        "algorithm: tpe\nmetric: val/mse/1\n"
        "finish: {top: 2, seeds: 2, iterations: 30}\n"
    )
    folder = tmp_path / "search"
    assert tune(monkeypatch, tmp_path / "mine.yaml", "num_samples=4", "--run", str(folder)) == 0
    rows = table(folder)
    assert len(rows) == 4
    for row in rows:
        assert (row["learner.alpha"] == "") == (row["learner"] == "MetaSGD")
        run = Run.open(folder / "trials" / row["trial"])
        scores = [each["val/mse/1"] for each in run.metrics if "val/mse/1" in each]
        assert float(row["score"]) == min(scores)
    finished = table(folder / "finish")
    assert [row["status"] for row in finished] == ["finished"] * 4
    assert sorted(row["seed"] for row in finished) == ["1", "1", "2", "2"]
    best = (folder / "best.yaml").read_text()
    assert "(2 seeds)" in best and "mse on test after 1 steps" in best
    evaluated = [path.parent.name for path in (folder / "finish").glob("trials/*/evaluation.json")]
    assert len(evaluated) == 2
    assert yaml.safe_load(best)["iterations"] == 70000
    capsys.readouterr()
