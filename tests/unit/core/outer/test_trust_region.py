"""The trust region's rounds: answered by hand, in float64."""

import math
import re

import pytest
import torch

from maml_dist.core.outer.optimizers import Adam, Response
from maml_dist.core.outer.trust_region import TrustRegion

SIZE = 6


def quadratic():
    """A loss g·x + ½ x·Bx and a divergence ½ x·Ax around the start."""
    drawn = torch.Generator().manual_seed(0)
    root = torch.randn(SIZE, SIZE, generator=drawn, dtype=torch.float64)
    slope = torch.randn(SIZE, generator=drawn, dtype=torch.float64)
    return slope, root @ root.T + 0.1 * torch.eye(SIZE)


def rounds(rule, *, meta, slope, metric, worse=lambda moved: 0.0):
    """Let the rule ask; returns its result and the questions."""
    state, asked = rule.init(meta), []
    update = rule.update_in_rounds(meta, slope, {"loss/after": 0.0}, state)
    answer = None
    while True:
        try:
            question = update.send(answer)
        except StopIteration as end:
            return (*end.value, asked)
        asked.append(question)
        if question.what == "curvature":
            answer = Response(metric @ question.at, {})
        else:
            moved = question.at - meta
            loss = slope @ moved + worse(moved)
            divergence = 0.5 * moved @ metric @ moved
            answer = Response(None, {"loss/after": float(loss), "kl": float(divergence)})


def test_the_step_is_the_natural_gradient_to_the_bound():
    slope, metric = quadratic()
    meta = torch.ones(SIZE, dtype=torch.float64)
    rule = TrustRegion(bound=0.02, iterations=SIZE + 2, damping=0.0)
    new, state, told, asked = rounds(rule, meta=meta, slope=slope, metric=metric)
    natural = torch.linalg.solve(metric, slope)
    length = math.sqrt(2 * 0.02 / float(slope @ natural))
    if told["tries"] == 2:  # the first lay at the bound, but for rounding
        length *= 0.8
    assert torch.allclose(new, meta - length * natural, rtol=1e-9)
    assert told["accepted"] == 1 and told["kl"] <= 0.02
    assert float(state["count"]) == 1
    assert [question.what for question in asked].count("curvature") <= SIZE + 2


def test_damping_and_few_iterations_equal_conjugate_gradient_by_hand():
    slope, metric = quadratic()
    meta = torch.zeros(SIZE, dtype=torch.float64)
    rule = TrustRegion(bound=0.01, iterations=3, damping=0.3)
    new, *_ = rounds(rule, meta=meta, slope=slope, metric=metric)
    damped = metric + 0.3 * torch.eye(SIZE)
    krylov = torch.stack([torch.linalg.matrix_power(damped, k) @ slope for k in range(3)], 1)
    x = krylov @ torch.linalg.solve(krylov.T @ damped @ krylov, krylov.T @ slope)
    assert torch.allclose(new / new.norm(), -x / x.norm(), rtol=1e-8)


def test_a_loss_that_does_not_fall_leaves_all_as_it_was():
    slope, metric = quadratic()
    meta = torch.ones(SIZE, dtype=torch.float64)
    rule = TrustRegion(tries=4)
    new, state, told, asked = rounds(
        rule, meta=meta, slope=slope, metric=metric, worse=lambda moved: 1.0
    )
    assert torch.equal(new, meta) and told["accepted"] == 0
    assert [question.what for question in asked].count("objective") == 4
    assert float(state["count"]) == 1


