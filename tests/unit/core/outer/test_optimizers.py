import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from maml_dist.core.outer.adagrad import Adagrad
from maml_dist.core.outer.optimizers import SGD, Adam
from maml_dist.core.outer.schedules import Constant, Cosine
from maml_dist.core.outer.trust_region import TrustRegion

TORCH = {
    "descent": (SGD(beta=0.01), lambda w: torch.optim.SGD(w, lr=0.01)),
    "momentum": (SGD(beta=0.01, momentum=0.9), lambda w: torch.optim.SGD(w, 0.01, momentum=0.9)),
    "nesterov": (
        SGD(beta=0.01, momentum=0.9, nesterov=True),
        lambda w: torch.optim.SGD(w, 0.01, momentum=0.9, nesterov=True),
    ),
    "adam": (
        Adam(beta=0.01, decays=(0.8, 0.95), eps=1e-3),
        lambda w: torch.optim.Adam(w, 0.01, betas=(0.8, 0.95), eps=1e-3),
    ),
    "adamw": (
        Adam(beta=0.01, weight_decay=0.3),
        lambda w: torch.optim.AdamW(w, 0.01, weight_decay=0.3),
    ),
    "adagrad": (
        Adagrad(beta=0.01, initial=0.2),
        lambda w: torch.optim.Adagrad(w, 0.01, initial_accumulator_value=0.2),
    ),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def run(rule, meta, gradients, state=None):
    state = rule.init(meta) if state is None else state
    for gradient in gradients:
        meta, state = rule.update(meta, gradient, state)
    return meta, state


def torch_run(make, start, gradients, scheduler=None, clip=None):
    weight = torch.nn.Parameter(start.clone())
    optimizer = make([weight])
    scheduler = scheduler(optimizer) if scheduler else None
    for gradient in gradients:
        weight.grad = gradient.clone()
        if clip:
            clip([weight])
        optimizer.step()
        if scheduler:
            scheduler.step()
    return weight.detach()


@pytest.mark.parametrize("name", TORCH)
def test_each_rule_is_torchs(name):
    rule, make = TORCH[name]
    start, gradients = torch.randn(6).double(), torch.randn(20, 6).double()
    meta, _ = run(rule, start, gradients)
    torch.testing.assert_close(meta, torch_run(make, start, gradients), rtol=1e-12, atol=1e-15)


def test_a_scheduled_rate_is_torchs():
    start, gradients = torch.randn(6).double(), torch.randn(20, 6).double()
    rule = Adam(beta=0.01, weight_decay=0.3, schedule=Cosine(until=20, end=0.1))
    expected = torch_run(
        lambda w: torch.optim.AdamW(w, 0.01, weight_decay=0.3),
        start,
        gradients,
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.001),
    )
    meta, _ = run(rule, start, gradients)
    torch.testing.assert_close(meta, expected, rtol=1e-12, atol=1e-15)


def test_sgd_steps_against_the_gradient():
    meta, _ = run(SGD(beta=0.5), torch.tensor([1.0, 2.0]), torch.tensor([[2.0, -2.0]]))
    assert meta.tolist() == [0, 3]


def test_clip_is_torchs():
    start, gradients = torch.randn(6).double(), 9 * torch.randn(20, 6).double()
    expected = torch_run(
        TORCH["momentum"][1], start, gradients, clip=lambda w: clip_grad_value_(w, 3.0)
    )
    meta, _ = run(SGD(beta=0.01, momentum=0.9, clip=3.0), start, gradients)
    torch.testing.assert_close(meta, expected, rtol=1e-12, atol=1e-15)


def test_clip_norm_is_torchs():
    start = torch.randn(6).double()
    scale = torch.tensor([1e7, 1e-3]).double().repeat(10)[:, None]  # torch adds 1e-6 to the norm
    gradients = scale * torch.randn(20, 6).double()
    expected = torch_run(
        TORCH["momentum"][1], start, gradients, clip=lambda w: clip_grad_norm_(w, 3.0)
    )
    meta, _ = run(SGD(beta=0.01, momentum=0.9, clip_norm=3.0), start, gradients)
    torch.testing.assert_close(meta, expected, rtol=1e-12, atol=1e-15)


