"""What cannot be meta-learned is said in one line, with what would do; the rest is let pass."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F
from torch.nn.functional import dropout as bound_before
from torch.utils.checkpoint import checkpoint

from maml_dist.config.experiment import Experiment
from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.engine.engine import Engine
from maml_dist.core.model.objective import running_statistics
from maml_dist.core.outer.optimizers import SGD
from maml_dist.learners.evolution import ESMAML
from maml_dist.learners.imaml import IMAML
from maml_dist.learners.maml import MAML
from maml_dist.learners.maml_plus_plus import MAMLPlusPlus
from maml_dist.learners.meta_sgd import MetaSGD
from maml_dist.learners.reptile import Reptile
from maml_dist.models.conv4 import Conv4
from maml_dist.preflight.check import check
from maml_dist.preflight.gradient_check import first_apart
from maml_dist.tasks.few_shot import SPLITS, Arrays, FewShot
from maml_dist.tasks.sinusoid import Sinusoid


class Around(nn.Module):
    """A function of tensors between two layers."""

    def __init__(self, function, width=8):
        super().__init__()
        self.first, self.second = nn.Linear(1, width), nn.Linear(width, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.function = function

    def forward(self, x):
        return self.second(self.function(self, torch.tanh(self.first(x))))


class Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class Right(Once):
    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class Wrong(Once):
    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].detach()


class Kinked(Once):
    """A squared ReLU, at data that are half zeros."""

    @staticmethod
    def forward(x):
        return x.relu().square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2 * ctx.saved_tensors[0].relu()


class Straight(Once):
    """Rounded, with the gradient of the identity."""

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def changes_buffer(model, h):
    model.seen += h.detach().mean()
    return h


def replaces_buffer(model, h):
    model.seen = model.seen + 1
    return h


def changes_input(model, h):
    model.data.mul_(0.5)
    return h


def counts(model, h):
    model.calls = getattr(model, "calls", 0) + 1
    return h * model.calls


def reads(model, h):
    return h / (1 + abs(h.mean().item()))


def decides(model, h):
    return h if h.mean() > 0 else 2 * h


def by_numpy(model, h):
    return h * torch.as_tensor(np.abs(h.detach().numpy()))


def distances(model, h):
    return torch.cdist(h, model.second.weight.expand(8, 8))


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.head = nn.LSTMCell(1, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.inside(x, self.inside(x))[0])


def experiment(model, *, engine=None, learner=None, task=None, **options):
    torch.manual_seed(0)
    return Experiment(
        task=task or Sinusoid(),
        model=model if isinstance(model, nn.Module) else Around(model),
        learner=learner or MAML(**{"alpha": 0.01, **options}),
        outer=SGD(),
        engine=engine or Engine(running="traced"),
    )


def checked(probe, device="cpu"):
    params = {name: p.detach() for name, p in probe.model.named_parameters()}
    check(probe, probe.learner.init(params) | running_statistics(probe.model), device)


ENGINES = [
    Engine(batching, running=running)
    for batching in ("task", "vmap")
    for running in ("eager", "traced")
]


def engines(*quick):
    """All engines; all but these, by their place, are slow."""
    return [
        pytest.param(
            each,
            id=f"{each.batching}-{each.running}",
            marks=[] if place in quick else pytest.mark.slow,
        )
        for place, each in enumerate(ENGINES)
    ]


def refused(probe, device="cpu"):
    """The one line that refuses it."""
    with pytest.raises(ValueError) as caught:
        checked(probe, device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("engine", engines(0, 3))
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda _, h: torch.dropout(h, 0.01, True), "draw random numbers (aten.bernoulli"),
        (lambda _, h: h + 1e-9 * torch.randn_like(h), "draw random numbers (aten.randn"),
        (lambda _, h: h + np.random.rand(), "differs when computed again"),
        (counts, "differs when computed again"),
        (changes_buffer, "changes its buffer seen while it computes: only the running statistics"),
        (replaces_buffer, "changes its buffer seen while it computes"),
        (by_numpy, "because of the model: it hands a tensor to numpy"),
        (lambda _, h: Wrong.apply(h), "second derivative of Wrong, an autograd.Function, is not"),
        (lambda _, h: Once.apply(h), "second derivative of Once, an autograd.Function, is not"),
        (lambda _, h: OldStyle.apply(h), "must override the setup_context"),
        (lambda _, h: checkpoint(torch.sin, h, use_reentrant=False), "checkpoint cannot be used"),
    ],
)
def test_refused_by_every_engine(engine, function, said):
    assert said in refused(experiment(function, engine=engine))


ALONE = "engine.batching=task engine.running=eager"


@pytest.mark.parametrize(
    ("function", "batching", "running", "settings"),
    [
        (reads, "task", "traced", ALONE),
        (reads, "vmap", "eager", ALONE),
        (decides, "vmap", "traced", ALONE),
        (lambda _, h: Right.apply(h), "vmap", "traced", ALONE),
        (distances, "vmap", "traced", f"learner.first_order=true {ALONE}"),
    ],
)
def test_the_settings_that_are_named_work(function, batching, running, settings):
    engine = Engine(batching, running=running)
    assert refused(experiment(function, engine=engine)).endswith(f"; {settings} computes it")
    changes = dict(word.split("=") for word in settings.split())
    first_order = changes.pop("learner.first_order", None) == "true"
    changed = replace(engine, **{key.removeprefix("engine."): v for key, v in changes.items()})
    checked(experiment(function, engine=changed, first_order=first_order))


def test_the_way_out_of_a_chunk_or_a_budget_is_told_too():
    engine = Engine("vmap", 3, 2.0, running="traced")
    assert refused(experiment(reads, engine=engine)).endswith(
        "; engine.batching=task engine.running=eager computes it"
    )
    checked(experiment(lambda _, h: torch.sin(h), engine=engine))


def test_recurrent_layers_are_refused_under_vmap_alone():
    said = refused(experiment(Cell(), engine=Engine("vmap", running="traced")))
    assert said.endswith("recurrent layers have no vmap; use task, or auto")
    checked(experiment(Cell(), engine=Engine("task", running="traced")))


@pytest.mark.parametrize("kind", [Once, Wrong])
@pytest.mark.parametrize(
    "learner",
    [MAML(first_order=True), MAML(steps=0), MetaSGD(first_order=True), Reptile(), ESMAML()],
    ids=["maml first order", "maml no steps", "meta-sgd first order", "reptile", "es"],
)
def test_a_wrong_second_derivative_is_let_pass_where_none_is_taken(learner, kind):
    engine = Engine("vmap", running="eager")
    checked(experiment(lambda _, h: kind.apply(h), engine=engine, learner=learner))


@pytest.mark.parametrize(
    ("learner", "named"),
    [(MAML(), True), (MetaSGD(), True), (MAMLPlusPlus(), False), (IMAML(steps=1), False)],
    ids=["maml", "meta-sgd", "maml++", "imaml"],
)
def test_a_wrong_second_derivative_is_refused_where_it_is_taken(learner, named):
    engine = Engine("vmap", running="eager")
    said = refused(experiment(lambda _, h: Wrong.apply(h), engine=engine, learner=learner))
    assert "second derivative of Wrong" in said
    assert said.endswith("learner.first_order=true") == named


@pytest.mark.parametrize("kind", [Right, Kinked, Straight])
def test_custom_functions_that_mean_what_they_do_pass(kind):
    engine = Engine("vmap", running="eager")
    checked(experiment(lambda _, h: kind.apply(h.relu()), engine=engine))


@pytest.mark.parametrize("engine", engines(0, 3))
def test_what_can_be_meta_learned_passes(engine):
    def stopped(_, h):
        attended = F.scaled_dot_product_attention(h[None], h[None], h[None])[0]
        return bound_before(F.dropout(attended, 0.2), 0.1) + h.detach() * h.relu()

    model = nn.Sequential(Around(stopped), nn.BatchNorm1d(1), nn.Dropout(0.1, inplace=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checked(experiment(model, engine=engine))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def convolutional():
    """With batch norm, as the networks of the paper."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.Conv1d(1, 8, 1), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1),
    )  # fmt: skip


