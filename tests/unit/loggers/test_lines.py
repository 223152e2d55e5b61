"""What commands say: text as ever, or objects of JSON, errors and Python's warnings among them."""

import io
import json
import math
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from maml_dist import train
from maml_dist.cli import guarded
from maml_dist.loggers import lines
from maml_dist.loggers.lines import Seldom, say, use_format
from maml_dist.runs.progress import progress

SMALL = [
    *("iterations=2", "checkpoint_every=2", "log_every=1", "validation_tasks=2", "meta_batch=2"),
    *("test_steps=2", "test_tasks=2", "engine.running=eager"),
]


def told(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_text_is_the_message_alone(capsys):
    say("one", iteration=3)
    say("two", out=True)
    say("three", clock=True)
    out, err = capsys.readouterr()
    assert out == "two\n" and err.startswith("one\n") and err.endswith(" three\n")


def test_json_has_the_time_the_level_and_what_is_known(capsys):
    use_format("json")
    say("ein „Wort“\nund mehr", level="warning", clock=True, loss=math.nan, of=[1, math.inf], n=2)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("of Python's", UserWarning, stacklevel=1)
    first, second = told(capsys.readouterr().err)
    assert first.pop("time").endswith("+00:00")
    message = "ein „Wort“\nund mehr"
    known = {"loss": None, "of": [1, None], "n": 2}
    assert first == {"level": "warning", "message": message, **known}
    assert second["level"] == "warning" and second["message"] == "of Python's"


def test_every_line_is_one_object_whoever_speaks_and_whatever_takes_it(monkeypatch):
    taken = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stderr", taken)
    use_format("json")
    with ThreadPoolExecutor(3) as speakers:
        for each in range(3):
            speakers.submit(lambda i: [say("± é \udc80", of=i, n=n) for n in range(200)], each)
    taken.seek(0)
    found = told(taken.read())
    assert sorted((each["of"], each["n"]) for each in found) == sorted(
        product(range(3), range(200))
    )
    assert {each["message"] for each in found} == {"± é \udc80"}


def test_numbers_of_numpy_are_numbers(capsys):
    use_format("json")
    say("", a=np.float32(0.5), b=np.int64(3), c=np.float32("nan"), d=[np.bool_(True)], e=Path("f"))
    (line,) = told(capsys.readouterr().err)
    assert [line[name] for name in "abcde"] == [0.5, 3, None, [True], "f"]


def test_a_users_names_are_none_of_the_lines_own(capsys):
    row = {"iteration": 3, "message": 1.0, "time": 2.0, "iterations": 7.0, "out": 1.0}
    use_format("json")
    progress(0, 6, quiet=False).show(row)
    (line,) = told(capsys.readouterr().err)
    assert line["row"] == row and line["iterations"] == 6 and line["seconds_left"] is None
    use_format("text")
    progress(0, 6, quiet=False).show(row)
    assert capsys.readouterr().err == "3/6  \n"


def test_seldom_is_once_a_minute(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(lines.time, "monotonic", lambda: now)
    seldom = Seldom()
    for now in (100.0, 130.0, 161.0):  # noqa: B007 - the clock's
        seldom.say(f"at {now:.0f}")
    assert capsys.readouterr().err == "at 100\nat 161\n"


def test_a_run_in_json_from_its_first_word_to_its_scores(tmp_path, capsys, monkeypatch):
    words = ["sinusoid", "--local", "--run", str(tmp_path / "run"), "--log-format=json", *SMALL]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    assert guarded(train.main) == 0
    out, err = map(told, capsys.readouterr())
    assert all(line["level"] == "info" and line["time"] for line in out + err)
    assert err[-1]["iteration"] == err[-1]["iterations"] == 2
    assert err[-1]["seconds_left"] == 0 and "val/mse/path" in err[-1]["row"]
    scores, run = out
    assert scores["results"][0]["steps"][0]["mean"] > 0 and scores["recipe"] == "sinusoid"
    assert run["run"] == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log-format", "json", "--no-such"], "--no-such"),
        (["no-such-recipe", "--log-format=json", "--traceback"], "no-such-recipe"),
        (["--tasks", "--log-format", "json"], "--tasks"),
    ],
)
def test_an_error_is_an_object_too(words, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *words])
    assert guarded(train.main) == 2
    *before, error = told(capsys.readouterr().err)
    assert error["level"] == "error" and error["status"] == 2 and said in error["message"]
    assert ["Traceback" in line["traceback"] for line in before] == [True] * (
        "--traceback" in words
    )


def test_another_format_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--log-format", "xml"])
    assert guarded(train.main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "xml" in said and "json" in said
    assert said.count("\n") == 1
