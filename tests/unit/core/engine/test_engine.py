from dataclasses import asdict
from math import inf, nan

import pytest
import torch
from torch import nn
from torch.func import grad

from maml_dist.core.compile.tracing import TracedFunction
from maml_dist.core.engine.engine import GIB, Engine
from maml_dist.learners.maml import MAML
from maml_dist.models.conv4 import Conv4
from maml_dist.models.mlp import MLP
from maml_dist.runtime.local_backend import LocalBackend


class Whole(MAML):
    """Takes its meta-gradient in a way of its own."""

    own_gradient = True

    def gradient(self, loss, query_loss, meta, episode, it):
        return meta, {}


def decided(model, learner=None, device="cpu", **fields):
    engine = Engine(**fields).resolve(model, learner or MAML(1), device)
    return engine.batching, engine.running, engine.memory


def test_small_models_run_in_one_compiled_vmap():
    assert decided(MLP()) == ("vmap", "compiled", "graph")
    assert decided(nn.TransformerEncoderLayer(8, 2)) == ("vmap", "compiled", "graph")


def test_convolutions_run_task_by_task_on_a_cpu_and_are_never_compiled():
    assert decided(Conv4()) == ("task", "traced", "graph")
    assert decided(Conv4(), device="cuda") == ("vmap", "traced", "graph")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recurrent_layers_run_task_by_task_everywhere(device):
    assert decided(nn.GRU(2, 2), device=device) == ("task", "traced", "graph")
    with pytest.raises(ValueError, match="engine.batching=vmap: torch's recurrent layers"):
        decided(nn.GRU(2, 2), device=device, batching="vmap")


def test_more_than_one_inner_step_goes_step_by_step():
    assert decided(MLP(), MAML(2))[2] == "steps"
    assert decided(MLP(), MAML(0))[2] == "graph"
    assert decided(MLP(), Whole(5))[2] == "graph"


def test_what_is_asked_for_is_left_as_it_is():
    asked = {"batching": "vmap", "running": "eager", "memory": "graph"}
    assert decided(Conv4(), MAML(5), **asked) == ("vmap", "eager", "graph")
    assert decided(MLP(), MAML(1), memory="steps")[2] == "steps"
    assert decided(MLP(), Whole(5))[2] == "graph"  # it has no steps
    with pytest.raises(ValueError, match="engine.memory=steps: Whole has a meta-gradient of its"):
        decided(MLP(), Whole(5), memory="steps")


def test_rollouts_on_a_cpu_are_taken_task_by_task():
    for device, picked in (("cpu", ("task", "traced")), ("cuda", ("vmap", "traced"))):
        engine = Engine().resolve(MLP(), MAML(1), device, on_policy=True)
        assert (engine.batching, engine.running) == picked


@pytest.mark.parametrize(("gib", "chunk"), [(1, 4), (0.75, 5), (4, 1), (9, 1), (0.001, 4000)])
def test_a_chunk_is_what_fits_the_budget(gib, chunk):
    engine = Engine(budget=4).resolve(MLP(), MAML(1), "cpu", peak=lambda engine: int(gib * GIB))
    assert engine.chunk == chunk


def test_the_bytes_of_a_task_are_asked_for_where_they_decide_and_nowhere_else():
    def peak(engine):
        assert (engine.batching, engine.memory) == ("vmap", "steps")  # all else is decided
        return GIB

    assert Engine().resolve(MLP(), MAML(2), "cpu", peak=peak).chunk == 4
    never = {"peak": lambda engine: 1 / 0}
    assert Engine(chunk=3).resolve(MLP(), MAML(2), "cpu", **never).chunk == 3
    assert Engine(batching="task").resolve(MLP(), MAML(2), "cpu", **never).chunk is None
    assert Engine(running="eager").resolve(MLP(), MAML(2), "cpu", **never).chunk is None


def shapes(engine, tasks=5):
    tensors = [torch.arange(3.0 * tasks).reshape(tasks, 3), torch.arange(tasks)]
    parts = list(engine.parts(tensors))
    assert torch.equal(torch.cat([part[1].reshape(-1) for part in parts]), tensors[1])
    assert torch.equal(torch.cat([part[0].reshape(-1, 3) for part in parts]), tensors[0])
    return [tuple(part[0].shape) for part in parts]


def test_parts_are_single_tasks_or_chunks_of_nearly_equal_size():
    assert shapes(Engine("task")) == [(3,)] * 5
    assert shapes(Engine("vmap")) == [(5, 3)]
    assert shapes(Engine("vmap", 2)) == [(2, 3), (2, 3), (1, 3)]
    assert shapes(Engine("vmap", 4)) == [(3, 3), (2, 3)]
    assert shapes(Engine("vmap", 9)) == [(5, 3)]


@pytest.mark.parametrize("running", ["eager", "traced"])
def test_a_function_of_one_task_becomes_one_of_a_part(running):
    def slope(shared, x, y):
        return grad(lambda w: (w * x * y).sum())(shared), y

    shared, x, y = torch.tensor(2.0), torch.arange(6.0).reshape(3, 2), torch.arange(3.0)
    for engine in (Engine("task", running=running), Engine("vmap", 2, running=running)):
        run = engine.run(engine.over(slope, shared=1))
        assert isinstance(run, TracedFunction) == (running == "traced")
        results = [run(shared, *part) for part in engine.parts([x, y])]
        assert torch.cat([slope.reshape(-1) for slope, _ in results]).tolist() == [0, 5, 18]
        assert torch.cat([same.reshape(-1) for _, same in results]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [{"chunk": 0}, *({"budget": gib} for gib in (0.0, nan, inf))])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"engine.{next(iter(bad))}="):
        Engine(**bad)


@pytest.mark.parametrize(
    "idle",
    [
        {"budget": 2.0, "batching": "task"},
        {"chunk": 3, "batching": "task"},
        {"budget": 2.0, "running": "eager"},
    ],
)
def test_what_would_do_nothing_is_refused_by_name(idle):
    with pytest.raises(ValueError, match=f"engine.{next(iter(idle))}=.*engine.{list(idle)[1]}="):
        Engine(**idle)


def test_what_auto_leaves_idle_is_dropped_so_that_the_decided_engine_can_be_made_again():
    asked = Engine(chunk=3, budget=2.0)
    for model, device, decided in (
        (Conv4(), "cpu", Engine("task", running="traced", memory="graph")),
        (Conv4(), "cuda", Engine("vmap", 3, 2.0, running="traced", memory="graph")),
        (MLP(), "cpu", Engine("vmap", 3, 2.0, running="compiled", memory="graph")),
    ):
        engine = asked.resolve(model, MAML(1), device)
        assert engine == decided == Engine(**asdict(engine))
        assert engine.resolve(model, MAML(1), "cpu") == engine


def test_the_meta_parameters_are_single_unless_double_is_asked_for():
    dtypes = [Engine(precision=name).dtype for name in ("float32", "bfloat16", "float64")]
    assert dtypes == [torch.float32, torch.float32, torch.float64]


def test_float32_is_rounded_further_on_a_gpu_only_where_asked():
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    with LocalBackend():
        for name in ("tf32", "float32", "float64"):
            Engine(precision=name).set_rounding()
            assert cudnn.allow_tf32 == products.allow_tf32 == (name == "tf32")
    assert (cudnn.allow_tf32, products.allow_tf32) == before
