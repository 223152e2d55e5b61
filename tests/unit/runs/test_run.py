"""The folder of a run: what predicts is in it, what is damaged is said, one driver at a time."""

import hashlib
import json
import os
import shutil
import sys

import pytest
import torch
import yaml

import maml_dist
from maml_dist import evaluate, report, train
from maml_dist.cli import guarded
from maml_dist.reporting import page
from maml_dist.runs import run_writer
from maml_dist.runs.checkpoint_header import read_tensors
from maml_dist.runs.folder import Folder
from maml_dist.runs.lock import locked
from maml_dist.runs.metrics import Metrics
from maml_dist.runs.run import Run
from maml_dist.runs.writer import Writer
from maml_dist.runtime.local_backend import LocalBackend
from maml_dist.tasks.sinusoid import Sinusoid

SMALL = {"iterations": 4, "checkpoint_every": 2, "log_every": 1, "meta_batch": 2, "local": True}
SMALL |= {"validation_tasks": 2, "test_tasks": 3, "test_steps": 1, "progress": False}
SMALL |= {"engine.running": "eager", "pipeline_depth": 1}

MODELS = """
import random

import numpy as np
import torch
from torch import nn
from maml_dist.runtime import local_backend


class ByNumpy(nn.Module):
    def __init__(self, features: int = 8):
        super().__init__()
        b = np.random.normal(size=(1, features)) * random.uniform(0.5, 1)
        self.register_buffer("b", torch.from_numpy(b).float())
        self.head = nn.Linear(2 * features, 1)

    def forward(self, x):
        p = x @ self.b
        return self.head(torch.cat([p.sin(), p.cos()], -1))


class Unseeded(ByNumpy):  # what nothing can seed, and no state_dict holds
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng()
        self.b.copy_(torch.from_numpy(rng.normal(size=self.b.shape)))
        self.scale, self.shift = rng.normal(size=1), [torch.from_numpy(rng.normal(size=1)).float()]

    def forward(self, x):
        return super().forward(x) * float(self.scale[0]) + self.shift[0]


class OnBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1, 8), nn.Linear(8, 1)
        self.body.load_state_dict(torch.load("backbone.pt"))
        self.body.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with models of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "drawn.py").write_text(MODELS)
    yield tmp_path
    sys.modules.pop("drawn", None)


def recipe(folder, model):
    classes = {"model": f"drawn.{model}", "task": "Sinusoid"}
    classes |= {
        "learner": "MAML",
        "outer": "Adam",
    }
    path = folder / f"{model}.yaml"
    path.write_text(yaml.safe_dump({key: {"class_path": name} for key, name in classes.items()}))
    return path


def weights(run):
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()])


def predictions(path):
    x = torch.linspace(-3, 3, 7)[:, None]
    model = maml_dist.load(path, checkpoint="last")
    with torch.no_grad():
        return model.adapt(x, x.sin(), steps=2)(x)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return maml_dist.meta_train("sinusoid", run=tmp_path_factory.mktemp("r") / "run", **SMALL)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a trained run, to be harmed."""
    shutil.copytree(trained.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def command(module, *words, monkeypatch, capsys, status=2):
    """The one line that a command says."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    assert guarded(module.main) == status
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def test_what_numpy_and_python_draw_is_seeded_as_what_torch_draws(here):
    file = recipe(here, "ByNumpy")
    one, two = (maml_dist.meta_train(file, run=here / name, **SMALL) for name in "ab")
    other = maml_dist.meta_train(file, run=here / "c", seed=1, **SMALL)
    assert torch.equal(one.experiment.model.b, two.experiment.model.b)
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(one.experiment.model.b, other.experiment.model.b)


def test_what_nothing_can_seed_predicts_the_same_ever_after(here):
    file = recipe(here, "Unseeded")
    whole = maml_dist.meta_train(file, run=here / "run", **SMALL)
    files = {path.name for path in (here / "run" / "checkpoints").iterdir()}
    assert "fixed.safetensors" in files
    first = predictions(whole.path)
    assert torch.equal(predictions(whole.path), first)
    scores = maml_dist.meta_test(whole, split="val", tasks=2, checkpoint="last")["results"][0][
        "steps"
    ]
    assert scores[-1]["mean"] == pytest.approx(whole.metrics[-1]["val/mse"], rel=1e-5)
    assert maml_dist.meta_test(Run.open(whole.path), split="val", tasks=2, checkpoint="last") == (
        maml_dist.meta_test(whole, split="val", tasks=2, checkpoint="last")
    )
    longer = maml_dist.meta_train(resume=whole.path, iterations=6, local=True, progress=False)
    assert torch.equal(longer.experiment.model.b, whole.experiment.model.b)
    warm = {**SMALL, "iterations": 0, "init": str(whole.path)}
    warm = maml_dist.meta_train(file, run=here / "warm", **warm)
    assert torch.equal(warm.experiment.model.b, whole.experiment.model.b)
    assert Run.open(warm.path).experiment.model.scale == whole.experiment.model.scale


def test_a_frozen_body_from_a_file_is_that_of_training(here):
    torch.save(torch.nn.Linear(1, 8).state_dict(), "backbone.pt")
    run = maml_dist.meta_train(recipe(here, "OnBackbone"), run=here / "run", **SMALL)
    first, body = predictions(run.path), run.experiment.model.body.weight.clone()
    torch.save(torch.nn.Linear(1, 8).state_dict(), "backbone.pt")
    assert torch.equal(predictions(run.path), first)
    assert torch.equal(Run.open(run.path).experiment.model.body.weight, body)


def test_what_is_fixed_is_not_done_without(here, monkeypatch, capsys):
    run = maml_dist.meta_train(recipe(here, "ByNumpy"), run=here / "run", **SMALL)
    (run.path / "checkpoints" / "fixed.safetensors").rename(here / "away")
    said = {"monkeypatch": monkeypatch, "capsys": capsys}
    assert "fixed.safetensors is not there" in command(evaluate, run.path, **said)
    words = ("--resume", run.path, "iterations=9", "--local")
    assert "fixed.safetensors is not there" in command(train, *words, **said)
    with pytest.raises(ValueError, match="fixed.safetensors is not there"):
        maml_dist.load(run.path)
    for model in ("Unseeded", "OnBackbone"):
        torch.save(torch.nn.Linear(1, 8).state_dict(), "backbone.pt")
        config = {**run.config, "model": {"class_path": f"drawn.{model}", "init_args": {}}}
        (run.path / "recipe.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match="fixed.safetensors"):
            Run.open(run.path).saved()


def test_a_run_of_before_that_file_opens_as_it_did(here):
    """As 0.1.0 wrote it: an index and metadata that know less, and no file of what is fixed."""
    run = maml_dist.meta_train(recipe(here, "ByNumpy"), run=here / "run", **SMALL)
    first, folder = predictions(run.path), run.path / "checkpoints"
    (folder / "fixed.safetensors").unlink()
    index = json.loads((folder / "index.json").read_text())
    index = {"last": index["last"], "best": index["best"]}
    for entry in (*index["last"], index["best"]):
        del entry["validated"]
        path = folder / entry["file"]
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header["__metadata__"] = {
            key: header["__metadata__"][key] for key in ("iteration", "recipe")
        }
        header = json.dumps(header).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    assert torch.equal(predictions(run.path), first)
    maml_dist.meta_train(resume=run.path, iterations=6, local=True, progress=False)
    assert (folder / "fixed.safetensors").exists()


def rewritten(run, change):
    """The run's last checkpoint with other tensors, whole and in the index."""
    tensors, header = read_tensors(Folder(run.path / "checkpoints"), "00000004.safetensors")
    change(tensors)
    config = json.loads(header.texts["recipe"])
    run.checkpoints.save(tensors, iteration=4, recipe=json.dumps(config), maximize=False)
    run.checkpoints.judge(0.0)


def put(name, value):
    return lambda tensors: tensors.__setitem__(name, value(tensors[name]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("meta/head.bias", lambda t: t * torch.nan), "meta/head.bias is not finite"),
        slow(put("outer/second", lambda t: t / 0), "outer/second is not finite"),
        (put("outer/first", lambda t: t.double()), "outer/first is float64 [1761] there, float32"),
        slow(put("meta/head.bias", lambda t: t.double()), "meta/head.bias is float64 [1] there"),
        slow(put("meta/head.bias", lambda t: t.bfloat16()), "meta/head.bias is bfloat16 [1] there"),
        slow(put("outer/second", lambda t: t[:5]), "outer/second is float32 [5] there"),
        (put("meta/head.weight", lambda t: t[0]), "meta/head.weight is float32 [40] there"),
        slow(lambda t: t.pop("outer/first"), "outer/first is missing there"),
        (lambda t: t.pop("outer/count"), "outer/count is missing there"),
        slow(lambda t: t.pop("meta/head.bias"), "meta/head.bias is missing there"),
        (lambda t: t.update({"outer/more": torch.ones(1)}), "outer/more is float32 [1] there"),
    ],
)
def test_a_checkpoint_that_does_not_serve_is_refused(run, monkeypatch, capsys, change, said):
    rewritten(run, change)
    words = ("--resume", run.path, "iterations=9", "--local")
    before = (run.path / "metrics.jsonl").read_bytes()
    assert said in command(train, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert not (run.path / "driver.lock").exists()
    with pytest.raises(ValueError, match="00000004.safetensors"):
        maml_dist.load(run.path)


@pytest.mark.parametrize("changes", [{"seed": 1}, slow({"model.hidden": [8]}), {"task.shots": 3}])
def test_weights_of_another_run_are_refused(run, tmp_path, changes):
    other = maml_dist.meta_train("sinusoid", run=tmp_path / "o", **{**SMALL, **changes})
    (key, value) = next(iter(changes.items()))
    theirs = other.path / "checkpoints" / "00000004.safetensors"
    with pytest.raises(ValueError, match=f"another run: {key} is .* there"):
        run.weights(str(theirs))
    shutil.copytree(other.path / "checkpoints", run.path / "checkpoints", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=f"another run: {key} is"):
        Run.open(run.path).saved()
    (run.path / "checkpoints" / "index.json").unlink()
    with pytest.raises(ValueError, match=f"no checkpoint is whole.*another run: {key} is"):
        Run.open(run.path).saved()


def test_a_lost_index_is_made_again_with_the_scores_of_the_metrics(run, capsys):
    before = run.checkpoints.entries, run.checkpoints.best
    (run.path / "checkpoints" / "index.json").unlink()
    again = Run.open(run.path)
    assert (again.checkpoints.entries, again.checkpoints.best) == before
    assert "index.json is lost: made again from 2 checkpoints" in capsys.readouterr().err
    resumed = maml_dist.meta_train(resume=run.path, iterations=6, local=True, progress=False)
    assert [row["iteration"] for row in resumed.metrics] == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_checkpoints_are_all_lost_does_not_start_again(run):
    shutil.rmtree(run.path / "checkpoints")
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="no checkpoint is left in .*/checkpoints, though"):
        maml_dist.meta_train(resume=run.path, iterations=9, local=True, progress=False)
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_a_damaged_newest_checkpoint_is_done_again_to_the_same_bits(run, trained, capsys):
    path = run.path / "checkpoints" / "00000004.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert not Run.open(run.path).finished
    resumed = maml_dist.meta_train(resume=run.path, local=True, progress=False)
    said = capsys.readouterr().err
    assert "00000004.safetensors is damaged" in said and "taking 00000002.safetensors" in said
    assert torch.equal(weights(resumed), weights(trained))
    assert [row["iteration"] for row in resumed.metrics] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("keep_checkpoints", None, "keep_checkpoints must be a whole number, not null"),
        ("iterations", None, "iterations must be a whole number, not null"),
        ("iterations", "many", "iterations must be a whole number, not 'many'"),
        ("name", None, "name must be a text, not null"),
        ("checkpoints", 5, "checkpoints must be a text or null, not 5"),
        ("code", None, "code must be a list of a text, not null"),
        ("code", [1], "code[0] must be a text"),
        ("task", None, "task must be keys and values or a text, not null"),
        ("model", "torch.nn.Linear", "model: its class requires model.in_features"),
        ("seed", True, "seed must be a whole number, not True"),
        ("on_divergence", "perhaps", "on_divergence must be stop or skip"),
        ("cpus_per_shard", float("inf"), "cpus_per_shard must be a finite number"),
        ("checkpoints", "", "checkpoints=''"),
        (
            "checkpoints",
            "a\0b",
            "recipe.yaml is not a plain YAML file: line 3 holds the character #x0000",
        ),
    ],
)
def test_a_recipe_of_a_run_that_is_none_is_said(run, monkeypatch, capsys, key, value, said):
    (run.path / "recipe.yaml").write_text(yaml.safe_dump({**run.config, key: value}))
    both = {"monkeypatch": monkeypatch, "capsys": capsys}
    assert said in command(evaluate, run.path, **both)
    if value is None:
        assert said in command(report, run.path, **both)
        assert said in command(train, "--resume", run.path, "--local", **both)