@pytest.mark.parametrize("engine", engines(1))
def test_rounding_to_bfloat16_is_not_taken_for_a_wrong_trace(engine):
    checked(experiment(convolutional(), engine=replace(engine, precision="bfloat16")))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_trace_that_computes_something_else_is_refused(precision):
    engine = Engine("task", running="traced", precision=precision)
    probe = experiment(lambda _, h: h * (2 if get_proxy_mode() else 1), engine=engine)
    assert "the traced meta-gradient of a task differs from the eager one" in refused(probe)


class Written(nn.Conv1d):
    """Computes into a tensor of its own, which a vmap refuses."""

    def __init__(self):
        super().__init__(1, 1, 1)

    def forward(self, x):
        h = super().forward(x[:, :, None])
        out = torch.zeros(h.shape)
        out[:, :, :] = h
        return out.flatten(1)


def test_what_runs_on_another_device_is_tried():
    probe = experiment(Written(), engine=Engine(running="eager"))
    checked(probe)  # one task at a time
    assert refused(probe, device="cuda").endswith(f"; {ALONE} computes it")


class Halves(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, x):
        return super().forward(x.mul_(0.5))


class Pair(Halves):
    def forward(self, x):
        return x, x


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.LSTM(1, 4, num_layers=2, dropout=0.3)

    def forward(self, x):
        return self.inside(x[None])[0][0, :, :1]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Halves(), "the model changes its input while it computes: work on a copy"),
        (Pair(), "the model must return one tensor, not tuple"),
        (
            nn.Sequential(nn.Linear(1, 4), nn.Unflatten(1, (2, 2)),
                nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(4, 1)),
            "changes its buffer 2.running_mean while it computes: only the running statistics of "
            "batch norm are followed (track_running_stats=False elsewhere)",
        ),
        (
            Stacked(),
            "inside is nn.LSTM(dropout=0.3), which draws random numbers that the task does not "
            "seed: use single nn.LSTM layers with nn.Dropout between them, or dropout=0",
        ),
    ],
)  # fmt: skip
def test_modules_that_are_refused(model, said):
    assert said in refused(experiment(model))


