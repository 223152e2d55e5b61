"""A module computes with given parameters, whatever it is made of, and is left as it was."""

import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from torch.func import grad
from torch.nn.functional import linear, mse_loss
from torch.nn.utils import prune

from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.learners.maml import MAML

ALPHA, STEPS, TASKS = 0.1, 2, 2


class Regression(TaskSource):
    def sample(self, key):
        return None

    def collect(self, tasks, *, steps, adapt=None):
        raise AssertionError("not collected here")

    def loss(self, output, batch):
        return mse_loss(output, batch.y)


def repeated():
    """A block at two depths, a submodule under two names, and tied weights."""

    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            block = nn.Linear(3, 3)
            self.body = nn.Sequential(block, nn.Tanh(), block, nn.Tanh())
            self.head = nn.Linear(3, 3)
            self.head.weight = block.weight
            self.net = nn.Sequential(self.body, self.head)

        def forward(self, x):
            return self.net(x)

    def formula(p, x):
        for bias in (p["body.0.bias"], p["body.0.bias"]):
            x = torch.tanh(linear(x, p["body.0.weight"], bias))
        return linear(x, p["body.0.weight"], p["head.bias"])

    return Repeated(), formula


def weight_normed():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3))

    def formula(p, x):
        v = p["0.weight_v"]
        h = linear(x, p["0.weight_g"] * v / v.norm(dim=1, keepdim=True), p["0.bias"])
        return linear(torch.tanh(h), p["2.weight"], p["2.bias"])

    return model, formula


def weight_parametrized():
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(3, 4), dim=1), nn.Tanh(), nn.Linear(4, 3))

    def formula(p, x):
        g, v = (p[f"0.parametrizations.weight.original{n}"] for n in (0, 1))
        h = torch.tanh(linear(x, g * v / v.norm(dim=0, keepdim=True), p["0.bias"]))
        return linear(h, p["2.weight"], p["2.bias"])

    return model, formula


def pruned():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    prune.random_unstructured(model[0], "weight", 0.4)
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=1)
    first, second = (model[n].weight_mask.double() for n in (0, 2))

    def formula(p, x):
        h = torch.tanh(linear(x, p["0.weight_orig"] * first, p["0.bias"]))
        return linear(h, p["2.weight_orig"] * second, p["2.bias"])

    return model, formula


def spectral():
    """Held in evaluation, where torch.nn.utils.spectral_norm changes nothing."""

    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.utils.spectral_norm(nn.Linear(3, 3))

        def train(self, mode=True):
            super().train(mode)
            self.layer.eval()
            return self

        def forward(self, x):
            return torch.tanh(self.layer(x))

    model = Spectral()
    u, v = model.layer.weight_u.double(), model.layer.weight_v.double()

    def formula(p, x):
        weight = p["layer.weight_orig"]
        return torch.tanh(linear(x, weight / (u @ weight @ v), p["layer.bias"]))

    return model, formula


def keeping():
    """Activations and caches in attributes, lists and dicts, which it reads back."""

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.ready, self.cache, self.seen = False, {"by": {}}, deque(maxlen=3)
            self.layer.register_forward_hook(lambda part, args, out: self.seen.append(out))

        def forward(self, x):
            self.last = self.layer(x)
            if not self.ready:
                self.cache["by"]["scale"] = self.layer.weight.square().sum()
                self.ready = True
            return torch.tanh(self.seen[-1]) * self.cache["by"]["scale"] + self.last

    def formula(p, x):
        h = linear(x, p["layer.weight"], p["layer.bias"])
        return torch.tanh(h) * p["layer.weight"].square().sum() + h

    return Keeping(), formula


def closed():
    """A function that closes over the module."""

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.function = lambda x: x @ self.layer.weight

        def forward(self, x):
            return self.function(torch.tanh(self.layer(x)))

    def formula(p, x):
        return torch.tanh(linear(x, p["layer.weight"], p["layer.bias"])) @ p["layer.weight"]

    return Closed(), formula