def test_the_steps_tried_shrink_until_the_loss_falls():
    slope, metric = quadratic()
    meta = torch.zeros(SIZE, dtype=torch.float64)
    far = TrustRegion(damping=0.0, iterations=8, shrink=0.5)
    *_, asked = rounds(far, meta=meta, slope=slope, metric=metric, worse=lambda moved: 1.0)
    steps = [question.at for question in asked if question.what == "objective"]
    for one, two in zip(steps, steps[1:], strict=False):
        assert torch.allclose(two, 0.5 * one)
    cubic = 40 * float(slope.norm())
    new, _, told, _ = rounds(
        far, meta=meta, slope=slope, metric=metric, worse=lambda m: cubic * float(m @ m) ** 1.5
    )
    assert told["accepted"] == 1 and told["tries"] > 1 and not torch.equal(new, meta)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss/after", "kl"])
def test_what_is_not_finite_is_no_step(name, wrong):
    slope, metric = quadratic()
    meta = torch.ones(SIZE, dtype=torch.float64)
    rule = TrustRegion(damping=0.0, iterations=8)
    state = rule.init(meta)
    asks = rule.update_in_rounds(meta, slope, {"loss/after": 0.0}, state)
    question, tried = next(asks), []
    while question.what == "curvature":
        question = asks.send(Response(metric @ question.at, {}))
    with pytest.raises(StopIteration) as end:
        while True:
            tried.append(question.at)
            told = {"loss/after": -1.0, "kl": 0.0}
            question = asks.send(Response(None, told | {name: wrong} if len(tried) < 3 else told))
    new, _, told = end.value.value
    assert torch.equal(new, tried[2]) and told["tries"] == 3 and told["accepted"] == 1


def test_no_gradient_asks_nothing_of_the_line():
    _, metric = quadratic()
    meta, zero = torch.ones(SIZE, dtype=torch.float64), torch.zeros(SIZE, dtype=torch.float64)
    new, _, told, asked = rounds(TrustRegion(), meta=meta, slope=zero, metric=metric)
    assert torch.equal(new, meta) and not asked and told["accepted"] == 0


def test_several_epochs_are_updates_at_new_gradients():
    meta, slope = torch.zeros(3), torch.ones(3)
    rule = Adam(beta=0.1, epochs=3)
    steps = rule.update_in_rounds(meta, slope, {}, rule.init(meta))
    seen = [steps.send(None), steps.send(Response(2 * slope, {}))]
    assert [question.what for question in seen] == ["gradient", "gradient"]
    with pytest.raises(StopIteration) as end:
        steps.send(Response(-slope, {}))
    one, state = rule.update(meta, slope, rule.init(meta))
    two, state = rule.update(one, 2 * slope, state)
    three, state = rule.update(two, -slope, state)
    assert torch.equal(seen[0].at, one) and torch.equal(seen[1].at, two)
    assert torch.equal(end.value.value[0], three) and float(state["count"]) == 3


def test_after_several_epochs_the_divergence_of_policies_is_told():
    meta, slope = torch.zeros(3), torch.ones(3)
    rule = Adam(beta=0.1, epochs=2)
    steps = rule.update_in_rounds(meta, slope, {"return/after": -3.0}, rule.init(meta))
    steps.send(None)
    last = steps.send(Response(slope, {}))
    one, state = rule.update(meta, slope, rule.init(meta))
    two, _ = rule.update(one, slope, state)
    assert last.what == "objective" and torch.equal(last.at, two)
    with pytest.raises(StopIteration) as end:
        steps.send(Response(None, {"loss/after": 0.0, "kl": 0.25}))
    assert torch.equal(end.value.value[0], two) and end.value.value[2] == {"kl": 0.25}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bound": 0.0}, "outer.bound=0.0: must be a positive number"),
        ({"share": 1.5}, "outer.share=1.5: must be in (0, 1]"),
        ({"support_share": 0.0}, "outer.support_share=0.0: must be in (0, 1]"),
        ({"shrink": 1.0}, "outer.shrink=1.0: must be in (0, 0.999]"),
        ({"epochs": 2}, "outer.epochs=2: a trust region makes one update"),
        ({"iterations": 0}, "outer.iterations=0: must be 1 or more"),
        ({"damping": -1.0}, "outer.damping=-1.0: must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        TrustRegion(**fields)