def task(**methods):
    """Sinusoids with methods of one's own, of (output, batch)."""
    own = {n: lambda self, o, b, f=f: f(o, b) for n, f in methods.items()}
    return type("Mine", (Sinusoid,), own)()


def scored(score):
    return task(score=lambda output, batch: {"mse": score(output, batch)})


def mse_by_numpy(output, batch):
    return float(np.mean((output.numpy() - batch.y.numpy()) ** 2))


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, output, batch):
        self.calls += 1
        return float(self.calls)


@pytest.mark.parametrize("engine", [ENGINES[0], ENGINES[3]], ids=["task-eager", "vmap-traced"])
@pytest.mark.parametrize(
    "score",
    [
        mse_by_numpy,
        lambda o, b: mse_by_numpy(o, b) if o.mean() > b.y.mean() else F.mse_loss(o, b.y).item(),
        lambda o, b: torch.tensor(sum(o.flatten().tolist())),
        lambda o, b: np.float32(len(set(o.flatten().tolist()))),
    ],
    ids=["numpy", "if", "lists", "a set"],
)
def test_a_score_may_read_numbers_and_is_noted(engine, score, capsys):
    checked(experiment(lambda _, h: h, engine=engine, task=scored(score)))
    err = capsys.readouterr().err
    noted = "note: the score of task=Mine reads tensors as numbers" in err
    assert noted == (engine.running == "traced") and err.count("\n") == noted


def test_a_score_that_is_followed_is_not_noted(capsys):
    checked(experiment(lambda _, h: h))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda o, b: np.random.rand(), "differs when computed again: the score draws"),
        (lambda o, b: random.random(), "differs when computed again: the score draws"),
        (Counting(), "differs when computed again: the score draws"),
        (lambda o, b: torch.rand(()), "the score draws random numbers (aten.rand"),
        (lambda o, b: 1 / 0, "the score of the model's output [10, 1] cannot be computed: ZeroDiv"),
        (lambda o, b: (o - b.y) ** 2, "its score 'mse' must be one number, not a tensor [10, 1]"),
        (lambda o, b: "good", "its score 'mse' must be one number, not 'good'"),
    ],
)
def test_a_score_that_is_no_score_is_refused_by_its_name(score, said):
    assert said in refused(experiment(lambda _, h: h, task=scored(score)))


