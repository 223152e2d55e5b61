"""A run goes on from its checkpoints alone, to the same bits."""

import shutil

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.runs.run import Run
from maml_dist.training.recorder import Recorder

SMALL = {"checkpoint_every": 2, "log_every": 1, "meta_batch": 3}
SMALL |= {"validation_tasks": 3, "test_tasks": 4, "test_steps": 2, "engine.running": "eager"}
QUIET = {"local": True, "progress": False}


def weights(run):
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()]).numpy()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Of the checkpoints of a run of four iterations."""
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "far" / "away"
    maml_dist.meta_train(
        "sinusoid", run="first", checkpoints=str(there), iterations=4, **SMALL, **QUIET
    )
    return there


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_where_its_folder_is_lost(tmp_path, place, form):
    shutil.rmtree("first")
    run = maml_dist.meta_train(resume=form.format(place), iterations=6, **QUIET)
    whole = maml_dist.meta_train("sinusoid", run="whole", iterations=6, **SMALL, **QUIET)
    assert np.array_equal(weights(run), weights(whole))
    assert run.path.parent == tmp_path / "runs"
    for ours, theirs in zip(run.metrics, whole.metrics[-2:], strict=True):
        assert ours["loss/after"] == theirs["loss/after"]
    assert maml_dist.meta_train(resume=run.path, **QUIET).finished
    assert maml_dist.meta_train(resume=place, **QUIET).path == run.path


def test_of_one_that_was_finished(tmp_path, place):
    shutil.rmtree("first")
    run = maml_dist.meta_train(resume=place, run="second", **QUIET)
    assert run.finished and Run.open("second").finished


def test_into_a_folder_of_ones_choice(tmp_path, place):
    shutil.rmtree("first")
    run = maml_dist.meta_train(resume=place, run="second", iterations=6, **QUIET)
    assert run.path == tmp_path / "second" and Run.open(run.path).checkpoints.owner == str(run.path)
    with pytest.raises(ValueError, match="second already holds a run"):
        maml_dist.meta_train(resume=place, run="second", **QUIET)


def test_in_its_folder_where_that_is_there(tmp_path, place):
    run = maml_dist.meta_train(resume=place, iterations=6, **QUIET)
    assert run.path == tmp_path / "first" and not (tmp_path / "runs").exists()


def test_not_beside_its_folder(place):
    with pytest.raises(ValueError, match="is the place of another run, .*first"):
        maml_dist.meta_train(resume=place, run="second", iterations=6, **QUIET)


def test_a_start_that_fails_leaves_nothing(tmp_path, place, monkeypatch):
    shutil.rmtree("first")

    def fail(*given):
        raise ValueError("no machine")

    monkeypatch.setattr("maml_dist.training.trainer.LocalBackend.start", fail)
    with pytest.raises(ValueError, match="no machine"):
        maml_dist.meta_train(resume=place, iterations=6, **QUIET)
    assert not any((tmp_path / "runs").glob("*"))


def test_where_there_are_none(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoints"):
        maml_dist.meta_train(resume=f"file://{tmp_path}", **QUIET)


def test_killed_in_a_validation_a_run_loses_no_number(tmp_path, monkeypatch):
    """Its checkpoint is there, and --resume begins with the validation."""
    whole = maml_dist.meta_train("sinusoid", run=tmp_path / "a", iterations=6, **SMALL, **QUIET)
    validate = Recorder._scored

    def killed(recorder, scores, iteration):
        if iteration == 4:
            raise KeyboardInterrupt
        return validate(recorder, scores, iteration)

    monkeypatch.setattr(Recorder, "_scored", killed)
    with pytest.raises(KeyboardInterrupt):
        maml_dist.meta_train("sinusoid", run=tmp_path / "b", iterations=6, **SMALL, **QUIET)
    monkeypatch.setattr(Recorder, "_scored", validate)
    run = maml_dist.meta_train(resume=tmp_path / "b", **QUIET)
    paces = ("it_per_s", "tasks_per_s")
    for ours, theirs in zip(run.metrics, whole.metrics, strict=True):
        assert {k: v for k, v in ours.items() if k not in paces} == {
            k: v for k, v in theirs.items() if k not in paces
        }