@pytest.mark.parametrize(
    ("value", "said"), [("", "empty"), ("  ", "empty"), ("a\0b", "the character #x0000")]
)
@pytest.mark.parametrize("key", ["checkpoints", "init"])
def test_a_place_that_is_none_is_refused(tmp_path, monkeypatch, key, value, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{key} (is|holds) {said}"):
        maml_dist.meta_train("sinusoid", **{**SMALL, key: value})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".", "a\nb", "..\\x"])
def test_a_name_stays_under_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must be the name of a folder, not a path"):
        maml_dist.meta_train("sinusoid", **{**SMALL, "name": name})
    assert os.listdir(tmp_path) == []


EVALUATIONS = [
    "",
    "[1]",
    "{}",
    '{"recipe": "s", "split": "test", "tasks": 3, "metric": "mse", "results": []}',
    '{"recipe": "s", "split": "test", "tasks": 3, "metric": "mse", "results": [{"mode": "x"}]}',
    '{"recipe": "s", "split": "test", "tasks": 3, "metric": "other", "results": '
    '[{"mode": "default", "steps": [{"step": 0, "mean": 1, "ci95": 1, "median": 1}]}]}',
    '{"recipe": "s", "split": "test", "tasks": 3, "metric": "mse", "results": '
    '[{"mode": "default", "steps": [{"step": 0, "mean": "1", "ci95": 1, "median": 1}]}]}',
]


