"""Complex parameters are learned as their real and imaginary parts."""

import pytest
import torch
from torch import nn

from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import cast, complex_of, flatten, layout, own_form, real_of
from maml_dist.learners.imaml import IMAML
from maml_dist.learners.maml import MAML
from maml_dist.learners.meta_sgd import MetaSGD
from maml_dist.tasks.sinusoid import Sinusoid


class Spectral(nn.Module):
    """As in neural operators: complex weights, a complex scalar, a complex buffer."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(1, 5)
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
        self.scale = nn.Parameter(torch.randn((), dtype=torch.cfloat))
        self.register_buffer("turn", torch.randn(3, dtype=torch.cfloat))

    def forward(self, x):
        h = torch.fft.rfft(self.up(x)) * self.weight * self.turn
        return (torch.tanh(torch.fft.irfft(h, n=5)).sum(-1, keepdim=True) * self.scale).abs()


def spectral():
    torch.manual_seed(0)
    model = Spectral()
    cast(model, torch.float64)
    params = {name: real_of(p.detach()).clone() for name, p in model.named_parameters()}
    x, y = torch.randn(6, 1).double(), torch.randn(6, 1).double()
    return model, params, Batch(x, y)


def test_a_cast_keeps_what_is_complex():
    model = Spectral()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cast(model, torch.float64)
    after = model.state_dict()
    assert all(torch.equal(value, after[name].to(value.dtype)) for name, value in before.items())
    assert after["weight"].dtype == after["turn"].dtype == torch.complex128
    assert after["up.weight"].dtype == torch.float64


def test_both_forms_are_each_others_inverse():
    model, params, _ = spectral()
    assert params["weight"].shape == (3, 2) and params["scale"].shape == (2,)
    own = own_form(params, model)
    assert all(torch.equal(own[name], p) for name, p in model.named_parameters())
    odd = torch.randn(2, 7)[:, 1:].reshape(2, 3, 2).mT.reshape(2, 3, 2)
    assert torch.equal(real_of(complex_of(odd)), odd)


@pytest.mark.parametrize("engine", ["task eager graph", "vmap traced graph", "vmap traced steps"])
@pytest.mark.parametrize("learner", [MAML(alpha=0.1, steps=2), MetaSGD(alpha=0.1, steps=2)])
def test_the_meta_gradient_is_that_of_finite_differences_in_both_parts(learner, engine):
    if isinstance(learner, MetaSGD) and engine != "task eager graph":
        pytest.skip("the engines differ in nothing more")
    model, params, batch = spectral()
    objective = Objective(model, Sinusoid())
    meta = learner.init(params)
    batching, running, memory = engine.split()
    gradient = MetaGradient(
        Engine(batching, running=running, memory=memory), learner, objective, into=layout(meta)
    )
    single = Batch(batch.x[None], batch.y[None])
    episode = supervised(single, Batch(single.x * 0.5, single.y), steps=learner.steps)
    it = torch.tensor(0.0)
    ours = gradient(flatten(meta), episode, it).gradient
    support, query = (batch,) * learner.steps, Batch(batch.x * 0.5, batch.y)
    names = [name for name, value in meta.items() for _ in range(value.numel())]

    def loss(vector):
        parts = vector.split([value.numel() for value in meta.values()])
        moved = {n: p.reshape(v.shape) for p, (n, v) in zip(parts, meta.items(), strict=True)}
        return objective.loss(learner.adapt(objective.loss, moved, support, it), query)

    checked = 0
    for place, name in enumerate(names):
        if "weight" in name or "scale" in name:
            aside = torch.zeros(len(names)).double()
            aside[place] = 1e-6
            difference = loss(flatten(meta) + aside) - loss(flatten(meta) - aside)
            assert float(ours[place]) == pytest.approx(float(difference / 2e-6), rel=1e-5, abs=1e-8)
            checked += 1
    assert checked >= 13


def test_imaml_solves_in_real_parts():
    model, params, batch = spectral()
    learner = IMAML(alpha=0.05, steps=2)
    gradient = MetaGradient(
        Engine("task", running="eager"),
        learner,
        Objective(model, Sinusoid()),
        into=layout(learner.init(params)),
    )
    single = Batch(batch.x[None], batch.y[None])
    found = gradient(flatten(params), supervised(single, single, steps=2), torch.tensor(0.0))
    assert found.gradient.isfinite().all() and not found.gradient.is_complex()