def viewed():
    """torch.view_as_complex of a parameter, at an odd place of the flat vector."""

    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.weight = (nn.Parameter(torch.randn(n)) for n in ((1,), (2, 2)))

        def forward(self, x):
            weight = torch.view_as_complex(self.weight)
            return torch.fft.irfft(torch.fft.rfft(x) * weight, n=3) * self.scale

    def formula(p, x):
        weight = torch.complex(p["weight"][:, 0], p["weight"][:, 1])
        return torch.fft.irfft(torch.fft.rfft(x) * weight, n=3) * p["scale"]

    return Viewed(), formula


KINDS = [
    *(repeated, weight_normed, weight_parametrized, pruned),
    *(spectral, keeping, closed, viewed),
]


def case(kind):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that hooks are deprecated
        model, formula = kind()
    model.double()
    support, query = (
        Batch(torch.randn(TASKS, n, 3).double(), torch.randn(TASKS, n, 3).double()) for n in (4, 5)
    )
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    return model, formula, params, support, query


def contents(model):
    """Everything in the module's attributes, hooks left out."""
    return {
        f"{prefix}/{name}": list(value) if isinstance(value, deque) else repr(value)
        for prefix, part in model.named_modules()
        for name, value in vars(part).items()
        if "hooks" not in name and name != "_modules"
    }


@pytest.mark.parametrize("engine", ["task eager", "vmap traced"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_meta_gradient_is_that_of_the_formula_and_the_module_stays(kind, engine):
    model, formula, params, support, query = case(kind)
    before = contents(model)
    batching, running = engine.split()
    gradient = MetaGradient(
        Engine(batching, running=running, memory="graph"),
        MAML(alpha=ALPHA, steps=STEPS),
        Objective(model, Regression()),
        into=layout(params),
    )
    ours = gradient(flatten(params), supervised(support, query, steps=STEPS), torch.tensor(0.0))

    def by_formula(params, task):
        def loss(phi, batch):
            return mse_loss(formula(phi, batch.x[task]), batch.y[task])

        phi = params
        for _ in range(STEPS):
            slope = grad(loss)(phi, support)
            phi = {name: phi[name] - ALPHA * slope[name] for name in phi}
        return loss(phi, query)

    theirs = sum(flatten(grad(by_formula)(params, task)) for task in range(TASKS))
    torch.testing.assert_close(ours.gradient, theirs, rtol=1e-10, atol=1e-12)
    assert contents(model) == before


def test_threads_that_share_a_module_see_their_own_parameters():
    model, formula, params, support, _ = case(keeping)
    objective, meeting = Objective(model, Regression()), Barrier(4)

    def work(number):
        own = {name: value * (1 + number) for name, value in params.items()}
        meeting.wait()
        return all(
            torch.equal(objective.output(own, support.x[0]), formula(own, support.x[0]))
            for _ in range(30)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_what_fails_leaves_the_module_as_it_was():
    model, _, params, support, _ = case(keeping)
    before = contents(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Objective(model, Regression()).output(params, support.x[0, :, :2])
    assert contents(model) == before


class Unheld(nn.Module):
    """Reaches a parameter by a list, a function, or a module that it does not hold."""

    def __init__(self, way):
        super().__init__()
        self.layer, other = nn.Linear(3, 3), nn.Linear(3, 3)
        weight = self.layer.weight
        self.ways = {
            "list": [weight],
            "function": lambda x: x @ weight,
            "modules": [other],
            "frozen": [other.requires_grad_(way != "frozen")],
        }
        self.way = way

    def forward(self, x):
        held = self.ways[self.way]
        if self.way == "list":
            return torch.cat([held[0], held[0]])[:3].matmul(x.T).T
        return held(x) if self.way == "function" else held[0](self.layer(x))


@pytest.mark.parametrize("way", ["list", "function", "modules"])
def test_a_parameter_that_is_reached_by_another_way_is_refused(way):
    model = Unheld(way)
    params = {name: p.detach() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"computes with a parameter \[3, 3\] by another way"):
        Objective(model, Regression()).output(params, torch.zeros(2, 3))


def test_a_frozen_module_that_is_not_held_is_let_pass():
    model = Unheld("frozen")
    params = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(2, 3)
    torch.testing.assert_close(Objective(model, Regression()).output(params, x), model(x))


def test_torchscript_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="^1 is TorchScript, which takes no other parameters"):
        Objective(nn.Sequential(nn.Tanh(), part), Regression())
