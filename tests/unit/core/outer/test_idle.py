"""Idle: many updates at a zero gradient are those updates, one after the other."""

import pytest
import torch

from maml_dist.core.outer.adagrad import Adagrad
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
    "large eps": Adam(beta=0.1, eps=1.0),
    "adagrad": Adagrad(beta=0.1),
}


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


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("steps", [1, 7, 900])
def test_it_is_the_updates_one_by_one(name, steps):
    rule = RULES[name]
    rates = [rule.beta * Cosine(until=500, end=0.1).factor(count) for count in range(2, 2 + steps)]
    meta, moments = began(rule)
    found = rule.idle(meta, moments, rates=rates, count=2)
    expected = OuterOptimizer.idle(rule, meta, moments, rates=rates, count=2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", RULES)
def test_an_element_has_the_same_bits_whatever_stands_beside_it(name):
    rule = RULES[name]
    meta, moments = began(rule, torch.float32, size=2048)
    every, _ = rule.idle(meta, moments, rates=[0.1] * 30, count=2)
    part = {key: value[1024:] for key, value in moments.items()}
    alone, _ = rule.idle(meta[1024:], part, rates=[0.1] * 30, count=2)
    assert torch.equal(every[1024:], alone)
