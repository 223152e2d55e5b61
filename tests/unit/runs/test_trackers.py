"""Loggers of one's own are told all that a run's files are told; one that fails ends nothing."""

import json
import sys
from collections import defaultdict

import pytest
from tensorboardX.proto.event_pb2 import Event

import maml_dist
from maml_dist.config.compose import compose
from maml_dist.config.trust import own
from maml_dist.inference.meta_test import meta_test
from maml_dist.runs.conclusion import conclude
from maml_dist.runs.run import Run
from maml_dist.runs.trackers import classes

SMALL = {
    "iterations": 4, "checkpoint_every": 2, "log_every": 1, "validation_tasks": 2,
    "test_tasks": 2, "meta_batch": 2, "test_steps": 2, "engine.running": "eager",
}  # fmt: skip
OWN = """
import json

class Told:
    def __init__(self, folder, config, *, start):
        self.file = open(folder / "told.jsonl", "a")
        self.file.write(json.dumps({"start": start, "name": config["name"]}) + "\\n")

    def log(self, row):
        self.file.write(json.dumps(row) + "\\n")

    def close(self):
        self.file.close()

class Fails(Told):
    def log(self, row):
        raise RuntimeError("the tracker is away\\nand more")

    def close(self):
        print("closed", file=__import__("sys").stderr)

class NoLogger:
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module with loggers, in a folder that is trusted; the name of the module."""
    (tmp_path / "my_loggers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    return "my_loggers"


def told(run):
    return [json.loads(line) for line in (run.path / "told.jsonl").read_text().splitlines()]


def trained(tmp_path, **more):
    return maml_dist.meta_train(
        "sinusoid", run=tmp_path / "run", local=True, progress=False, **SMALL | more
    )


def test_it_is_told_every_row_and_the_test_scores(tmp_path, mine):
    run = trained(tmp_path, loggers=["tensorboard", f"{mine}.Told"])
    first, *rows = told(run)
    assert first == {"start": 0, "name": "sinusoid"}
    merged = defaultdict(dict)
    for row in rows:
        merged[row["iteration"]] |= row
    assert list(merged.values()) == run.metrics
    evaluation = meta_test(run)
    conclude(run, evaluation)
    scores = {row["step"]: row["mean"] for row in evaluation["results"][0]["steps"]}
    assert told(run)[-2:] == [
        {"start": 4, "name": "sinusoid"},
        {"iteration": 4, **{f"test/mse/{step}": score for step, score in scores.items()}},
    ]


def test_a_resumed_run_goes_on_telling(tmp_path, mine):
    run = trained(tmp_path, loggers=[f"{mine}.Told"])
    maml_dist.meta_train(resume=run.path, iterations=6, local=True, progress=False, trust=tmp_path)
    starts = [row["start"] for row in told(run) if "start" in row]
    assert starts == [0, 4]
    assert {row["iteration"] for row in told(run) if "iteration" in row} == {1, 2, 3, 4, 5, 6}


def test_one_that_fails_says_so_once_and_the_run_goes_on(tmp_path, mine, capfd):
    run = trained(tmp_path, loggers=[f"{mine}.Fails", f"{mine}.Told"])
    assert run.finished and len(run.metrics) == 4 and len(told(run)) > 4
    err = capfd.readouterr().err
    assert err.count("RuntimeError: the tracker is away: it is told nothing more") == 1
    assert err.count("closed") == 1
    assert "and more" not in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("loggers", "said"),
    [
        (["tensorbord"], "loggers=tensorbord: there is none; did you mean 'tensorboard'?"),
        (["my_loggers.NoLogger"], "must be a class with log and close"),
        (["my_loggers.Nobody"], "must be a class with log and close"),
        (["no_such.Module"], "no_such"),
        ([3], "loggers"),
    ],
)
def test_a_logger_that_is_none_is_one_clear_line(tmp_path, mine, loggers, said):
    with pytest.raises(ValueError, match=said) as caught:
        trained(tmp_path, loggers=loggers)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_strangers_logger_is_not_loaded(tmp_path, mine):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs.py").write_text("raise SystemExit('it ran')")
    config = compose("sinusoid") | {"loggers": ["theirs.Told"], "code": [str(elsewhere)]}
    with pytest.raises(ValueError, match="not trusted"):
        classes(config)
    own(elsewhere)  # and then it is
    with pytest.raises(ValueError, match="it ran"):
        classes(config)


def events(run):
    """TensorBoard's, in the order of the files."""
    found = []
    for path in sorted((run.path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def test_tensorboard_has_the_recipe_once_the_scores_and_the_pictures(tmp_path):
    run = trained(tmp_path)
    (run.path / "figures").mkdir()
    from PIL import Image

    Image.new("RGB", (3, 2)).save(run.path / "figures" / "steps.png")
    conclude(run, meta_test(run))
    maml_dist.meta_train(resume=run.path, iterations=6, local=True, progress=False)
    values = [(event.step, value) for event in events(run) for value in event.summary.value]
    tags = [value.tag for _, value in values]
    assert tags.count("recipe/text_summary") == tags.count("_hparams_/session_start_info") == 1
    (text,) = (v.tensor.string_val[0] for _, v in values if v.tag == "recipe/text_summary")
    assert b"alpha: 0.01" in text
    ((step, image),) = ((step, value.image) for step, value in values if value.tag == "steps")
    assert step == 4 and (image.width, image.height) == (3, 2)
    assert [step for step, value in values if value.tag == "test/mse/1"] == [4]
    assert sorted({step for step, value in values if value.tag == "loss/after"}) == [*range(1, 7)]


def test_without_tensorboard_there_are_no_events(tmp_path):
    run = trained(tmp_path, loggers=["jsonl"])
    assert len(run.metrics) == 4 and not (run.path / "tensorboard").exists()
    conclude(run, meta_test(run))
    assert not (run.path / "tensorboard").exists()


def test_a_run_of_before_has_the_loggers_of_now(tmp_path):
    run = trained(tmp_path)
    text = (run.path / "recipe.yaml").read_text()
    (run.path / "recipe.yaml").write_text(text.replace("loggers:\n- jsonl\n- tensorboard\n", ""))
    assert list(Run.open(run.path).config["loggers"]) == ["jsonl", "tensorboard"]
