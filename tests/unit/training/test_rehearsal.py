"""The rest of a run's life in small: what would end it later is said before it starts."""

import pytest
import torch
import yaml

from maml_dist.training.rehearsal import refuse_unpicklable, rehearse
from maml_dist.training.trainer import prepare

USERS = """
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from maml_dist.tasks.sinusoid import Sinusoid

class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

class Locked(Plain):  # cannot be copied
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

class Mixed(Plain):  # of two precisions
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
    def forward(self, x):
        return super().forward(x) * self.scale.to(x.dtype)
    def to(self, *_):
        return self

class Drawn(Plain):  # where nothing seeds it and no checkpoint finds it
    def __init__(self):
        super().__init__()
        w = float(np.random.default_rng().normal())
        self.scaled = lambda x: x * w
    def forward(self, x):
        return self.scaled(super().forward(x))

@dataclass(frozen=True)
class Opened(Sinusoid):
    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "file", open(__file__, "rb"))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A prepared run of the user's classes."""
    (tmp_path / "users_rehearsed.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(model="Plain", task="Sinusoid", **settings):
        classes = {
            "model": f"users_rehearsed.{model}",
            "task": task,
            "learner": "MAML",
            "outer": "Adam",
        }
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(yaml.safe_dump({k: {"class_path": v} for k, v in classes.items()}))
        return prepare(recipe, {"engine.running": "eager", **settings}, run=tmp_path / "run")

    return make


def test_a_run_as_most_passes_and_its_objects_are_left_alone(run):
    prepared = run()
    before = {name: p.clone() for name, p in prepared.initial.items()}
    rehearse(prepared)
    assert type(prepared.experiment.model).__name__ == "Plain"
    assert not hasattr(prepared.experiment.model, "adapt")
    assert all(torch.equal(value, before[name]) for name, value in prepared.initial.items())
    assert not prepared.path.exists()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("recipe", ["sinusoid", "navigation", "sinusoid-maml-plus-plus"])
def test_recipes_pass(tmp_path, recipe, precision):
    settings = {"engine.precision": precision}
    if recipe == "navigation":
        settings |= {"task.episodes": 2, "task.horizon": 3}
    rehearse(prepare(recipe, settings, run=tmp_path / "run"))


def test_a_model_that_cannot_be_copied_is_refused(run):
    with pytest.raises(ValueError, match="could not be loaded, adapted and copied, because of the"):
        rehearse(run("Locked"))


def test_what_a_model_predicts_by_and_no_checkpoint_holds_is_refused(run):
    with pytest.raises(ValueError, match="the model made again does not predict the same"):
        rehearse(run("Drawn"))


def test_parameters_of_two_precisions_keep_their_values_in_a_checkpoint(run):
    rehearse(run("Mixed"))


def test_an_open_file_is_named_where_the_run_goes_over_ray(run):
    with pytest.raises(ValueError, match=r"task\.file: cannot be sent to Ray's actors .*--local"):
        refuse_unpicklable(run(task="users_rehearsed.Opened"))
    refuse_unpicklable(run())
