"""Chunks by the memory that a device has free; what the device would say is made up."""

import warnings
import weakref

import pytest
import torch

from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.engine import chunks
from maml_dist.core.engine.chunks import Chunks, fitted
from maml_dist.core.engine.engine import GIB, Engine
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.core.random import keys
from maml_dist.learners.maml import MAML
from maml_dist.models.mlp import MLP
from maml_dist.tasks.sinusoid import Sinusoid

GPU, TASKS, ROOM = torch.device("cuda"), 7, 2
IT = torch.tensor(0.0)


class Small(Engine):
    """Has memory for `ROOM` tasks at once."""

    def run(self, function, *, compiled=True):
        run = super().run(function, compiled=compiled)

        def limited(*tensors):
            if len(tensors[-1]) > ROOM:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return run(*tensors)

        return limited


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(chunks, "_said", set())


@pytest.fixture
def memory(monkeypatch):
    """Says what a GPU has free, and what torch holds of it, in GiB."""

    def say(free, *, reserved=0.0, allocated=0.0):
        for name, value in (("reserved", reserved), ("allocated", allocated)):
            monkeypatch.setattr(torch.cuda, f"memory_{name}", lambda device, v=value: int(v * GIB))
        told = int(free * GIB), 80 * GIB
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: told)

    return say


def case():
    torch.manual_seed(0)
    model = MLP(1, 1, hidden=(8,)).double()
    x, y = torch.randn(2, TASKS, 5, 1, dtype=torch.float64)
    episode = supervised(Batch(x, y), Batch(x + 1, y), steps=2)
    episode = episode._replace(key=keys(0, "train", 0, range(TASKS)))
    return {name: p.detach() for name, p in model.named_parameters()}, model, episode


def computed(kind, engine):
    meta, model, episode = case()
    functions = kind(engine, MAML(steps=2), Objective(model, Sinusoid()), into=layout(meta))
    return functions, lambda: functions(flatten(meta), episode, IT)


@pytest.mark.parametrize(
    ("free", "held", "chunk"),
    [
        (100, {}, 16),  # as much as the budget needs
        (5, {}, 16),
        (2.5, {}, 8),  # 0.8 of it is half the budget
        (1.5, {"reserved": 2.0, "allocated": 1.0}, 8),  # torch's own blocks are free as well
        (0.01, {}, 1),
    ],
)
def test_a_chunk_is_cut_to_the_free_memory(memory, free, held, chunk):
    memory(free, **held)
    engine = Engine("vmap", 16, running="traced", memory="graph")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [fitted(engine, GPU).chunk for _ in range(2)] == [chunk] * 2
    said = [str(warning.message) for warning in caught]
    assert len(said) == (chunk < 16)
    if said:
        assert said[0].startswith("engine.chunk=16: the GPU has")
        assert said[0].endswith(f"engine.budget is 4; goes on with {chunk}")


def test_on_a_cpu_or_without_a_chunk_nothing_is_asked():
    engine = Engine("vmap", 16, running="traced", memory="graph")
    assert fitted(engine, torch.device("cpu")) is engine
    alone = Engine("task", running="traced", memory="graph")
    assert fitted(alone, GPU) is alone


@pytest.mark.parametrize("memory_by", ["graph", "steps"])
@pytest.mark.parametrize("kind", [MetaGradient, PathScores])
def test_out_of_memory_halves_the_chunk_and_the_result_is_the_same(kind, memory_by):
    settings = {"running": "eager", "memory": memory_by}
    functions, compute = computed(kind, Small("vmap", **settings))
    expected = computed(kind, Engine("vmap", 1, **settings))[1]()
    with pytest.warns(UserWarning, match="engine.chunk=7: more than the GPU's free.*on with 3"):
        first = compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, and not tried again
        second = compute()
    assert functions._chunks._engine.chunk in (1, 2)
    for found in (first, second):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", [Engine("vmap", 1), Engine("task")])
def test_a_single_task_that_does_not_fit_is_an_error(engine):
    def work(parts):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Chunks(engine).over([torch.zeros(3, 2)], work)


def test_what_was_computed_before_it_did_not_fit_is_let_go_of():
    held = []

    def work(parts):
        if len(parts) == 1:
            result = torch.ones(4)
            held.append(weakref.ref(result))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert held[0]() is None
        return len(parts)

    with pytest.warns(UserWarning, match="engine.chunk=4"):
        assert Chunks(Engine("vmap")).over([torch.zeros(4)], work) == 2


def test_a_chunk_is_halved_until_its_tasks_fit():
    prepared = []

    def work(parts):
        prepared.append([len(part[0]) for part in parts])
        if len(parts[0][0]) > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(len(part[0]) for part in parts)

    with pytest.warns(UserWarning):
        assert Chunks(Engine("vmap", 8)).over([torch.zeros(8)], work) == 8
    assert prepared == [[8], [4, 4], [2, 2, 2, 2]]