@pytest.mark.parametrize("text", EVALUATIONS)
def test_an_evaluation_of_another_form_is_made_anew(run, text):
    (run.path / "evaluation.json").write_text(text)
    made = page._evaluation(run)
    assert made == maml_dist.meta_test(run) and made["tasks"] == 3


def test_a_second_driver_is_refused_and_changes_nothing(run, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with locked(Folder(run.path)):
        words = ("--resume", run.path, "iterations=9", "--local")
        said = command(train, *words, monkeypatch=monkeypatch, capsys=capsys)
        assert f"{run.path} is being trained by process {os.getpid()} on" in said
        Run.open(run.path).weights()  # it can be read all the while
    after = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    assert after == before


def test_a_place_of_checkpoints_is_locked_too(tmp_path):
    shared = tmp_path / "shared"
    with locked(Folder(shared)):
        with pytest.raises(ValueError, match="shared is being trained by"):
            maml_dist.meta_train("sinusoid", run=tmp_path / "run", checkpoints=shared, **SMALL)
        assert not (tmp_path / "run").exists()
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "run", checkpoints=shared, **SMALL)
    assert run.finished and not (shared / "driver.lock").exists()
    assert not (run.path / "driver.lock").exists()


@pytest.mark.parametrize("at", ["start", "resources"])
def test_a_failed_start_leaves_nothing_behind(tmp_path, monkeypatch, at):
    def fails(*_, **__):
        raise ValueError("no room")

    monkeypatch.setattr(LocalBackend, at, fails)
    with pytest.raises(ValueError, match="no room"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "deep" / "run", **SMALL)
    assert os.listdir(tmp_path) == []


