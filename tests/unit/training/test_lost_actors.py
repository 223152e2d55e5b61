"""Whatever is lost, and whenever: a run ends with the bits and the rows of an undisturbed one."""

from contextlib import nullcontext
from typing import cast

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.runtime.backend import ActorLost
from maml_dist.runtime.local_backend import LocalBackend, LocalGroup
from maml_dist.runtime.remote import Here
from maml_dist.runtime.server import ParameterServer

SMALL = {"iterations": 9, "checkpoint_every": 3, "log_every": 2, "meta_batch": 3, "local": True}
SMALL |= {"validation_tasks": 3, "test_tasks": 4, "test_steps": 2, "progress": False, "slices": 2}
SMALL |= {"engine.running": "eager", "pipeline_depth": 2}
PACES = ("it_per_s", "tasks_per_s", "steps_per_s")


class Faulty(LocalGroup):
    """A group in this process that loses something at some of the calls of `get`."""

    at: tuple[int, ...] = ()
    server_too = False

    def __init__(self, given, device):
        super().__init__(given, device)
        self._given, self._asked, self.losses = given, 0, 0
        self._snapshots = [self.server.state.remote()]
        self.get = self._get

    def _get(self, value):
        self._asked += 1
        if self._asked in self.at:
            self.losses += 1
            raise ActorLost("lost")
        return value

    def submitted(self, it):
        if it % 4 == 0:
            self._snapshots.append(self.server.state.remote())

    def drain(self, failure):
        if not self.server_too:
            return self.server.state.remote()
        given = self._given
        new = ParameterServer(given.meta, given.outer, learned=given.shard.learned)
        self.server = cast(ParameterServer, Here(new))
        return self._snapshots[-1]

    def reform(self, saved, *, stop):
        self.restore(saved)


def flat(params):
    return torch.cat([value.flatten() for _, value in sorted(params.items())]).numpy()


def weights(run):
    return flat(run.weights("last")[0])


def rows(run):
    return [
        {name: value for name, value in row.items() if name not in PACES} for row in run.metrics
    ]


WALK = {"task.episodes": 4, "task.horizon": 6, "iterations": 3}
RECIPES = {
    "sinusoid": ("sinusoid", {}),
    "epochs": ("sinusoid", {"outer.epochs": 3, "iterations": 4}),
    "trpo": ("navigation", WALK),
    "adam": ("navigation", {**WALK, "outer": "Adam"}),
    "adam epochs": ("navigation", {**WALK, "outer": "Adam", "outer.epochs": 3}),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: maml_dist.meta_train(recipe, run=folder / name, **{**SMALL, **settings})
        for name, (recipe, settings) in RECIPES.items()
    }


FEW = {("sinusoid", 3), ("sinusoid", 6), *((name, 2) for name in RECIPES)}


@pytest.mark.parametrize(
    ("recipe", "at", "server_too"),
    [
        pytest.param(name, number, lost, marks=[] if (name, number) in FEW else pytest.mark.slow)
        for name in RECIPES
        for number in range(1, 12 if name == "sinusoid" else 8)
        for lost in (False, True)
    ],
)
def test_a_loss_changes_nothing(tmp_path, monkeypatch, undisturbed, recipe, at, server_too):
    groups = []

    def start(place, given, resources):
        groups.append(Faulty(given, resources.device))
        groups[0].at, groups[0].server_too = (at,), server_too
        return groups[0]

    monkeypatch.setattr(LocalBackend, "start", start)
    torch.set_num_threads(1)
    name, settings = RECIPES[recipe]
    run = maml_dist.meta_train(name, run=tmp_path / "run", **{**SMALL, **settings})
    assert groups[0].losses == 1
    assert not np.array_equal(weights(run), flat(run.initial))  # it has learned
    assert np.array_equal(weights(run), weights(undisturbed[recipe]))
    assert rows(run) == rows(undisturbed[recipe])
    ours, theirs = run.checkpoints, undisturbed[recipe].checkpoints
    assert [(e.iteration, e.score) for e in ours.entries] == [
        (e.iteration, e.score) for e in theirs.entries
    ]


@pytest.mark.parametrize("at", [(1,), (4,), (7,)])
def test_a_run_that_is_stopped_where_all_is_lost_loses_no_row_and_can_be_resumed(
    tmp_path, monkeypatch, undisturbed, at
):
    """The server is lost before it was ever saved, or later; nobody comes; Ctrl-C."""
    stopped = []

    def start(place, given, resources):
        group = Faulty(given, resources.device)
        group.at, group.server_too = at, True
        group.reform = lambda saved, *, stop: stopped.append(True)
        return group

    monkeypatch.setattr(
        "maml_dist.training.loop.interruptible", lambda: nullcontext(lambda: bool(stopped))
    )
    with monkeypatch.context() as patched:
        patched.setattr(LocalBackend, "start", start)
        run = maml_dist.meta_train("sinusoid", run=tmp_path / "run", **SMALL)
    assert stopped and not run.finished
    stopped.clear()
    run = maml_dist.meta_train(resume=run.path, local=True, progress=False)
    assert np.array_equal(weights(run), weights(undisturbed["sinusoid"]))
