import json
import os

import pytest

from maml_dist.runs.metrics import Metrics, read
from maml_dist.runs.writer import Writer


@pytest.fixture
def writer():
    writer = Writer()
    yield writer
    writer.close()


def rows(*iterations):
    return [{"iteration": i, "loss/after": i / 2} for i in iterations]


def test_rows_are_read_back(tmp_path, writer):
    metrics = Metrics(tmp_path, writer, start=0, total=3, quiet=True)
    for row in rows(1, 2, 3):
        metrics.log(row)
    writer.flush()
    metrics.close()
    assert read(tmp_path / "metrics.jsonl") == rows(1, 2, 3)
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path, writer):
    text = "".join(json.dumps(row) + "\n" for row in rows(1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(text + '{"iteration": 4, "lo')
    Metrics(tmp_path, writer, start=2, total=9, quiet=True).close()
    assert read(tmp_path / "metrics.jsonl") == rows(1, 2)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n{"iterat')
    assert read(tmp_path / "metrics.jsonl") == [{"iteration": 1}]
    assert read(tmp_path / "none.jsonl") == []


def test_without_a_terminal_there_are_plain_lines(tmp_path, writer, capsys):
    metrics = Metrics(tmp_path, writer, start=0, total=2)
    metrics.log({"iteration": 1, "loss/after": 1.0, "it_per_s": 0.5, "val/mse": 0.25})
    writer.flush()
    metrics.close()
    assert capsys.readouterr().err == "1/2  0.5 it/s  1 after  val/mse 0.25  2 s left\n"


def test_what_is_not_finite_is_null_and_no_complaint(tmp_path, writer, caplog):
    metrics = Metrics(tmp_path, writer, start=0, total=2, quiet=True)
    metrics.log({"iteration": 1, "val/mse": float("inf"), "loss/after": 1.0})
    writer.flush()
    metrics.close()
    assert read(tmp_path / "metrics.jsonl") == [
        {"iteration": 1, "val/mse": None, "loss/after": 1.0}
    ]
    assert not caplog.records


def test_a_row_that_came_in_two_parts_is_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"iteration": 1, "loss": 2}\n{"iteration": 2, "loss": 1}\n{"iteration": 2, "val/mse": 3}\n'
    )
    assert read(tmp_path / "metrics.jsonl") == [
        {"iteration": 1, "loss": 2},
        {"iteration": 2, "loss": 1, "val/mse": 3},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "line 2 must be keys and values"),
        ("1", "line 2 must be keys and values"),
        ("{}", "line 2: must have an iteration"),
        ('{"iteration": "2"}', "line 2: must have an iteration"),
        ('{"iteration": -2}', "line 2: must have an iteration"),
        ('{"iteration": true}', "line 2"),
        ('{"iteration": 2, "loss": [1]}', "line 2.loss must be a text or a whole number"),
        ('{"iteration": 2, "loss": NaN}', "line 2 is not JSON: NaN"),
        ('{"iteration": 2, "loss', "line 2 is not JSON"),
        ("\0\0\0", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("", "line 2 is not JSON"),
    ],
)
def test_a_line_that_is_no_row_is_said(tmp_path, text, said):
    (tmp_path / "metrics.jsonl").write_text(f'{{"iteration": 1}}\n{text}\n{{"iteration": 3}}\n')
    with pytest.raises(ValueError, match=said) as error:
        read(tmp_path / "metrics.jsonl")
    assert "remove that line to go on without it" in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_things_that_are_no_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\xfe\n{"iteration": 1}\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="is not a file"):
        read(tmp_path / "metrics.jsonl")