def test_scores_without_the_metric_are_refused():
    for given in ({}, None, [1.0]):
        source = task(score=lambda output, batch, given=given: given)
        assert "the task's score has no 'mse'" in refused(experiment(lambda _, h: h, task=source))


class ByAutograd(Learner):
    """As other libraries' code has it."""

    def step(self, phi, state, context):
        loss = context.loss(phi, context.batch)
        gradient = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        pairs = zip(phi.items(), gradient, strict=True)
        return {name: p - 0.01 * g for (name, p), g in pairs}, state


class Slowing(Learner):
    def __init__(self, rate):
        super().__init__()
        object.__setattr__(self, "rate", rate)

    def step(self, phi, state, context):
        gradient = torch.func.grad(context.loss)(phi, context.batch)
        rate = self.rate(context.it)
        return {name: p - rate * gradient[name] for name, p in phi.items()}, state


BY_NUMBERS = "it reads a tensor as a number"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("changed", "part", "said"),
    [
        ({"learner": ByAutograd()}, "the learner", "use torch.func.grad"),
        slow({"learner": ByAutograd(steps=3)}, "the learner", "use torch.func.grad"),
        ({"learner": Slowing(lambda it: 0.01 / (1 + float(it)))}, "the learner", BY_NUMBERS),
        slow({"learner": Slowing(lambda it: 0.01 if it < 9 else 0.1)}, "the learner", BY_NUMBERS),
        slow({"learner": Slowing(lambda it: float(np.asarray(it)))}, "the learner", "to numpy"),
        slow(
            {"task": task(loss=lambda o, b: F.mse_loss(o, b.y) * float(b.y.var()))},
            "the loss",
            BY_NUMBERS,
        ),
        (
            {"task": task(loss=lambda o, b: F.mse_loss(o, b.y) * float(b.y.numpy().var()))},
            "the loss",
            "to numpy",
        ),
        (
            {"task": task(query_loss=lambda o, b: F.mse_loss(o, b.y) * (2 if o[0] > 0 else 1))},
            "the query loss",
            BY_NUMBERS,
        ),
        ({"model": decides}, "the model", BY_NUMBERS),
    ],
)
def test_the_part_that_cannot_be_followed_is_named(changed, part, said):
    engine = Engine("task", running="traced")
    changed = {"model": lambda _, h: h, **changed}
    line = refused(experiment(changed.pop("model"), engine=engine, **changed))
    assert f"cannot be computed, because of {part}: " in line and said in line


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"task": task(loss=lambda o, b: F.mse_loss(o, b.y) * np.random.rand())}, "the loss"),
        (
            {"task": task(query_loss=lambda o, b: F.mse_loss(o, b.y) * np.random.rand())},
            "the query loss",
        ),
        ({"learner": Slowing(lambda it: 0.01 * np.random.rand())}, "the learner"),
        ({"model": lambda _, h: h + np.random.rand()}, "the model"),
    ],
)
def test_the_part_that_draws_unseeded_is_named(changed, part):
    changed = {"model": lambda _, h: h, **changed}
    line = refused(experiment(changed.pop("model"), **changed))
    assert "differs when computed again: " in line and part in line


def traced_otherwise(kept=2):
    return kept if get_proxy_mode() else 1


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        slow({"model": lambda _, h: h * traced_otherwise()}, "the model"),
        ({"task": task(loss=lambda o, b: F.mse_loss(o, b.y) * traced_otherwise())}, "the loss"),
        ({"learner": Slowing(lambda it: 0.01 * traced_otherwise())}, "the learner"),
    ],
)
def test_the_part_whose_trace_strays_is_named(changed, part):
    changed = {"model": lambda _, h: h, **changed}
    line = refused(experiment(changed.pop("model"), **changed))
    assert "differs from the eager one" in line and f"the trace of {part}, made with one" in line


