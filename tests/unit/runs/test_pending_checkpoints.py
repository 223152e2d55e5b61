"""States that wait for their place: the last and the best, each with its own score."""

import errno

import numpy as np
import pytest
import torch

from maml_dist.runs.checkpoints import Checkpoints
from maml_dist.runs.folder import Folder
from maml_dist.runs.pending_checkpoints import PendingCheckpoints


class Place:
    """Checkpoints in a folder that may be away."""

    def __init__(self, folder, monkeypatch):
        self.away, self.refuses = False, ""
        write = Folder.write

        def refusing(place, name, content, **options):
            if self.away or name == self.refuses:
                raise OSError(errno.EROFS, "Read-only file system", f"{place.path}/{name}")
            write(place, name, content, **options)

        monkeypatch.setattr(Folder, "write", refusing)
        self.checkpoints = Checkpoints(folder, keep=3)
        self.pending = PendingCheckpoints(self.checkpoints, self.save, maximize=False)

    def save(self, saved, place=None):
        tensors = {"meta/w": torch.tensor(saved[1])}
        place = place or self.checkpoints
        place.save(tensors, iteration=saved[0], recipe="{}", maximize=False)

    def due(self, iteration, score, *, validated=True):
        self.pending.keep((iteration, np.full(3, iteration, np.float32), {}))
        self.write()
        if validated:
            self.pending.judge(score)
            self.write()

    def write(self):
        try:
            self.pending.write()
        except OSError:
            assert self.away or self.refuses


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path / "checkpoints", monkeypatch)


def found(place):
    again = Checkpoints(place.checkpoints.folder.path)
    return [(e.iteration, e.score) for e in again.entries], again.best.iteration


def test_the_best_of_those_that_waited_is_the_best(place):
    place.due(1, 5.0)
    place.away = True
    for iteration, score in ((2, 3.0), (3, 1.0), (4, float("nan")), (5, 2.0)):
        place.due(iteration, score)
        assert found(place) == ([(1, 5.0)], 1) and place.pending.last.iteration == iteration
    place.away = False
    place.write()
    assert not place.pending.pending
    assert found(place) == ([(1, 5.0), (3, 1.0), (5, 2.0)], 3)
    weights = Checkpoints(place.checkpoints.folder.path).load("best")[0]
    assert weights["meta/w"].tolist() == [3, 3, 3]


def test_what_is_no_better_than_what_is_written_does_not_wait(place):
    place.due(1, 1.0)
    place.away = True
    place.due(2, 3.0)
    place.due(3, 2.0)
    place.away = False
    place.write()
    assert found(place) == ([(1, 1.0), (3, 2.0)], 1)


def test_a_score_whose_index_could_not_be_written_is_noted_later(place):
    place.due(1, 5.0, validated=False)
    place.refuses = "index.json"
    place.pending.judge(4.0)
    place.write()
    assert found(place) == ([(1, None)], 1) and place.pending.pending
    place.due(2, 6.0)
    place.refuses = ""
    place.write()
    assert found(place) == ([(1, 4.0), (2, 6.0)], 1)


def test_one_that_is_not_validated_yet_has_no_score(place):
    place.away = True
    place.due(1, None, validated=False)
    place.away = False
    place.write()
    assert found(place) == ([(1, None)], 1)
    assert not Checkpoints(place.checkpoints.folder.path).last.validated
    place.pending.judge(2.0)
    place.write()
    assert found(place) == ([(1, 2.0)], 1)


def test_a_resumed_run_judges_its_last(place, tmp_path):
    place.due(1, None, validated=False)
    again = Checkpoints(tmp_path / "checkpoints")
    pending = PendingCheckpoints(again, place.save, maximize=False)
    assert pending.last.iteration == 1 and not pending.last.validated and not pending.pending
    pending.judge(2.0)
    pending.write()
    assert found(place) == ([(1, 2.0)], 1)
