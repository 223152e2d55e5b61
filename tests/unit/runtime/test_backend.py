"""Runs in threads of one process: the number of threads that they compute with is one for all."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from maml_dist.core.engine.engine import Engine
from maml_dist.core.outer.optimizers import SGD
from maml_dist.core.params import flatten, layout
from maml_dist.learners.maml import MAML
from maml_dist.models.mlp import MLP
from maml_dist.runtime.backend import ResourceRequest
from maml_dist.runtime.local_backend import LocalBackend
from maml_dist.runtime.messages import ShardSpec, Start
from maml_dist.tasks.sinusoid import Sinusoid


def start(place, cpus):
    model = MLP()
    params = {name: p.detach() for name, p in model.named_parameters()}
    meta = flatten(params).numpy()
    engine = Engine(running="eager")
    spec = ShardSpec(Sinusoid(), model, MAML(), engine, layout(params), 0, 2, len(meta))
    resources = place.resources(1, ResourceRequest(cpus, 0), most=2)
    place.start(Start(spec, meta, SGD()), resources)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_run_gives_back_the_threads_that_it_found():
    with LocalBackend() as place:
        start(place, 1)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with LocalBackend() as place:
        start(place, 2)
        assert torch.get_num_threads() == 2


def test_a_second_run_computes_with_as_many_threads_or_is_refused():
    def another(cpus):
        with LocalBackend() as place:
            start(place, cpus)
            return torch.get_num_threads()

    with ThreadPoolExecutor(1) as other, LocalBackend() as place:
        start(place, 1)
        assert other.submit(another, 1).result() == 1
        with pytest.raises(ValueError, match="^cpus_per_shard=2: another run in this process"):
            other.submit(another, 2).result()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
