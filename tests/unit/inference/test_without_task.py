"""A model is loaded and adapts where its task source, its data or its environment is not there."""

import json
import shutil
import sys

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

import maml_dist
from maml_dist.config import trust
from maml_dist.runs.spaces import noted

SMALL = {"local": True, "progress": False, "iterations": 0, "engine.running": "eager"}
SMALL |= {"validation_tasks": 2, "test_steps": 1}
LINES = """
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import torch
from maml_dist import Batch, ClassData, TaskSource, supervised


@dataclass(frozen=True)
class Lines(TaskSource):
    path: str

    def __post_init__(self):
        Path(self.path).read_text()

    def sample(self, key):
        return key.rng().normal(size=(1, 1)), key.rng(1).uniform(-1, 1, (8, 1))

    def collect(self, tasks, *, steps, adapt=None):
        slope, x = (torch.stack([torch.tensor(v).float() for v in part]) for part in zip(*tasks))
        support, query = map(Batch, x.chunk(2, dim=1), (slope * x).chunk(2, dim=1))
        return supervised(support, query, steps=steps)

    def loss(self, output, batch):
        return (output - batch.y).abs().mean()


class Letters(ClassData):
    def __init__(self, path: str):
        Path(path).read_text()

    def classes(self, split):
        return [np.full((4, 1, 28, 28), k, np.uint8) for k in range(6)]
"""
REACH = """
import gymnasium
import numpy as np


class Reach(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def sample_task(self):
        return self.np_random.uniform(-1, 1, 2)

    def set_task(self, task):
        self.goal = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3), {}

    def step(self, action):
        return np.zeros(3), -float(np.square(action - self.goal).sum()), False, False, {}
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Trains a recipe beside the files of one's own; then they are gone, if asked."""
    monkeypatch.setattr(trust, "_trusted", set(trust._trusted))
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in (("lines.py", LINES), ("reach.py", REACH), ("data.txt", "")):
        (folder / name).write_text(text)

    def make(task, model=None, learner=None, **overrides):
        recipe = {
            "task": task,
            "model": model or {"class_path": "MLP"},
            "learner": learner or {"class_path": "MAML"},
            "outer": {"class_path": "Adam"},
        }
        (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
        given = SMALL | overrides
        run = maml_dist.meta_train(folder / "recipe.yml", run=tmp_path / "run", **given)
        return run, folder

    return make


def forgotten(monkeypatch):
    """As another process: no module of one's own is loaded, none is trusted."""
    monkeypatch.setattr(trust, "_trusted", set())
    monkeypatch.setattr(trust, "_given", [])
    for name in [name for name in sys.modules if "user_code." in name]:
        monkeypatch.delitem(sys.modules, name)


X, Y = torch.linspace(-1, 1, 5)[:, None], torch.linspace(-2, 2, 5)[:, None]


def lines(folder):
    return {"class_path": "lines.Lines", "init_args": {"path": str(folder / "data.txt")}}


@pytest.mark.parametrize("lost", ["module", "data"])
def test_of_a_source_of_ones_own_the_loss_is_to_be_given(made, tmp_path, monkeypatch, lost):
    run, folder = made(lines(tmp_path / "mine"))
    before = maml_dist.load(run.path)
    expected = before.adapt(X, Y)
    if lost == "module":
        shutil.rmtree(folder)
        forgotten(monkeypatch)
        reason = "No module named 'lines'"
    else:
        (folder / "data.txt").unlink()
        reason = "data.txt"
    model = maml_dist.load(run.path)
    assert torch.equal(model(X), before(X))
    for call in (model.adapt, model.adapt_many):
        with pytest.raises(ValueError, match=f"{reason}.*loss=") as error:
            call(X, Y)
        assert "\n" not in str(error.value)
    given = model.adapt(X, Y, loss=F.l1_loss)
    torch.testing.assert_close(given.state_dict(), expected.state_dict())
    with pytest.raises(ValueError, match=reason):  # what draws tasks needs them as ever
        maml_dist.meta_test(maml_dist.Run.open(run.path))


def test_what_is_there_and_not_trusted_is_refused(made, tmp_path, monkeypatch):
    run, folder = made(lines(tmp_path / "mine"))
    forgotten(monkeypatch)
    with pytest.raises(ValueError, match=f"refused, .*--trust {folder}"):
        maml_dist.load(run.path)
    assert maml_dist.load(run.path, trust=folder).adapt(X, Y)


@pytest.mark.parametrize("lost", ["module", "data"])
def test_few_shot_needs_no_data(made, tmp_path, monkeypatch, lost):
    letters = {
        "class_path": "lines.Letters",
        "init_args": {"path": str(tmp_path / "mine/data.txt")},
    }
    task = {"class_path": "FewShot", "init_args": {"data": letters, "ways": 3, "query": 1}}
    model = {"class_path": "MLP", "init_args": {"inputs": 784, "outputs": 3, "hidden": [4]}}
    run, folder = made(task, model)
    x, y = torch.rand(6, 1, 28, 28), torch.arange(3).repeat(2)
    expected = maml_dist.load(run.path).adapt(x, y)(x)
    if lost == "module":
        shutil.rmtree(folder)
        forgotten(monkeypatch)
    else:
        (folder / "data.txt").unlink()
    model = maml_dist.load(run.path)
    assert torch.equal(model.adapt(x, y)(x), expected)
    with pytest.raises(ValueError, match="class of each example"):
        model.adapt(x, y.float())


def test_a_policy_needs_no_environment_but_the_one_it_adapts_in(made, tmp_path, monkeypatch):
    task = {
        "class_path": "GymTasks",
        "init_args": {"env": "reach.Reach", "horizon": 4, "episodes": 3},
    }
    policy = {"class_path": "GaussianPolicy", "init_args": {"obs_dim": 3, "action_dim": 2}}
    run, folder = made(task, policy)
    found: dict = {}
    exec(REACH, found)
    env = found["Reach"]()
    env.set_task(np.ones(2))
    expected = maml_dist.load(run.path).adapt(env, seed=3)
    shutil.rmtree(folder)
    forgotten(monkeypatch)
    model = maml_dist.load(run.path)
    obs = np.array([0.1, 0.2, 0.3])
    assert np.array_equal(model.adapt(env, seed=3).act(obs), expected.act(obs))
    with pytest.raises(ValueError, match=r"must be \[3\]"):
        model.act(obs[:2])
    with pytest.raises(ValueError, match="takes Box.*the policy acts by 2 numbers"):
        model.adapt(gymnasium.make("Pendulum-v1"))
    file = run.path / "spaces.json"
    file.write_text(json.dumps({"state_dim": "3"}))
    with pytest.raises(ValueError, match="spaces.json"):
        maml_dist.load(run.path)
    file.unlink()  # as of a run of an earlier version
    with pytest.raises(ValueError, match="reach"):
        maml_dist.load(run.path)


def test_what_other_objects_lack_is_told_as_ever(made, tmp_path):
    run, folder = made(lines(tmp_path / "mine"))
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    shutil.rmtree(folder)
    for key, named in (("model", "nowhere.Net"), ("learner", "nowhere.Learner")):
        changed = {**recipe, key: {"class_path": named, "init_args": {}}}
        (run.path / "recipe.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(ValueError, match=f"{key}.*nowhere"):
            maml_dist.load(run.path)


def test_supervised_runs_note_no_spaces(made, tmp_path):
    run, _ = made({"class_path": "Sinusoid"})
    assert noted(run.path) is None and not (run.path / "spaces.json").exists()
