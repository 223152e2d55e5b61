"""A device is waited for where a tensor's value is read. No task and no step of one reads any."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.core.random import keys
from maml_dist.learners.imaml import IMAML
from maml_dist.learners.maml import MAML
from maml_dist.learners.maml_plus_plus import MAMLPlusPlus
from maml_dist.learners.meta_sgd import MetaSGD
from maml_dist.learners.reptile import Reptile
from maml_dist.models.conv4 import Conv4
from maml_dist.tasks.sinusoid import Sinusoid

# How Python asks a tensor for its values, and the operations whose results have a shape or a number
# that depends on values.
ASKED = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "equal"}
COMPUTED = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
LEARNERS = {
    "maml": MAML(steps=2),
    "meta-sgd": MetaSGD(steps=2),
    "maml++": MAMLPlusPlus(steps=2, multi_step_iterations=0),
    "reptile": Reptile(steps=2),
    "imaml": IMAML(steps=2),
}
ENGINES = [
    Engine(batching, chunk, running=running, memory=memory)
    for batching, chunk in (("task", None), ("vmap", 1))
    for running in ("eager", "traced")
    for memory in ("graph", "steps")
]
IT = torch.tensor(3.0)


class Labels(Sinusoid):
    def loss(self, output, batch):
        return cross_entropy(output, batch.y)

    def score(self, output, query):
        return {"mse": (output.argmax(-1) == query.y).float().mean()}


class Asked(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ASKED:
            self.reads.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Computed(TorchDispatchMode):
    def __init__(self, reads):
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.removeprefix("aten::") in COMPUTED:
            self._reads.append(str(func))
        return func(*args, **(kwargs or {}))


def reads_of(compute):
    """What is read in the second call; in the first, traces are made."""
    compute()
    with Asked() as asked, Computed(asked.reads):
        compute()
    return asked.reads


def reads(kind, engine, learner, *, tasks, convolves=False):
    torch.manual_seed(0)
    model = Conv4(3, channels=1, filters=2, size=8) if convolves else nn.Linear(8, 3)
    meta = learner.init({name: p.detach() for name, p in model.named_parameters()})
    shape = (1, 8, 8) if convolves else (8,)
    x, y = torch.randn(tasks, 3, *shape), torch.arange(3).expand(tasks, 3)
    episode = supervised(Batch(x, y), Batch(x + 1, y), steps=learner.steps)
    episode = episode._replace(key=keys(0, "train", 0, range(tasks)))
    functions = kind(engine, learner, Objective(model, Labels()), into=layout(meta))
    return reads_of(lambda: functions(flatten(meta), episode, IT))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: f"{e.batching}-{e.running}-{e.memory}")
@pytest.mark.parametrize("name", LEARNERS)
def test_a_meta_gradient_reads_no_value(name, engine):
    learner = LEARNERS[name]
    if learner.own_gradient and engine.memory == "steps":
        pytest.skip("this learner is differentiated in one graph")
    assert reads(MetaGradient, engine, learner, tasks=3) == []


@pytest.mark.parametrize("engine", ENGINES[4::3], ids=lambda e: f"{e.running}-{e.memory}")
def test_nor_does_one_of_convolutions(engine):
    assert reads(MetaGradient, engine, LEARNERS["maml"], tasks=3, convolves=True) == []


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_weights_of_the_steps_losses_are_read_once_for_all_tasks(tasks):
    learner = replace(LEARNERS["maml++"], multi_step_iterations=10)
    engine = Engine("vmap", 1, running="traced", memory="steps")
    assert reads(MetaGradient, engine, learner, tasks=tasks) == ["tolist"]


@pytest.mark.parametrize("engine", ENGINES[::2], ids=lambda e: f"{e.batching}-{e.running}")
def test_scores_read_no_value(engine):
    assert reads(PathScores, engine, LEARNERS["maml"], tasks=3) == []


@pytest.mark.parametrize(
    "read",
    [
        torch.Tensor.item,
        torch.Tensor.tolist,
        bool,
        float,
        lambda x: x.cpu(),
        lambda x: torch.zeros(3)[x > 0],
        lambda x: torch.ops.aten._local_scalar_dense.default(x),
    ],
)
def test_a_value_that_is_read_is_seen(read):
    assert reads_of(lambda: read(torch.ones(()))) != []
