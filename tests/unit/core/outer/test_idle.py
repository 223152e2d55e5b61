"""Idle: many updates at a zero gradient are those updates, one after the other."""

from dataclasses import dataclass

import pytest
import torch
from torch.overrides import TorchFunctionMode

from maml_dist.core.outer.adagrad import Adagrad
from maml_dist.core.outer.idle import Waiting, _known_powers
from maml_dist.core.outer.optimizers import SGD, Adam, OuterOptimizer
from maml_dist.core.outer.schedules import Cosine

RULES = {
    "descent": SGD(beta=0.1),
    "momentum": SGD(beta=0.1, momentum=0.9),
    "nesterov": SGD(beta=0.1, momentum=0.8, nesterov=True),
    "adam": Adam(beta=0.1),
    "adamw": Adam(beta=0.1, weight_decay=0.2),
    "all of it decays": Adam(beta=1.0, weight_decay=1.0),
    "second moments decay faster": Adam(beta=0.1, decays=(0.9, 0.5)),
    "second moments are forgotten": Adam(beta=0.1, decays=(0.9, 0.0), eps=0.1),
    "all is forgotten": Adam(beta=0.1, decays=(0.0, 0.0)),
    "first moments are forgotten": Adam(beta=0.1, decays=(0.0, 0.9)),
    "large eps": Adam(beta=0.1, eps=1.0),
    "adagrad": Adagrad(beta=0.1),
}


@dataclass(frozen=True)
class L2(Adam):
    """Adam with a penalty on the weights, of a user's own."""

    def step(self, meta, gradient, state, *, rate, count):
        return super().step(meta, gradient + 0.3 * meta, state, rate=rate, count=count)


@dataclass(frozen=True)
class Sooner(L2):
    """And with a form of its own, said to be of that step."""

    def idle(self, rows, moments, waiting):
        return rows + 1, moments


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def began(rule, dtype=torch.float64, size=1500):
    """After two updates, in the second of which most elements have no gradient."""
    meta = torch.randn(size, dtype=dtype)
    moments = rule.moments(meta)
    for number, gradient in enumerate((torch.randn(size), torch.randn(size))):
        gradient[number * 40 :] = 0
        meta, moments = rule.step(meta, gradient.to(dtype), moments, rate=0.1, count=number + 1)
    return meta, moments


def waiting(rows, count, rate=lambda made: 0.1):
    """Rows of which each waits for another number of updates, some for none, some for all."""
    since = torch.arange(rows) * (count - 2) // (rows - 1) + 2
    return Waiting(since, count, torch.tensor([*map(rate, range(count))], dtype=torch.float64))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [3, 9, 900])
def test_it_is_the_updates_one_by_one(name, count):
    rule, falling = RULES[name], Cosine(until=500, end=0.1)
    waits = waiting(50, count, lambda made: rule.beta * falling.factor(made))
    meta, moments = began(rule)
    given = meta.view(50, 30), {key: value.view(50, 30) for key, value in moments.items()}
    found = rule.idle(*given, waits)
    expected = OuterOptimizer.idle(rule, *given, waits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(found[0][-1], given[0][-1])  # it waits for nothing


@pytest.mark.parametrize("rule", [L2(beta=0.1), SGD(beta=0.1), Sooner(beta=0.1)])
def test_a_closed_form_is_of_the_step_that_it_was_found_for(rule):
    meta, moments = began(rule)
    given = meta.view(50, 30), {key: value.view(50, 30) for key, value in moments.items()}
    found, expected = rule.caught_up(*given, waiting(50, 20)), given[0] + 1
    if not isinstance(rule, Sooner):
        expected = OuterOptimizer.idle(rule, *given, waiting(50, 20))[0]
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", RULES)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(name):
    rule = RULES[name]
    meta, moments = began(rule, torch.float32)
    waits, some = waiting(500, 700), torch.tensor([3, 77, 78, 420])
    given = meta.view(500, 3), {key: value.view(500, 3) for key, value in moments.items()}
    every, after = rule.idle(*given, waits)
    few = given[0][some], {key: value[some] for key, value in given[1].items()}
    alone, alone_after = rule.idle(*few, waits.of(some))
    assert torch.equal(every[some], alone)
    assert all(torch.equal(after[key][some], value) for key, value in alone_after.items())


def test_what_is_computed_is_of_the_rows_and_not_of_all_updates():
    """Numbers that are computed with, where many updates were made and rows wait for few."""
    made, rule = 300_000, Adam(weight_decay=0.1)
    rates, sizes = torch.full((made,), 0.1, dtype=torch.float64), []
    waits = Waiting(torch.tensor([made - 3, made - 1]), made, rates)
    rows, moments = torch.ones(2, 3), {"first": torch.ones(2, 3), "second": torch.ones(2, 3)}
    rule.idle(rows, moments, waits)  # powers are known from now on

    class Sizes(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.append(found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    with Sizes():
        rule.idle(rows, moments, waits)
    assert 0 < max(sizes) < 100


@pytest.mark.parametrize("base", [0.0, 0.5, 0.9, 0.999**0.5])
def test_powers_are_those_of_python_whatever_their_number(base):
    few, many = _known_powers(base, 100), _known_powers(base, 5003)
    expected = torch.tensor([base**number for number in range(5004)], dtype=torch.float64)
    torch.testing.assert_close(many, expected, rtol=4e-16, atol=0)
    assert torch.equal(many[:101], few)
