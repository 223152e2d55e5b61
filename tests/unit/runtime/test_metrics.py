import json

from maml_dist.runtime.metrics import Metrics, read


def rows(*iterations):
    return [{"iteration": i, "loss/after": i / 2} for i in iterations]


def test_rows_are_read_back(tmp_path):
    metrics = Metrics(tmp_path, start=0, total=3, quiet=True)
    for row in rows(1, 2, 3):
        metrics.log(row)
    metrics.close()
    assert read(tmp_path / "metrics.jsonl") == rows(1, 2, 3)
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in rows(1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(text + '{"iteration": 4, "lo')
    Metrics(tmp_path, start=2, total=9, quiet=True).close()
    assert read(tmp_path / "metrics.jsonl") == rows(1, 2)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n{"iterat')
    assert read(tmp_path / "metrics.jsonl") == [{"iteration": 1}]
    assert read(tmp_path / "none.jsonl") == []


def test_without_a_terminal_there_are_plain_lines(tmp_path, capsys):
    metrics = Metrics(tmp_path, start=0, total=2)
    metrics.log({"iteration": 1, "loss/after": 1.0, "it_per_s": 0.5, "val/mse": 0.25})
    metrics.close()
    assert capsys.readouterr().err == "1/2  0.5 it/s  1 after  val/mse 0.25  2 s left\n"


def test_what_is_not_finite_is_null_and_no_complaint(tmp_path, caplog):
    metrics = Metrics(tmp_path, start=0, total=2, quiet=True)
    metrics.log({"iteration": 1, "val/mse": float("inf"), "loss/after": 1.0})
    metrics.close()
    assert read(tmp_path / "metrics.jsonl") == [
        {"iteration": 1, "val/mse": None, "loss/after": 1.0}
    ]
    assert not caplog.records