def test_a_score_whose_trace_strays_is_refused():
    source = task(score=lambda o, b: {"mse": F.mse_loss(o, b.y) * traced_otherwise()})
    line = refused(experiment(lambda _, h: h, task=source))
    assert line.startswith("the traced mse (transductive) of a task differs from the eager one")
    assert "the trace of the score, made with one task" in line


class Narrow(torch.autograd.Function):
    """A kernel for float32 alone."""

    functional = True
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        if x.dtype != torch.float32:
            raise TypeError("expected float32")
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


TABLE = torch.linspace(-1, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, h: h.float().relu(),
        lambda _, h: (h @ TABLE).relu(),  # no buffer: stays in float32
        slow(lambda _, h: torch.cat([h[:, :4], torch.zeros(len(h), 4)], 1)),
        lambda _, h: Narrow.apply(h).relu(),
        slow(lambda _, h: F.linear(h, torch.eye(8, dtype=torch.float32))),
    ],
    ids=["float()", "attribute", "zeros", "kernel", "linear"],
)
def test_what_computes_in_float32_alone_passes(function):
    checked(experiment(function, engine=Engine("task", running="traced")))


@pytest.mark.parametrize(
    "function", [slow(lambda _, h: h.float()), lambda _, h: (h @ TABLE).relu()]
)
def test_a_straying_trace_is_found_in_float32_too(function):
    probe = experiment(lambda m, h: function(m, h) * traced_otherwise())
    assert "the trace of the model, made with one task" in refused(probe)


@pytest.mark.parametrize("engine", [ENGINES[0], ENGINES[3]], ids=["task-eager", "vmap-traced"])
def test_the_model_is_afterwards_what_it_was(engine):
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    model.register_buffer("in_half", torch.ones(2, dtype=torch.float16))
    model[3].requires_grad_(False)
    held = {**model.state_dict(keep_vars=True)}
    before = {name: (value, value.data_ptr(), value.dtype) for name, value in held.items()}
    probe = experiment(model, engine=engine)
    params = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    check(probe, probe.learner.init(params) | running_statistics(model))
    after = model.state_dict(keep_vars=True)
    for name, (value, place, dtype) in before.items():
        assert after[name] is value and value.data_ptr() == place and value.dtype == dtype


@pytest.mark.parametrize(
    ("batching", "value"),
    [slow("task", 0.0), ("task", 1.0), slow("vmap", 1.0)],
)
def test_constant_images_are_not_blamed(batching, value):
    images = {split: [np.full((4, 1, 12, 12), value, np.float32)] * 3 for split in SPLITS}
    source = FewShot(Arrays(images), ways=3, shots=1, query=2)
    model = Conv4(outputs=3, channels=1, filters=6, downsample="stride")
    engine = Engine(batching, running="traced")
    checked(experiment(model, engine=engine, task=source, alpha=0.4))


def test_a_convolution_whose_gradient_jumps_is_not_blamed():
    """Images of few edges on a constant ground, where rounding flips many a ReLU."""
    rng = np.random.default_rng(0)
    images = {}
    for split in SPLITS:
        drawn = np.zeros((8, 6, 1, 28, 28), np.uint8)
        for place in np.ndindex(8, 6):
            row, column = rng.integers(4, 20, 2)
            drawn[(*place, 0, slice(row, row + 3), slice(column, column + 8))] = 255
        images[split] = list(drawn)
    source = FewShot(Arrays(images), ways=8, shots=1, query=1)
    model = Conv4(outputs=8, channels=1, filters=16, downsample="stride")
    engine = Engine("task", running="traced")
    checked(experiment(model, engine=engine, task=source, alpha=0.1, steps=2))


@pytest.mark.parametrize(("one", "other"), [(3, 4), (True, False)])
def test_scores_that_count_or_are_truths_are_compared(one, other):
    found = {"right": torch.tensor(one)}
    assert first_apart(found, found) is None
    assert first_apart(found, {"right": torch.tensor(other)}) is not None
