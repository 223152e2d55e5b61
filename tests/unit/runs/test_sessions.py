"""When and by what a run was trained."""

import os
import time

import pytest
import torch

import maml_dist
from maml_dist.runs.sessions import NAME, session, sessions

SMALL = {
    "iterations": 2, "validation_tasks": 2, "test_tasks": 2, "meta_batch": 2,
    "engine.running": "eager",
}  # fmt: skip


def test_each_session_is_a_line(tmp_path):
    run = maml_dist.meta_train(
        "sinusoid", run=tmp_path / "run", local=True, progress=False, **SMALL
    )
    maml_dist.meta_train(resume=run.path, iterations=3, local=True, progress=False)
    first, second = sessions(run.path)
    assert first.began <= second.began <= time.strftime("%Y-%m-%d %H:%M:%S")
    assert first.versions["torch"] == torch.__version__ and first.cores == os.cpu_count()
    assert 0 < first.seconds < 60


def test_one_that_fails_is_a_line_too(tmp_path):
    with pytest.raises(KeyError), session(tmp_path):
        raise KeyError
    assert len(sessions(tmp_path)) == 1


def test_what_is_no_line_or_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / NAME).write_text("no\n{}\n")
    with session(tmp_path):
        pass
    assert len(sessions(tmp_path)) == 1
    with session(tmp_path / "none"):
        pass
    assert sessions(tmp_path / "none") == []


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("")
    (tmp_path / NAME).symlink_to(tmp_path / "other")
    with session(tmp_path):
        pass
    assert (tmp_path / "other").read_text() == ""


def test_a_run_is_shown_in_a_line(tmp_path):
    run = maml_dist.meta_train(
        "sinusoid", run=tmp_path / "run", local=True, progress=False, **SMALL
    )
    assert repr(run) == f"<Run {run.path}: sinusoid, 2 of 2 iterations>"
    shown = run._repr_html_()
    assert "sinusoid, 2 of 2 iterations" in shown and "val/mse/path" in shown
    assert f"{run.metrics[-1]['val/mse/path']:.4g}" in shown
