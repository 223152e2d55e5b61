"""Where a run stands: by its folder, by its checkpoints alone, and where either is damaged."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import yaml

import maml_dist
from maml_dist.cli import guarded
from maml_dist.runs.folder import Folder
from maml_dist.runs.lock import locked
from maml_dist.runs.owner import NAME, Owner
from maml_dist.runs.run import Run
from maml_dist.runs.status import lines, status
from maml_dist.train import main

SMALL = {"iterations": 4, "checkpoint_every": 2, "log_every": 1, "meta_batch": 3, "local": True}
SMALL |= {"validation_tasks": 3, "test_tasks": 4, "test_steps": 2, "progress": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    return maml_dist.meta_train("sinusoid", run=path, **SMALL, **{"engine.running": "eager"})


@pytest.fixture
def path(trained, tmp_path):
    """A copy of the run, which a test may harm."""
    return shutil.copytree(trained.path, tmp_path / "run")


def owned(path, **changes):
    (path / NAME).write_bytes(replace(Owner.me(), **changes).content())


def extended(path):
    config = yaml.safe_load((path / "recipe.yaml").read_text())
    (path / "recipe.yaml").write_text(yaml.safe_dump({**config, "iterations": 9}))


def test_a_finished_run(path, trained):
    best = trained.checkpoints.best
    found = status(str(path))
    assert (found.state, found.recipe, found.iterations) == ("finished", "sinusoid", 4)
    assert (found.iteration, found.validated, found.row) == (4, True, 4)
    assert (found.best_iteration, found.best_score) == (best.iteration, best.score)
    assert found.metric == "val/mse/path" and found.driver is None and not found.faults
    assert 0 <= found.checkpoint_age < 1000 and found.evaluated is False
    assert lines(found)[0] == f"{path}: sinusoid, finished"
    assert lines(found)[-1].startswith("next: it is trained, not evaluated: python -m maml_dist")
    maml_dist.meta_test(Run.open(path))
    assert "iterations=N beyond 4 extends it" in lines(status(str(path)))[-1]


def test_one_that_is_trained_that_was_stopped_and_that_is_silent(path):
    extended(path)
    assert status(str(path)).state == "stopped"
    with locked(Folder(path)):
        found = status(str(path))
        assert found.state == "training" and found.driver_silence < 100
        assert f"process {os.getpid()} on" in "\n".join(lines(found))
        assert lines(found)[-1] == "next: it is being trained"
    owned(path, pid=2**22 + 1)
    assert status(str(path)).state == "stopped"
    assert "it has ended" in "\n".join(lines(status(str(path))))
    for refreshed, state in ((time.time(), "training"), (1e9, "silent"), (None, "silent")):
        owned(path, host="elsewhere", refreshed=refreshed)
        assert status(str(path)).state == state
    assert lines(status(str(path)))[-1].startswith(
        f"next: python -m maml_dist.train --resume {path}, which takes it over"
    )


def test_by_the_checkpoints_alone_as_at_a_uri(path, trained):
    place = path / "checkpoints"
    for where in (place.as_uri(), str(place)):
        found = status(where)
        assert (found.recipe, found.iterations, found.iteration) == ("sinusoid", 4, 4)
        assert found.state == "finished" and found.run == str(trained.path)


def test_before_the_first_checkpoint(path):
    shutil.rmtree(path / "checkpoints")
    (path / "metrics.jsonl").unlink()
    found = status(str(path))
    assert found.state == "stopped" and found.iteration is None and found.row is None
    assert "checkpoint: none yet" in lines(found)


def test_what_is_damaged_is_one_line_each(path):
    extended(path)
    newest = path / "checkpoints" / "00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    (path / "metrics.jsonl").write_text("{\n")
    (path / NAME).write_text("{")
    found = status(str(path))
    assert found.iteration == 4 and len(found.faults) == 3
    (path / "checkpoints" / "index.json").write_text('{"last":\n 1}')
    found = status(str(path))
    assert found.iteration is None and "checkpoint: unknown" in lines(found)
    said = [line for line in lines(found) if line.startswith("damaged: ")]
    assert len(said) == 3 and "index.json" in said[1] and "--resume makes it again" in said[1]
    (path / "checkpoints" / "index.json").unlink()
    assert "index.json is lost; 00000004.safetensors is the last" in "\n".join(
        lines(status(str(path)))
    )


def test_what_is_no_run_is_refused(tmp_path):
    for where in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="is not a run: it holds no recipe.yaml"):
            status(str(where))
    with pytest.raises(ValueError, match="holds no checkpoints"):
        status(tmp_path.as_uri())
    (tmp_path / "recipe.yaml").write_text("name: [1]\n")
    with pytest.raises(ValueError, match="recipe.yaml: name"):
        status(str(tmp_path))


def test_a_strangers_words_do_not_reach_the_terminal(path):
    stranger = {**asdict(Owner.me()), "host": "elsewhere\x1b[2J", "since": "now\n\x07"}
    (path / NAME).write_text(json.dumps(stranger))
    said = lines(status(str(path)))
    assert all(line.isprintable() for line in said) and "driver.lock: " in "\n".join(said)


def test_a_long_file_of_metrics_is_read_from_its_end(path):
    with (path / "metrics.jsonl").open("w") as file:
        file.write("no row\n" + '{"iteration": 1, "loss": 0.5}\n' * 100_000)
        file.write('{"iteration": 7, "val/mse/path": 1.0}\n{"iteration": 8}\n{"itera')
    found = status(str(path))
    assert (found.row, found.metric, found.faults) == (8, "val/mse/path", [])


def test_the_command_writes_nothing_and_needs_no_torch(path):
    before = {each: each.stat().st_mtime_ns for each in path.rglob("*")}
    code = "import sys\nfrom maml_dist.train import main\nmain(['--status', sys.argv[1], '--json'])"
    code += "\nassert 'torch' not in sys.modules"
    said = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, check=True, text=True
    ).stdout
    assert json.loads(said)["iteration"] == 4
    assert {each: each.stat().st_mtime_ns for each in path.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json"], "--json is for --status RUN"),
        (["--status", "runs/x", "sinusoid"], "give it alone"),
        (["--status", "runs/x", "--resume", "runs/x"], "give it alone"),
        (["--status", ""], "the run is empty"),
        (["--status", "gopher://x"], "gopher://x"),
    ],
)
def test_what_does_not_go_together_is_said(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["train", *words])
    assert guarded(main) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
