"""The place of a run is full, read-only or gone while it trains: the same bits, and no row lost."""

import errno
import json
import os
import shutil
import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.runs import folder, growing_file, lock, run_writer, writer
from maml_dist.runs.folder import Folder
from maml_dist.runs.owner import NAME, Owner
from maml_dist.runs.run import Run
from maml_dist.runtime.local_backend import LocalBackend

SMALL = {"iterations": 6, "checkpoint_every": 2, "log_every": 1, "meta_batch": 3, "local": True}
SMALL |= {"validation_tasks": 3, "test_tasks": 4, "test_steps": 2, "progress": False}
SMALL |= {"engine.running": "eager", "pipeline_depth": 1}
PACES = ("it_per_s", "tasks_per_s")


def weights(run):
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()]).numpy()


def rows(run):
    return [{n: v for n, v in row.items() if n not in PACES} for row in run.metrics]


def scores(run):
    return {entry.iteration: entry.score for entry in run.checkpoints.entries}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    made = tmp_path_factory.mktemp("run") / "undisturbed"
    return maml_dist.meta_train("sinusoid", run=made, **SMALL)


class Disk:
    """A disk that refuses, with one of the system's words."""

    def __init__(self, monkeypatch):
        self.word: int | None = None
        self.part = ""  # of the paths that it refuses
        for module, name in ((folder.os, "replace"), (growing_file.os, "pwrite")):
            monkeypatch.setattr(module, name, self._refusing(getattr(module, name)))

    def _refusing(self, call):
        def called(*arguments, **options):
            path = arguments[0]
            path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
            if self.word and self.part in path:
                if call.__name__ == "pwrite":  # the beginning had room
                    descriptor, content, at = arguments
                    call(descriptor, content[: 2 * len(content) // 3], at)
                raise OSError(self.word, os.strerror(self.word))
            return call(*arguments, **options)

        return called


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where what is rescued must not be left by a test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(run_writer.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(run_writer, "BETWEEN", 0.01)
    monkeypatch.setattr(run_writer, "LAST_TRIES", 0.05)
    return Disk(monkeypatch)


@pytest.mark.parametrize("word", ["ENOSPC", "EROFS", "ESTALE"])
def test_a_disk_that_refuses_for_a_while_costs_nothing(
    tmp_path, monkeypatch, capsys, undisturbed, disk, word
):
    monkeypatch.setattr(writer, "RETRY", 1e6)  # with the next that is due

    def disturb(row):
        disk.word = {2: getattr(errno, word), 4: None}.get(row["iteration"])

    run = maml_dist.meta_train("sinusoid", run=tmp_path / "r", on_validation=disturb, **SMALL)
    assert run.finished and np.array_equal(weights(run), weights(undisturbed))
    assert rows(run) == rows(undisturbed)
    assert run.checkpoints.best.iteration == undisturbed.checkpoints.best.iteration
    assert scores(run).items() <= scores(undisturbed).items()
    assert not list(run.path.rglob("*.part"))
    said = capsys.readouterr().err
    line = f"{run.path}/checkpoints/00000004.safetensors: {os.strerror(getattr(errno, word))}"
    assert f"{line}: training goes on, the checkpoint is kept in memory" in said
    assert said.count("the checkpoint is kept") == 1
    assert said.count(f"{run.path}/checkpoints: is written again") == 1


def test_a_folder_that_is_moved_away_for_a_while_costs_nothing(tmp_path, capsys, undisturbed):
    path, away = tmp_path / "r", tmp_path / "away"

    def disturb(row):
        if row["iteration"] == 2:
            path.rename(away)
            before.update({each: each.stat().st_mtime_ns for each in away.rglob("*.safetensors")})
        elif row["iteration"] == 4:
            assert not path.exists()  # nothing is made in its place
            assert before == {each: each.stat().st_mtime_ns for each in before}
            away.rename(path)

    before = {}
    run = maml_dist.meta_train("sinusoid", run=path, on_validation=disturb, **SMALL)
    assert np.array_equal(weights(run), weights(undisturbed)) and rows(run) == rows(undisturbed)
    assert f"{path}: No such file or directory: training goes on" in capsys.readouterr().err
    assert not (path / NAME).exists()


def test_another_folder_in_its_place_is_not_written_to(tmp_path, monkeypatch, capsys):
    """A disk that was unmounted leaves an empty folder."""
    monkeypatch.setattr(run_writer, "LAST_TRIES", 0)
    path = tmp_path / "r"

    def disturb(row):
        if row["iteration"] == 2:
            path.rename(tmp_path / "away")
            path.mkdir()
            (path / "theirs").write_text("")

    with pytest.raises(OSError, match="another folder is there now: not written at the end"):
        maml_dist.meta_train("sinusoid", run=path, on_validation=disturb, **SMALL)
    assert os.listdir(path) == ["theirs"]


def test_what_is_not_written_at_the_end_lies_in_a_run_that_goes_on(
    tmp_path, monkeypatch, capsys, undisturbed, disk
):
    disk.part = f"{tmp_path}/r/"

    def disturb(row):
        if row["iteration"] == 2:
            disk.word = errno.ENOSPC

    with pytest.raises(OSError, match="No space left on device: not written at the end") as caught:
        maml_dist.meta_train("sinusoid", run=tmp_path / "r", on_validation=disturb, **SMALL)
    (made,) = tmp_path.glob("r-rescued-*")
    assert str(caught.value).endswith(f"--resume {made} goes on from there")
    run = Run.open(made)
    assert run.finished and np.array_equal(weights(run), weights(undisturbed))
    assert rows(run) == rows(undisturbed)
    assert scores(run).items() <= scores(undisturbed).items()
    assert run.checkpoints.best.iteration == undisturbed.checkpoints.best.iteration
    disk.word = None
    assert Run.open(tmp_path / "r").checkpoints.last.iteration == 2  # as it was
    more = maml_dist.meta_train(resume=made, iterations=8, local=True, progress=False)
    other = shutil.copytree(undisturbed.path, tmp_path / "other")
    longer = maml_dist.meta_train(resume=other, iterations=8, local=True, progress=False)
    assert np.array_equal(weights(more), weights(longer)) and rows(more) == rows(longer)


def test_where_nothing_can_be_read_either_the_last_state_is_a_run(
    tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setattr(run_writer, "LAST_TRIES", 0)

    def disturb(row):
        if row["iteration"] == 2:
            shutil.rmtree(tmp_path / "r")

    with pytest.raises(OSError, match="No such file or directory: not written at the end"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "r", on_validation=disturb, **SMALL)
    (made,) = tmp_path.glob("r-rescued-*")
    run = Run.open(made)
    assert run.finished and np.array_equal(weights(run), weights(undisturbed))
    assert rows(run) == rows(undisturbed)[2:]


def test_where_no_place_takes_it_that_is_said(tmp_path, monkeypatch, disk):
    def disturb(row):
        disk.word = errno.EROFS

    with pytest.raises(OSError, match=r"not written at the end, nor anywhere else; /.*Read-only"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "r", on_validation=disturb, **SMALL)
    assert not list(tmp_path.glob("r-rescued-*"))


def test_an_error_meanwhile_stays_the_error_and_the_rest_is_said(tmp_path, capsys, disk):
    disk.part = f"{tmp_path}/r/"

    def disturb(row):
        disk.word = errno.ENOSPC
        if row["iteration"] == 4:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "r", on_validation=disturb, **SMALL)
    (made,) = tmp_path.glob("r-rescued-*")
    assert f"--resume {made} goes on from there" in capsys.readouterr().err
    assert Run.open(made).checkpoints.last.iteration == 4


@pytest.mark.parametrize(("module", "name"), [(lock.os, "pwrite"), (folder.os, "fsync")])
def test_a_start_that_cannot_write_is_refused_and_leaves_nothing(
    tmp_path, monkeypatch, module, name
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="No space left on device: '.*/r/"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "deep" / "r", **SMALL)
    assert os.listdir(tmp_path) == []


def test_a_driver_that_was_overtaken_stops_and_writes_nothing_more(tmp_path):
    path = tmp_path / "r"
    after: dict[Path, bytes] = {}

    def overtake(row):
        (path / NAME).write_bytes(Owner("elsewhere", 7, 0.0, "now", "another", 1.0).content())
        after.update({each: each.read_bytes() for each in path.rglob("*") if each.is_file()})

    with pytest.raises(ValueError, match=f"{path} was taken over by process 7 on elsewhere"):
        maml_dist.meta_train("sinusoid", run=path, on_validation=overtake, **SMALL)
    now = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    assert now == after and json.loads(now[path / NAME])["host"] == "elsewhere"
    assert not list(tmp_path.glob("r-rescued-*"))


def test_checkpoints_elsewhere_may_be_away_alone(tmp_path, monkeypatch, capsys, undisturbed):
    """As `s3://`: only what lies there waits."""
    write, away = Folder.write, [False]

    def refusing(place, name, content, **options):
        if away[0]:
            raise OSError(f"{place.path}/{name} cannot be written: AWS Error SLOW_DOWN")
        write(place, name, content, **options)

    def disturb(row):
        away[0] = row["iteration"] == 2

    monkeypatch.setattr(Folder, "write", refusing)
    settings = {**SMALL, "checkpoints": str(tmp_path / "bucket")}
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "r", on_validation=disturb, **settings)
    assert np.array_equal(weights(run), weights(undisturbed)) and rows(run) == rows(undisturbed)
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/bucket/00000004.safetensors cannot be written: AWS Error SLOW_DOWN: training "
        "goes on, the checkpoint is kept in memory; tried again each minute",
        f"{tmp_path}/bucket: is written again",
    ]


def test_a_place_that_takes_its_time_is_given_it(tmp_path, monkeypatch, undisturbed):
    write = Folder.write

    def slow(place, name, content, **options):
        time.sleep(0.1)
        write(place, name, content, **options)

    monkeypatch.setattr(writer, "PATIENCE", 0.01)
    monkeypatch.setattr(run_writer, "LAST_TRIES", 0.0)
    monkeypatch.setattr(Folder, "write", slow)
    settings = {**SMALL, "checkpoints": str(tmp_path / "bucket")}
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "r", **settings)
    again = Run.open(run.path)
    assert np.array_equal(weights(again), weights(undisturbed))
    assert scores(again) == scores(undisturbed)
    assert not list(tmp_path.glob("r-rescued-*"))