SCORE = Sinusoid.score


@pytest.mark.parametrize("error", [ZeroDivisionError, slow(KeyError), ValueError])
def test_a_validation_that_fails_costs_neither_checkpoint_nor_row(
    tmp_path, trained, monkeypatch, error
):
    saves = []
    save = Run.save

    def counted(self, saved):
        save(self, saved)
        saves.append(saved[0])

    def score(self, output, batch):
        if len(saves) == 2:
            raise error("of no count")
        return SCORE(self, output, batch)

    monkeypatch.setattr(Run, "save", counted)
    monkeypatch.setattr(Sinusoid, "score", score)
    with pytest.raises(ValueError) as raised:
        maml_dist.meta_train("sinusoid", run=tmp_path / "run", **SMALL)
    said = str(raised.value)
    assert said.startswith("the validation at iteration 4 failed: the score (")
    assert "test_run.py, line " in said and ", in score) raised " in said
    assert f"raised {error.__name__}: " in said and "of no count" in said and "--resume" in said
    run = Run.open(tmp_path / "run")
    assert run.checkpoints.last.iteration == 4 and not run.finished
    assert [row["iteration"] for row in run.metrics] == [1, 2, 3, 4]
    monkeypatch.undo()
    resumed = maml_dist.meta_train(resume=run.path, local=True, progress=False)
    assert resumed.finished and torch.equal(weights(resumed), weights(trained))
    plain = [
        {key: value for key, value in row.items() if not key.endswith("per_s")}
        for row in (*resumed.metrics, *trained.metrics)
    ]
    assert plain[:4] == plain[4:]
    assert resumed.checkpoints.best.iteration == trained.checkpoints.best.iteration


