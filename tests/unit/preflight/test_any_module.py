"""Any module can be meta-learned: its meta-gradient is that of a hand-written autograd loop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss

import maml_dist
from maml_dist.core.data.episode import Batch, map_tensors, supervised
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient
from maml_dist.core.model.objective import Objective, running_statistics
from maml_dist.core.params import flatten, layout, unflatten
from maml_dist.core.random import keys
from maml_dist.learners.maml import MAML
from maml_dist.runtime.messages import ShardSpec
from maml_dist.runtime.shard import TaskShard
from maml_dist.tasks.sinusoid import Sinusoid

TASKS, STEPS, ALPHA = 2, 2, 0.1


class Regression(TaskSource):
    def sample(self, key):
        return None

    def collect(self, tasks, *, steps, adapt=None):
        raise AssertionError("not collected here")

    def loss(self, output, batch):
        return mse_loss(output, batch.y)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inside = kind(2, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.inside(x[:, :2])[0][:, -1])  # a trace of each part takes its time


class Cell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(2, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        state = None
        for part in x.unbind(1):
            state = self.cell(part, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x.flatten(1)))).mean(1, keepdim=True)


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("features", torch.randn(6, 5))
        self.register_buffer("shift", torch.randn(5), persistent=False)
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        return self.head(torch.cos(x.flatten(1) @ self.features + self.shift))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5, padding_idx=0)
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x)).mean(1))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True)
        self.inside, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.inside(x).square().mean(1))


def normed(norm, **options):
    layers = nn.Conv1d(3, 4, 1), norm(**options), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)
    return nn.Sequential(*layers)


MODULES = {
    "rnn": lambda: Recurrent(nn.RNN),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "lstm cell": lambda: Cell(nn.LSTMCell),
    "gru cell": lambda: Cell(nn.GRUCell),
    "tied": Tied,
    "buffers": Buffers,
    "words": Words,
    "transformer": Attentive,
    "batch norm": lambda: normed(nn.BatchNorm1d, num_features=4, track_running_stats=False),
    "batch norm, not affine": lambda: normed(nn.BatchNorm1d, num_features=4, affine=False),
    "batch norm, running": lambda: normed(nn.BatchNorm1d, num_features=4),
    "batch norm, mean of all": lambda: normed(nn.BatchNorm1d, num_features=4, momentum=None),
    "group norm": lambda: normed(nn.GroupNorm, num_groups=2, num_channels=4),
    "layer norm": lambda: normed(nn.LayerNorm, normalized_shape=2),
    "instance norm": lambda: normed(nn.InstanceNorm1d, num_features=4, affine=True),
}
# The traces of the others take their time.
TRACED = {"lstm cell", "tied", "buffers", "words", "batch norm, running"}
TASK_BY_TASK = ("rnn", "gru", "lstm", "lstm cell", "gru cell")


def case(name):
    torch.manual_seed(0)
    model = MODULES[name]().double()
    sets = []
    for n in (4, 5):
        x = torch.randn(TASKS, n, 3, 2).double()
        x = torch.randint(7, (TASKS, n, 3)) if name == "words" else x
        sets.append(Batch(x, torch.randn(TASKS, n, 1).double()))
    return model, *sets


def by_hand(model, support, query):
    """The summed meta-gradient, and each task's model after its pass over the queries."""
    names, weights = zip(*model.named_parameters(), strict=True)
    total, models = 0.0, []
    for task in range(TASKS):
        phi = list(weights)

        def loss(phi, batch, task=task):
            models.append(copy.deepcopy(model))  # for its buffers
            output = functional_call(models[-1], dict(zip(names, phi, strict=True)), batch.x[task])
            return mse_loss(output, batch.y[task])

        for _ in range(STEPS):
            gradients = torch.autograd.grad(loss(phi, support), phi, create_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, gradients, strict=True)]
        gradients = torch.autograd.grad(loss(phi, query), weights)
        total = total + torch.cat([g.flatten() for g in gradients])
    return total, models[STEPS :: STEPS + 1]


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    ("name", "running", "memory"),
    [
        *((name, "eager", "graph") for name in MODULES),
        *(
            pytest.param(name, "traced", "steps", marks=[] if name in TRACED else pytest.mark.slow)
            for name in MODULES
        ),
    ],
)
def test_the_meta_gradient_is_that_of_a_hand_written_loop(name, running, memory):
    model, support, query = case(name)
    held = running_statistics(model)
    params = {name: p.detach() for name, p in model.named_parameters()} | held
    learner = MAML(alpha=ALPHA, steps=STEPS)
    engine = Engine("task" if name in TASK_BY_TASK else "vmap", running=running, memory=memory)
    gradient = MetaGradient(engine, learner, Objective(model, Regression()), into=layout(params))
    episodes = supervised(support, query, steps=STEPS)
    vector = flatten(params)
    ours = gradient(vector, episodes, torch.tensor(0.0)).gradient
    again = gradient(vector * 1, map_tensors(torch.clone, episodes), torch.tensor(1.0)).gradient
    with sdpa_kernel(SDPBackend.MATH):
        theirs, models = by_hand(model, support, query)
    size = len(theirs)
    assert (ours[:size] - theirs).norm() <= 1e-10 * theirs.norm()
    torch.testing.assert_close(ours, again, rtol=1e-12, atol=1e-14)
    for kept in held:  # summed over the tasks
        expected = sum(each.state_dict()[kept].double() for each in models)
        torch.testing.assert_close(unflatten(ours, layout(params))[kept], expected)
    assert all(
        torch.equal(value, copy.deepcopy(model).state_dict()[n]) for n, value in held.items()
    )