def test_what_is_under_way_for_ever_is_also_written_elsewhere(tmp_path, monkeypatch, undisturbed):
    write, answers, hangs = Folder.write, Event(), [False]

    def hanging(place, name, content, **options):
        assert not (hangs[0] and place.path.endswith("bucket")) or answers.wait(60)
        write(place, name, content, **options)

    def disturb(row):
        hangs[0] = True

    monkeypatch.setattr(writer, "PATIENCE", 0.05)
    monkeypatch.setattr(run_writer, "UNDER_WAY", (0.3, 0.3))
    monkeypatch.setattr(Folder, "write", hanging)
    settings = {**SMALL, "checkpoints": str(tmp_path / "bucket")}
    try:
        with pytest.raises(OSError, match="goes on from there"):
            maml_dist.meta_train("sinusoid", run=tmp_path / "r", on_validation=disturb, **settings)
    finally:
        answers.set()
    (made,) = tmp_path.glob("r-rescued-*")
    assert np.array_equal(weights(Run.open(made)), weights(undisturbed))


def test_a_place_that_another_run_has_used_since_is_refused(tmp_path, monkeypatch):
    """It began and ended while this one was making its actors."""
    settings = {**SMALL, "checkpoints": str(tmp_path / "bucket")}
    start = LocalBackend.start

    def between(backend, *given):
        monkeypatch.setattr(LocalBackend, "start", start)
        maml_dist.meta_train("sinusoid", run=tmp_path / "first", **settings)
        return start(backend, *given)

    monkeypatch.setattr(LocalBackend, "start", between)
    with pytest.raises(ValueError, match="holds the checkpoints of another run|of another run"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "second", **settings)
    assert not (tmp_path / "second").exists()
    assert Run.open(tmp_path / "first").checkpoints.last.iteration == 6
