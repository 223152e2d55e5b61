"""The trackers that people use, each a real one that keeps its files here.

`pip install '.[trackers]'`; without one of them its test is left out.
"""

import os
import time

import pytest

import maml_dist
from maml_dist.inference.meta_test import meta_test
from maml_dist.runs.conclusion import conclude

SMALL = {
    "iterations": 4, "checkpoint_every": 2, "log_every": 1, "validation_tasks": 2,
    "test_tasks": 2, "meta_batch": 2, "test_steps": 2, "engine.running": "eager",
}  # fmt: skip


def killed_and_resumed(tmp_path, monkeypatch, logger):
    """A run that ends before its time, is gone on with, and told its test score."""
    monkeypatch.chdir(tmp_path)

    def stop(row):
        if row["iteration"] == 4:
            raise KeyboardInterrupt

    folder = tmp_path / "my-run"
    with pytest.raises(KeyboardInterrupt):
        maml_dist.meta_train(
            "sinusoid",
            run=folder,
            local=True,
            progress=False,
            on_validation=stop,
            **SMALL | {"iterations": 6, "loggers": ["jsonl", logger]},
        )
    run = maml_dist.meta_train(resume=folder, local=True, progress=False)
    evaluation = meta_test(run)
    (folder / "figures").mkdir()
    from PIL import Image

    Image.new("RGB", (3, 2)).save(folder / "figures" / "steps.png")
    conclude(run, evaluation)
    return run, evaluation["results"][0]["steps"][1]["mean"]


@pytest.mark.slow
def test_mlflow_has_all_rows_and_the_test_score(tmp_path, monkeypatch, capfd):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run, score = killed_and_resumed(tmp_path, monkeypatch, "mlflow")
    assert "told nothing more" not in capfd.readouterr().err  # as on a machine that is too busy
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("mine")
    (found,) = client.search_runs([experiment.experiment_id])  # one, for both starts and the end
    assert found.info.run_name == "my-run" and found.info.status == "FINISHED"
    assert found.data.params["learner.alpha"] == "0.01"
    history = client.get_metric_history(found.info.run_id, "val/mse/path")
    told = {metric.step: metric.value for metric in history}
    assert told == {
        row["iteration"]: row["val/mse/path"] for row in run.metrics if "val/mse/path" in row
    }
    assert found.data.metrics["test/mse/1"] == score
    (picture,) = client.list_artifacts(found.info.run_id, "figures")
    assert picture.path == "figures/steps.png"


def leveldb_records(content):
    """Of a log as LevelDB has it: blocks of pieces, each with checksum, length and type."""
    at, whole = 7, b""  # after W&B's own header
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # it is whole, or its last piece
            yield whole
            whole = b""


def written(path, kind):
    """The records of a file of W&B's, whose own process writes the last after its run is ended."""
    deadline = time.monotonic() + 30
    while True:
        records = [*map(kind.FromString, leveldb_records(path.read_bytes()))]
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.1)


@pytest.mark.slow
def test_wandb_has_all_rows_and_the_test_score(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    run, score = killed_and_resumed(tmp_path, monkeypatch, "wandb")
    assert "told nothing more" not in capfd.readouterr().err  # as on a machine that is too busy
    files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime)
    assert len(files) == 3 and len({path.name for path in files}) == 1  # one run's id
    rows, configured = [], []
    for path in files:
        for record in written(path, Record):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({".".join(i.nested_key) or i.key: i.value_json for i in items})
            if record.WhichOneof("record_type") == "run":
                configured += [i.key for i in record.run.config.update]
    told = {
        int(row["iteration"]): float(row["val/mse/path"]) for row in rows if "val/mse/path" in row
    }
    assert told == {
        row["iteration"]: row["val/mse/path"] for row in run.metrics if "val/mse/path" in row
    }
    assert any(row.get("test/mse/1") == str(score) for row in rows), (
        score,
        [row.get("test/mse/1") for row in rows],
    )
    assert any(key.startswith("steps") for row in rows for key in row) and "learner" in configured
