"""What a user can get wrong: one line on stderr, exit status 2, nothing written, no traceback."""

import json
import os
import sys

import pytest
import yaml
from generated import omniglot_folder

from maml_dist import data, evaluate, report, train
from maml_dist.cli import guarded
from maml_dist.config.compose import compose
from maml_dist.tasks.images import omniglot

BOMB = "".join(
    f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9 if i else ['x'] * 9)}]\n" for i in range(12)
)
BROKEN = {
    "twice.yaml": "alpha: 1\nalpha: 2\n",
    "deep.yaml": "a: " + "[" * 3000 + "]" * 3000,
    "bomb.yaml": BOMB,
    "quoted.yaml": f"a: {json.dumps(BOMB)}",
    "keys.yaml": "1.5: 2",
    "broken.yaml": "task: [1",
    "empty.yaml": "",
    "code.yaml": "task: !!python/object/apply:os.system ['touch hacked']",
    "wide.yaml": yaml.safe_dump({**compose("sinusoid"), "model": {"class_path": "torch.nn.Tanh"}}),
    "linear.yaml": yaml.safe_dump(
        {
            **compose("sinusoid"),
            "model": {
                "class_path": "torch.nn.Linear",
                "init_args": {"in_features": 3, "out_features": 1},
            },
        }
    ),
}


def fail(capsys, monkeypatch, module, words):
    """The one line that the command says."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    assert guarded(module.main) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a few bad files; afterwards nothing else may be in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAML_DIST_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, text in BROKEN.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 256)))
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sinusiod", "did you mean 'sinusoid'"),
        ("sinusoid alhpa=1", "did you mean 'alpha'"),
        ("sinusoid alpha=-1", "learner.alpha=-1.0: must be a positive number"),
        ("alpha=-1", "learner.alpha=-1.0: must be a positive number"),
        ("sinusoid iterations=many", "iterations: Expected a int. Got value: many"),
        ("sinusoid iterations=null", "iterations: Expected a int. Got value: None"),
        ("sinusoid alpha=null", "learner.alpha: Expected a float. Got value: None"),
        ("sinusoid outer.schedule=null", "outer.schedule: Expected a Schedule. Got value: None"),
        ("sinusoid nonsense", "'nonsense': expected key=value"),
        ("sinusoid --run broken.yaml", "broken.yaml is not a folder"),
        ("sinusoid --run broken.yaml/run", "broken.yaml is not a folder"),
        ("--resume nowhere", "nowhere is not a run"),
        ("sinusoid --resume nowhere", "no RECIPE beside it"),
        ("sinusoid init=nowhere", "nowhere is not a run"),
        ("sinusoid --address 127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"),
        ("sinusoid --address ray://head:10001", "--address ray://head:10001: must be HOST:PORT"),
        ("sinusoid --address nonsense", "nonsense"),
        pytest.param(  # starts a Ray
            "sinusoid gpus_per_shard=8 shards=2",
            "need 16 GPUs; there are 0",
            marks=pytest.mark.slow,
        ),
        ("sinusoid --local gpus_per_shard=1", "gpus_per_shard=1: this machine has no GPU"),
        ("sinusoid --local engine.precision=tf32", "engine.precision=tf32: is a GPU's"),
        ("sinusoid checkpoints=gopher://x", "checkpoints=gopher://x"),
        ("broken.yaml", "broken.yaml is not a plain YAML file"),
        ("empty.yaml", "empty.yaml must hold keys and values"),
        ("code.yaml", "code.yaml is not a plain YAML file"),
        ("missing.yaml", "no such file: missing.yaml"),
        ("linear.yaml", "the model does not take the support set, x [10, 1]"),
        ("omniglot-5way-1shot", "maml_dist.data omniglot"),
        ("mini-imagenet-5way-1shot", "maml_dist.data mini-imagenet"),
    ],
)
def test_train(folder, capsys, monkeypatch, words, said):
    assert said in fail(capsys, monkeypatch, train, words.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "the recipe is empty"),
        ([" "], "the recipe is empty"),
        (["sinusoid", ""], "'': expected key=value"),
        (["sinusoid", "--run", ""], "the run's folder is empty"),
        (["--resume", ""], "the run's folder is empty"),
        (["sinusoid", "--address", ""], "address=''"),
        (["sinusoid", "checkpoints=''"], "checkpoints is empty"),
        (["sinusoid", "init='  '"], "init is empty"),
        (["sinusoid", "name=../../x"], "name='../../x': must be"),
        (["sinusoid", "name=.x"], "name='.x'"),
        (["sinusoid", "name=" + "x" * 200], "not over 100 characters"),
        (["sinusoid", "alpha=1", "alpha=2"], "alpha is given twice"),
        (["sinusoid", "task.query=100000000000"], "task.query=100000000000: must be 1 …"),
        (["sinusoid", "task.query=1000000000"], "a task would hold 4,000,000,040 numbers"),
        (["sinusoid", "seed=18446744073709551616"], "seed: 18446744073709551616"),
        (["sinusoid", "seed=-1"], "seed=-1: must be 0 or more"),
        (["sinusoid", "iterations=1e30"], "iterations: Expected a int"),
        (["sinusoid", "iterations=99999999999"], "iterations=99999999999: must be 0 … 2147483647"),
        (["sinusoid", "iterations=010"], "010 would be read as another number"),
        (["sinusoid", "cpus_per_shard=.inf"], "cpus_per_shard=inf: must be 0 … 10000"),
        (["sinusoid", "cpus_per_shard=.nan"], "cpus_per_shard=nan: must be a number"),
        (["sinusoid", "alpha=.nan"], "alpha=nan: must be a number"),
        (["sinusoid", "alpha=.inf"], "learner.alpha=inf: must be a positive number"),
        (["sinusoid", "outer.decays=[.nan, 0]"], "outer.decays=nan: must be a number"),
        (["sinusoid", "paper={1: .inf}"], "paper={1: inf}"),
        (["sinusoid", "paper={-1: 1}"], "paper={-1: 1"),
        (["sinusoid", "shots=true"], "task.shots: Expected a int. Got value: True"),
        (["sinusoid", "first_order=1"], "learner.first_order: Expected a bool. Got value: 1"),
        (["sinusoid", "hidden=3"], "model.hidden: Expected a collections.abc.Sequence"),
        (["sinusoid", "hidden=[0]"], "model.hidden=[0]: each must be 1 or more"),
        (["sinusoid", "hidden=[100000, 100000]"], "weights; at most"),
        (["sinusoid", "learner={class_path: MAML, init_args: 3}"], "learner.init_args=3"),
        (["sinusoid", "model=[1]"], "model: Expected a Module: a class path"),
        (["sinusoid", "alpha=!!python/object/apply:os.system [x]"], "alpha: line 1: !!python"),
        (["sinusoid", "alpha=&a [*a]"], "alpha: line 1: holds itself"),
        (["sinusoid", "hidden=" + "[" * 3000], "hidden: line 1: nested more than 64 deep"),
        (["sinusoid", "--tasks", "3"], "unrecognized arguments: --tasks"),
        (["x" * 300 + ".yaml"], "File name too long"),
        (["a\0.yaml"], "#x0000"),
        (["loop.yaml"], "symbolic links"),
        (["pipe.yaml"], "it is a folder or a device"),
        (["folder.yaml"], "it is a folder or a device"),
        (["twice.yaml"], "twice.yaml is not a plain YAML file: line 2: the key alpha stands there"),
        (["deep.yaml"], "nested more than 64 deep"),
        (["bomb.yaml"], "line 6: aliases make more than 100,000 values"),
        (["quoted.yaml"], "aliases make more than 100,000 values"),
        (["keys.yaml"], "1.5 is no key"),
        (["binary.yaml"], "is not UTF-8 text"),
    ],
)
def test_words_and_files_that_are_none(folder, capsys, monkeypatch, words, said):
    small = ["--local", *(["iterations=2"] if "iterations" not in " ".join(words) else [])]
    small = [] if "--resume" in words else small[1:] if "--address" in words else small
    assert said in fail(capsys, monkeypatch, train, [*words, *small])


@pytest.mark.parametrize("module", [evaluate, report])
def test_no_run(folder, capsys, monkeypatch, module):
    assert "is not a run" in fail(capsys, monkeypatch, module, ["nowhere"])


def test_no_data(folder, capsys, monkeypatch):
    words = ["omniglot", "--source", "nowhere"]
    assert "nowhere" in fail(capsys, monkeypatch, data, words)


def test_more_ways_than_classes_and_other_misfits(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAML_DIST_DATA", str(tmp_path))
    omniglot.convert(
        omniglot_folder(tmp_path / "images", characters=40), tmp_path / "omniglot.arrow"
    )
    for words, said in (
        (["ways=5000", "outputs=5000"], "task.ways=5000: there are only"),
        (["shots=500"], "the smallest class"),
        (["ways=7"], "the loss does not take the model's output [7, 5] with y [7] up to 6"),
        (["channels=3"], "the model does not take the support set, x [5, 1, 28, 28]"),
    ):
        line = fail(capsys, monkeypatch, train, ["omniglot-5way-1shot", "--run", "run", *words])
        assert said in line
        assert not (tmp_path / "run").exists()


CODE = """
import torch
from torch import nn
from maml_dist.tasks.sinusoid import Sinusoid