def test_a_killed_validation_does_not_cost_the_checkpoint(tmp_path, trained, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr("maml_dist.runtime.shard.TaskShard.scores", killed)
    with pytest.raises(Killed):
        maml_dist.meta_train("sinusoid", run=tmp_path / "run", **SMALL)
    monkeypatch.undo()
    assert Run.open(tmp_path / "run").checkpoints.last.iteration == 2
    resumed = maml_dist.meta_train(resume=tmp_path / "run", local=True, progress=False)
    assert torch.equal(weights(resumed), weights(trained))
    assert "val/mse" in resumed.metrics[1]
    assert resumed.checkpoints.best.iteration == trained.checkpoints.best.iteration


@pytest.mark.parametrize("part", ["waves", slow("training")])
def test_a_picture_that_fails_is_named_and_the_others_are_drawn(run, monkeypatch, capsys, part):
    def broken(drawn):
        raise RuntimeError("no ink")

    broken.__name__ = part
    monkeypatch.setattr(f"maml_dist.reporting.page.{part}", broken)
    said = command(report, run.path, monkeypatch=monkeypatch, capsys=capsys)
    assert f"the picture {part} cannot be drawn: your code (" in said
    assert ", in broken) raised RuntimeError: no ink" in said
    assert len(list((run.path / "figures").iterdir())) == 3
    assert (run.path / "report.html").exists()


@pytest.mark.parametrize(
    "names",
    [
        ("evaluation.json", "report.html", "metrics.jsonl", "figures/steps.png"),
        ("checkpoints/index.json.part", "checkpoints/00000006.safetensors"),
    ],
    ids=["report", "checkpoints"],
)
def test_nothing_is_written_through_a_link_that_a_stranger_left(run, tmp_path, names):
    victims = [tmp_path / f"victim-{number}" for number in range(len(names))]
    for victim, name in zip(victims, names, strict=True):
        link = run.path / name
        victim.write_text("mine")
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
    if names[0].startswith("checkpoints"):
        maml_dist.meta_train(resume=run.path, iterations=6, local=True, progress=False)
    else:
        Metrics(run.path, Writer(), start=4, total=6, quiet=True)
        page.report(run)
    maml_dist.meta_test(run)
    assert [victim.read_text() for victim in victims] == ["mine"] * len(names)


def test_a_run_whose_report_fails_is_kept(tmp_path, monkeypatch, capsys):
    def broken(drawn):
        raise RuntimeError("no ink")

    monkeypatch.setattr("maml_dist.reporting.page.steps", broken)
    words = [f"{key}={value}" for key, value in SMALL.items() if key not in ("local", "progress")]
    words = ["sinusoid", "--local", "--run", str(tmp_path / "run"), *words]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    assert guarded(train.main) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'run'} is trained and kept, but the picture broken cannot be drawn" in said
    assert Run.open(tmp_path / "run").finished