def test_recurrent_layers_go_task_by_task_and_traced():
    engine = Engine().resolve(Recurrent(nn.LSTM), MAML(), "cpu")
    assert (engine.batching, engine.running) == ("task", "traced")
    with pytest.raises(ValueError, match="engine.batching=vmap: torch's recurrent layers have no"):
        Engine("vmap").resolve(Recurrent(nn.LSTM), MAML(), "cpu")


def test_tied_weights_are_one_meta_parameter():
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == [
        "first.weight", "first.bias", "second.bias",
    ]  # fmt: skip


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        self.embed, self.inside, self.head = nn.Linear(1, 4), layer, nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.inside(self.embed(x)[:, None])[:, 0])


class Doubles(Sinusoid):
    """Sinusoids in float64."""

    def collect(self, tasks, *, steps, adapt=None):
        return map_tensors(lambda tensor: tensor.double(), super().collect(tasks, steps=steps))


SIMPLEST = Engine("task", running="eager", memory="graph", precision="float64")


def shard_gradients(engine, *, slices=1, it=0):
    torch.manual_seed(0)
    model = Dropped().double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    vector = flatten(params).numpy()
    learner = MAML(alpha=0.05, steps=2)
    work = ShardSpec(Doubles(), model, learner, engine, layout(params), 0, 4, len(vector))
    shard = TaskShard(work._replace(slices=slices))
    return sum(shard.gradient(vector, it, slice=n).gradient for n in range(slices))


@pytest.mark.parametrize(
    ("batching", "running", "memory"),
    [
        ("vmap", "eager", "steps"),
        ("task", "traced", "steps"),
        pytest.param("vmap", "traced", "graph", marks=pytest.mark.slow),
    ],
)
def test_dropout_is_the_same_however_tasks_are_differentiated(batching, running, memory):
    ours = shard_gradients(Engine(batching, running=running, memory=memory, precision="float64"))
    np.testing.assert_allclose(ours, shard_gradients(SIMPLEST), rtol=1e-9, atol=1e-12)


def test_dropout_is_the_same_on_any_number_of_shards():
    vmapped = replace(SIMPLEST, batching="vmap")
    whole = shard_gradients(vmapped)
    np.testing.assert_allclose(shard_gradients(vmapped, slices=3), whole, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(shard_gradients(vmapped), whole)


def test_dropout_differs_between_tasks_steps_queries_and_iterations():
    model = nn.Sequential(nn.Dropout(0.5))
    objective, seen = Objective(model, Regression()), []
    x = torch.ones(8, 8)

    class Watching(MAML):
        def step(self, phi, state, context):
            seen.append(objective.output({}, x, key=context.batch.key))
            return phi, state

    learner = Watching(steps=2)
    for it in range(2):
        for key in keys(0, "train", it, [0, 1]):
            support = (Batch(x, x),) * 2
            learner.adapt(objective.loss, {}, support, torch.tensor(0.0), key)
    assert len({tuple(mask.flatten().tolist()) for mask in seen}) == 8


USERS = """
from torch import nn

class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8, momentum=None), nn.Tanh())
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, x):
        return self.head(self.body(x))
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Meta-trains the user's model for some iterations."""
    (tmp_path / "users_normed.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "normed.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"class_path": "users_normed.Normed"},
                "task": {"class_path": "Sinusoid"},
                "learner": {"class_path": "MAML"},
                "outer": {"class_path": "Adam"},
            }
        )
    )

    def train(iterations, running, **settings):
        return maml_dist.meta_train(
            tmp_path / "normed.yaml",
            run=tmp_path / str(iterations),
            iterations=iterations,
            checkpoint_every=2,
            meta_batch=3,
            validation_tasks=2,
            local=True,
            progress=False,
            **{"engine.running": running, **settings},
        )

    return train


def test_running_statistics_and_dropout_from_training_to_the_loaded_model(trained):
    run = trained(4, "eager")
    evaluation = maml_dist.meta_test(run, tasks=3, steps=1)
    assert [r["mode"] for r in evaluation["results"]] == ["transductive", "inductive", "running"]
    loaded = maml_dist.load(run.path, checkpoint="last")
    weights, _ = run.weights("last")
    norm = loaded.body[1]
    assert torch.equal(norm.running_mean, weights["body.1.running_mean"])
    assert not torch.equal(norm.running_mean, torch.zeros(8))
    assert int(norm.num_batches_tracked) == 4
    assert all(part.training for part in loaded.modules())
    # As torch's own in both modes.
    x, state = torch.randn(5, 1), loaded.state_dict()
    h = x @ state["body.0.weight"].T + state["body.0.bias"]
    h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    h = torch.tanh(h * norm.weight + norm.bias) @ state["head.1.weight"].T
    torch.testing.assert_close(loaded.eval()(x), h + state["head.1.bias"])
    before = norm.running_mean.clone()
    loaded.train()(x)
    assert not torch.equal(norm.running_mean, before)
    adapted = loaded.eval().adapt(x, x.sin())
    assert not adapted.training and torch.equal(adapted.body[1].running_mean, norm.running_mean)


def test_averaged_weights_are_loaded_with_averaged_statistics(trained):
    one, two = (trained(iterations, "eager", **{"outer.average": 0.5}) for iterations in (1, 2))
    expected = (0.5 * one.saved()[1] + two.saved()[1]) / 1.5
    judged = two.weights("last")[0]
    np.testing.assert_allclose(flatten(judged).numpy(), expected, rtol=1e-5, atol=1e-7)
    loaded = maml_dist.load(two.path, checkpoint="last").state_dict()
    for name in ("body.0.weight", "body.1.running_mean", "body.1.running_var"):
        assert torch.equal(loaded[name], judged[name])
