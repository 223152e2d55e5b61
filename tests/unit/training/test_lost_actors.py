"""Whatever is lost, and whenever: a run ends with the bits and the rows of an undisturbed one."""

from typing import cast

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.runtime.backend import ActorLost
from maml_dist.runtime.local_backend import LocalBackend, LocalGroup, _Here
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
        self._snapshots = [(0, given.meta, {})]
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
        self.server = cast(ParameterServer, _Here(new))
        return self._snapshots[-1]

    def reform(self, saved, *, stop):
        self.restore(saved)


def weights(run):
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()]).numpy()


def rows(run):
    return [
        {name: value for name, value in row.items() if name not in PACES} for row in run.metrics
    ]


RECIPES = {"sinusoid": {}, "navigation": {"task.episodes": 2, "task.horizon": 5, "iterations": 3}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: maml_dist.meta_train(name, run=folder / name, **{**SMALL, **settings})
        for name, settings in RECIPES.items()
    }


@pytest.mark.parametrize("server_too", [False, True])
@pytest.mark.parametrize(
    ("recipe", "at"),
    [
        *(("sinusoid", (number,)) for number in range(1, 12)),
        ("sinusoid", (2, 3, 4)),
        *(("navigation", (number,)) for number in (1, 2, 4, 7)),
    ],
)
def test_a_loss_changes_nothing(tmp_path, monkeypatch, undisturbed, recipe, at, server_too):
    groups = []

    def start(place, given, resources):
        groups.append(Faulty(given, resources.device))
        groups[0].at, groups[0].server_too = at, server_too
        return groups[0]

    monkeypatch.setattr(LocalBackend, "start", start)
    torch.set_num_threads(1)
    run = maml_dist.meta_train(recipe, run=tmp_path / "run", **{**SMALL, **RECIPES[recipe]})
    assert groups[0].losses == len(at)
    assert np.array_equal(weights(run), weights(undisturbed[recipe]))
    assert rows(run) == rows(undisturbed[recipe])
    ours, theirs = run.checkpoints, undisturbed[recipe].checkpoints
    assert [(e.iteration, e.score) for e in ours.entries] == [
        (e.iteration, e.score) for e in theirs.entries
    ]