class Random(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
    def forward(self, x):
        return super().forward(x) + torch.randn_like(x)

class Broadcast(Sinusoid):
    def loss(self, output, batch):
        return nn.functional.mse_loss(output, batch.y[:, 0])
"""


@pytest.mark.parametrize("batching", ["task", "vmap"])
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("model.class_path=users.Random", "model or loss draw random numbers (aten."),
        ("task.class_path=users.Broadcast", "Using a target size"),
        ("hidden=[-1]", "model.hidden=[-1]: each must be 1 or more"),
    ],
)
def test_code_that_cannot_be_meta_learned(tmp_path, capsys, monkeypatch, part, said, batching):
    (tmp_path / "users.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("users", None)
    words = [f"engine.batching={batching}", part, "--local", "--run", "run"]
    assert said in fail(capsys, monkeypatch, train, ["sinusoid", *words])
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_not_written_over(tmp_path, capsys, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("mine: true")
    words = ["sinusoid", "--run", str(tmp_path / "run")]
    assert "already holds a run" in fail(capsys, monkeypatch, train, words)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "mine: true"


def test_one_address_or_none(folder, capsys, monkeypatch):
    words = ["sinusoid", "--local", "--address", "127.0.0.1:1"]
    assert "give one of them" in fail(capsys, monkeypatch, train, words)


def test_an_evaluation_of_what_is_not_there(tmp_path, capsys, monkeypatch):
    import maml_dist

    settings = {"iterations": 0, "engine.running": "eager", "local": True, "progress": False}
    maml_dist.meta_train("sinusoid", run=tmp_path / "run", **settings)
    for words, said in (
        (["--split", "tset"], "split 'tset': there are train, val and test"),
        (["--tasks", "0"], "tasks=0"),
        (["--checkpoint", "nowhere"], "no checkpoint at nowhere"),
    ):
        assert said in fail(capsys, monkeypatch, evaluate, [str(tmp_path / "run"), *words])
    assert not (tmp_path / "run" / "evaluation.json").exists()