def test_elements_are_clipped_before_the_norm():
    rule = SGD(beta=1.0, clip=4.0, clip_norm=2.5)
    meta, _ = run(rule, torch.zeros(2).double(), torch.tensor([[3.0, 400.0]]).double())
    assert meta.tolist() == pytest.approx([-1.5, -2.0])


RULES = [
    SGD(),
    SGD(momentum=0.9, nesterov=True, schedule=Constant(warm_up=15)),
    Adam(clip=1.0, clip_norm=1.0, weight_decay=0.1, schedule=Cosine(until=15)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rule", [Adam(decays=(0.7, 0.6)), SGD(momentum=0.7)], ids=["adam", "momentum"]
)
def test_a_moment_that_decays_ends_at_zero_not_among_the_subnormals(rule, dtype):
    meta, gradient = torch.ones(2, dtype=dtype), torch.ones(2, dtype=dtype)
    state, least = rule.init(meta), torch.finfo(dtype).tiny
    for _ in range(3000):
        meta, state = rule.update(meta, gradient, state)
        gradient[1] = 0
        for moment in (value for name, value in state.items() if name != "count"):
            assert not moment[1] or moment[1].abs() >= least
            assert moment[0] > 0.2  # the other weight keeps its own
    assert all(state[name][1] == 0 for name in rule.moments(meta))


@pytest.mark.parametrize("rule", RULES)
def test_resumed_is_undisturbed_to_the_bit(rule):
    start, gradients = torch.randn(6), torch.randn(20, 6)
    meta, state = run(rule, start, gradients[:9])
    saved = {name: value.numpy().copy() for name, value in state.items()}
    resumed, end = run(
        rule, meta, gradients[9:], {name: torch.tensor(value) for name, value in saved.items()}
    )
    undisturbed, expected = run(rule, start, gradients)
    assert torch.equal(resumed, undisturbed)
    assert end.keys() == expected.keys() == rule.init(start).keys()
    assert all(torch.equal(end[name], expected[name]) for name in end)


@pytest.mark.parametrize("rule", RULES)
def test_an_update_changes_none_of_its_arguments(rule):
    meta, gradient = torch.randn(6), torch.randn(6)
    meta, state = rule.update(meta, gradient, rule.init(meta))
    given = {"meta": meta, "gradient": gradient, **state}
    before = {name: value.clone() for name, value in given.items()}
    rule.update(meta, gradient, state)
    assert all(torch.equal(given[name], before[name]) for name in given)


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (Adam, {"beta": 0}),
        (Adam, {"beta": math.nan}),
        (Adam, {"clip": -1}),
        (Adam, {"clip_norm": 0}),
        (Adam, {"clip_norm": math.nan}),
        (Adam, {"average": 1}),
        (Adam, {"average": 0}),
        (Adam, {"eps": 0}),
        (Adam, {"decays": (1, 0)}),
        (Adam, {"weight_decay": -0.1}),
        (SGD, {"momentum": 1}),
        (SGD, {"nesterov": True}),
    ],
)
def test_impossible_values_are_refused_by_name(rule, bad):
    with pytest.raises(ValueError, match=rf"outer\.{next(iter(bad))}="):
        rule(**bad)


class Normed(Adam):
    def update(self, meta, gradient, state, *, gather=None):
        return super().update(meta, gradient / gradient.norm(), state, gather=gather)


class Stepped(Adam):
    def step(self, meta, gradient, state, *, rate, count):
        return super().step(meta, gradient / gradient.norm(), state, rate=rate, count=count)


class Halved(Adam):
    by_elements = True

    def step(self, meta, gradient, state, *, rate, count):
        return super().step(meta, gradient / 2, state, rate=rate, count=count)


class Kept(Halved):
    pass


@pytest.mark.parametrize(
    ("rule", "divisible"),
    [
        (Adam(), True),
        (SGD(momentum=0.9), True),
        (Adam(epochs=2), False),
        (TrustRegion(), False),
        (Normed(), False),
        (Stepped(), False),
        (Halved(), True),
        (Kept(), True),
    ],
)
def test_only_what_is_said_to_be_by_elements_is_divided(rule, divisible):
    assert rule.divisible is divisible
