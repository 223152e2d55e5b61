"""On a GPU a shard computes what it computes on a CPU. Without one, nothing here runs.

`python -m pytest -m gpu`, or as a part of benchmarks/gpu.py.
"""

import warnings

import numpy as np
import pytest
import torch
from generated import fill_data_home

import maml_dist
from maml_dist.config.compose import compose
from maml_dist.core.data.episode import Batch, map_tensors, supervised
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.core.random import keys
from maml_dist.learners.maml import MAML
from maml_dist.models.mlp import MLP
from maml_dist.runs.run import Run
from maml_dist.runtime.shard import TaskShard
from maml_dist.tasks.sinusoid import Sinusoid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = "cuda"
EXACT = 1e-9  # relative, in float64
SMALL = {"meta_batch": 3, "validation_tasks": 2, "slices": 1, "engine.precision": "float64"}
RECIPES = {
    "sinusoid": {"steps": 2},
    "omniglot-5way-1shot": {"steps": 2, "filters": 8},
    "navigation": {"task.episodes": 4, "task.horizon": 10},
}
WAYS = {
    "eager-graph": {"engine.running": "eager", "engine.memory": "graph"},
    "traced-graph": {"engine.running": "traced", "engine.memory": "graph"},
    "traced-steps": {"engine.running": "traced", "engine.memory": "steps"},
    "alone-traced": {"engine.running": "traced", "engine.batching": "task"},
}


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        home = tmp_path_factory.mktemp("data")
        patched.setenv("MAML_DIST_DATA", str(fill_data_home(home)))
        yield


@pytest.fixture(autouse=True)
def rounding():
    """What an engine sets for the whole process, as it was."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    yield
    cudnn.allow_tf32, products.allow_tf32 = before


def shard(recipe, device, folder, **settings):
    """A shard of its own model, and its first parameters."""
    run = Run(folder, compose(recipe, {**SMALL, **RECIPES[recipe], **settings}))
    return TaskShard(run.shard_spec, device=device), flatten(run.initial).numpy()


def apart(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the CPU says, in float64 and eagerly: contributions and scores."""
    known = {}
    for recipe in RECIPES:
        folder = tmp_path_factory.mktemp(recipe)
        on_cpu, meta = shard(recipe, "cpu", folder, **WAYS["eager-graph"])
        scores = on_cpu.scores(meta, 0, split="val", tasks=2, steps=1)
        known[recipe] = on_cpu.gradient(meta, 0), scores
    return known


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_shards_gradient_and_scores_are_those_of_the_cpu(recipe, way, expected, tmp_path):
    on_gpu, meta = shard(recipe, GPU, tmp_path, **WAYS[way])
    contribution, scores = expected[recipe]
    for _ in range(2):  # a trace is made, and replayed
        found = on_gpu.gradient(meta, 0)
        assert apart(found.gradient, contribution.gradient) < (
            1e-4 if recipe == "navigation" else EXACT  # policies act in float32
        )
        assert found.metrics == pytest.approx(contribution.metrics, rel=1e-4)
    again = on_gpu.scores(meta, 0, split="val", tasks=2, steps=1)
    for name, by in scores.items():
        np.testing.assert_allclose(again[name], by, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "most"), [("float32", 1e-3), ("tf32", 0.1), ("bfloat16", 0.3)]
)
def test_other_precisions_are_rounded_no_further(precision, most, expected, tmp_path):
    settings = {"engine.running": "traced", "engine.precision": precision}
    on_gpu, meta = shard("sinusoid", GPU, tmp_path, **settings)
    off = apart(on_gpu.gradient(meta, 0).gradient, expected["sinusoid"][0].gradient)
    assert off < most


def gradient_of(engine, *, tasks, width=40):
    """The meta-gradient of sinusoids as a function of nothing, and its memory by one call."""
    torch.manual_seed(0)
    model = MLP(1, 1, hidden=(width, width)).to(GPU)
    meta = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(tasks, 10, 1)
    episode = supervised(Batch(x, x.sin()), Batch(x + 1, x.cos()), steps=2)
    episode = episode._replace(key=keys(0, "train", 0, range(tasks)))
    episode = map_tensors(lambda tensor: tensor.to(GPU), episode)
    learner, it = MAML(alpha=0.01, steps=2), torch.zeros((), device=GPU)
    gradient = MetaGradient(engine, learner, Objective(model, Sinusoid()), into=layout(meta))
    return lambda: gradient(flatten(meta), episode, it).gradient


@pytest.mark.parametrize("memory", ["graph", "steps"])
def test_compiled_is_eager_and_no_replay_of_a_cuda_graph_changes_a_result(memory):
    settings = {"batching": "vmap", "memory": memory}
    eager = gradient_of(Engine(running="eager", **settings), tasks=4)()
    compiled = gradient_of(Engine(running="compiled", **settings), tasks=4)
    first = compiled()
    held = first.clone()
    for _ in range(3):
        torch.testing.assert_close(compiled(), eager, rtol=1e-3, atol=1e-5)
    assert torch.equal(first, held)


@pytest.mark.parametrize("memory", ["graph", "steps"])
@pytest.mark.parametrize(("batching", "chunk"), [("vmap", 2), ("task", None)])
def test_no_task_waits_for_the_device(batching, chunk, memory):
    compute = gradient_of(Engine(batching, chunk, running="traced", memory=memory), tasks=6)
    compute()
    torch.cuda.set_sync_debug_mode("error")
    try:
        compute()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_does_not_fit_is_computed_in_smaller_chunks():
    settings = {"batching": "vmap", "running": "eager", "memory": "graph"}
    size = {"tasks": 64, "width": 512}
    expected = gradient_of(Engine(chunk=4, **settings), **size)()
    whole = gradient_of(Engine(**settings), **size)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    whole()
    taken = torch.cuda.max_memory_reserved() - before
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    small = gradient_of(Engine(**settings), **size)
    try:
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + taken / 2) / total
        )
        with pytest.warns(UserWarning, match="engine.chunk=64: more than the GPU's free memory"):
            found = small()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.ray
def test_two_shards_share_a_gpu_over_ray(tmp_path, ray_here):
    settings = {"iterations": 4, "checkpoint_every": 2, "validation_tasks": 4, "slices": 2}
    settings |= {"meta_batch": 4, "engine.running": "traced", "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = [
            maml_dist.meta_train("sinusoid", run=tmp_path / name, **settings, **where)
            for name, where in (
                ("ray", {"shards": 2, "gpus_per_shard": 0.5}),
                ("here", {"local": True, "gpus_per_shard": 0}),
            )
        ]
    assert runs[0].config["gpus_per_shard"] == 0.5
    on_gpu, on_cpu = (flatten(run.weights("last")[0]).numpy() for run in runs)
    assert apart(on_gpu, on_cpu) < 1e-3
