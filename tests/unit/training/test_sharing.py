"""Whether a meta-batch is worth sharing out."""

import math
from dataclasses import dataclass

import pytest
import torch

from maml_dist.runtime.backend import ResourceRequest
from maml_dist.tasks.sinusoid import Sinusoid
from maml_dist.training import sharing
from maml_dist.training.sharing import worth_sharing
from maml_dist.training.trainer import prepare

SMALL = {"engine.running": "eager", "meta_batch": 4, "slices": 2}


@pytest.fixture
def run(tmp_path):
    return prepare("sinusoid", SMALL, run=tmp_path / "run")


@pytest.mark.parametrize(
    ("one", "several", "worth", "seconds"),
    [
        (1.0, None, True, 4.0),  # a task alone takes long: the rest is not timed, nor compiled
        (0.001, 0.0009, False, 0.0018),  # of each of two slices
        (0.001, 0.0011, True, 0.0022),
    ],
)
def test_an_iteration_that_lasts_a_hundred_rounds_is(
    run, monkeypatch, one, several, worth, seconds
):
    def taken(run, spec, request, times):
        if spec.meta_batch == 1:
            return one
        assert several is not None
        return several

    monkeypatch.setattr(sharing, "_seconds", taken)
    monkeypatch.setattr(sharing, "_round", lambda size: 0.00002)
    found = worth_sharing(run, ResourceRequest(1, 0.0))
    assert found == (worth, pytest.approx(seconds))


def test_it_is_timed(run):
    threads = torch.get_num_threads()
    worth, seconds = worth_sharing(run, ResourceRequest(1, 0.0))
    assert isinstance(worth, bool) and 0 < seconds < math.inf
    assert 0 < sharing._round(10) < sharing._round(3_000_000)
    assert torch.get_num_threads() == threads


@dataclass(frozen=True)
class Endless(Sinusoid):
    """One whose losses are not finite."""

    def loss(self, output, batch):
        return super().loss(output, batch) * math.inf


def test_what_diverges_is_left_to_the_run(run, monkeypatch):
    spec = run.shard_spec._replace(source=Endless())
    monkeypatch.setattr(type(run), "shard_spec", spec)
    assert worth_sharing(run, ResourceRequest(1, 0.0)) == (True, math.inf)