@pytest.mark.parametrize("at", [1, slow(2), 3])
def test_a_full_disk_ends_in_a_line_and_keeps_what_was_there(tmp_path, monkeypatch, at):
    write, count = Folder.write, []

    def full(self, name, content, **_):
        count.append(name)
        if len(count) > at:
            raise OSError(28, "No space left on device", f"{self.path}/{name}")
        write(self, name, content)

    monkeypatch.setattr(Folder, "write", full)
    monkeypatch.setattr(run_writer, "LAST_TRIES", 0)
    said = "/checkpoints/.*: No space left on device: not written at the end, nor anywhere else; "
    with pytest.raises(OSError, match=said):
        maml_dist.meta_train("sinusoid", run=tmp_path / "run", **SMALL)
    monkeypatch.undo()
    last = Run.open(tmp_path / "run").checkpoints.last
    assert last is not None and last.iteration == 2  # by the file where the index was not written
    assert maml_dist.meta_train(resume=tmp_path / "run", local=True, progress=False).finished


@pytest.mark.parametrize("by", ["recipe", "uri", "link"])
def test_a_strangers_run_does_not_train_in_the_folder_of_mine(run, tmp_path, by):
    theirs, place = tmp_path / "theirs", run.path / "checkpoints"
    theirs.mkdir()
    named = {"recipe": str(place), "uri": f"file://{place}", "link": None}[by]
    (theirs / "recipe.yaml").write_text(yaml.safe_dump({**run.config, "checkpoints": named}))
    if by == "link":
        (theirs / "checkpoints").symlink_to(place)
    before = {path: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ValueError, match=f"is the place of another run, {run.path}"):
        maml_dist.meta_train(
            resume=theirs, iterations=9, keep_checkpoints=1, local=True, progress=False
        )
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_a_copy_of_a_recipe_does_not_train_where_the_run_itself_keeps_its_checkpoints(tmp_path):
    place = tmp_path / "place"
    mine = maml_dist.meta_train("sinusoid", run=tmp_path / "mine", checkpoints=str(place), **SMALL)
    (tmp_path / "theirs").mkdir()
    shutil.copy(mine.path / "recipe.yaml", tmp_path / "theirs")
    before = {path: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ValueError, match=f"is the place of another run, {mine.path}"):
        maml_dist.meta_train(
            resume=tmp_path / "theirs", iterations=9, keep_checkpoints=1, local=True
        )
    assert {path: path.read_bytes() for path in place.iterdir()} == before
    moved = tmp_path / "moved"
    mine.path.rename(moved)
    assert maml_dist.meta_train(resume=moved, iterations=5, local=True, progress=False).finished


@pytest.mark.parametrize("name", ["figures", "tensorboard"])
def test_nothing_is_written_into_a_folder_by_a_link(run, tmp_path, name):
    victim, link = tmp_path / "victim", run.path / name
    victim.mkdir()
    shutil.rmtree(link, ignore_errors=True)
    link.symlink_to(victim)
    with pytest.raises(ValueError, match=f"{name} is a link to {victim}"):
        if name == "figures":
            page.report(run)
        else:
            Metrics(run.path, Writer(), start=4, total=6, quiet=True)
    assert not list(victim.iterdir())
