import math

import pytest
import torch
from torch.optim import lr_scheduler

from maml_dist.core.outer.schedules import Constant, Cosine, Linear


def theirs(make, count):
    """The rates of a torch scheduler of rate 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_linear_is_torchs_and_stays_at_its_end():
    schedule = Linear(until=10, end=0.1)
    expected = theirs(
        lambda o: lr_scheduler.LinearLR(o, start_factor=1, end_factor=0.1, total_iters=10), 15
    )
    assert [schedule.factor(i) for i in range(15)] == pytest.approx(expected, rel=1e-12)


def test_cosine_is_torchs():
    schedule = Cosine(until=10, end=0.01)
    expected = theirs(lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.01), 11)
    assert [schedule.factor(i) for i in range(11)] == pytest.approx(expected, rel=1e-12)


def test_cosine_stays_at_its_end():
    assert [Cosine(until=10, end=0.25).factor(i) for i in (10, 11, 1000)] == [0.25] * 3
    assert Cosine(until=4).factor(2) == pytest.approx(0.5)


def test_a_warm_up_is_torchs():
    expected = theirs(
        lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 4, end_factor=1, total_iters=3), 8
    )
    schedule = Constant(warm_up=4)
    assert [schedule.factor(i) for i in range(8)] == pytest.approx(expected, rel=1e-12)
    assert [Constant().factor(i) for i in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_the_fall_begins_when_the_warm_up_has_ended(kind):
    warmed, fall = kind(until=14, end=0.2, warm_up=4), kind(until=10, end=0.2)
    expected = [0.25, 0.5, 0.75, 1.0, *(fall.factor(i) for i in range(12))]
    assert [warmed.factor(i) for i in range(16)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Constant, {"warm_up": -1}),
        (Linear, {"until": 0}),
        (Linear, {"until": 5, "warm_up": -1}),
        (Linear, {"until": 5, "warm_up": 5}),
        (Cosine, {"until": -3}),
        (Cosine, {"end": -0.1, "until": 5}),
        (Cosine, {"end": math.nan, "until": 5}),
    ],
)
def test_impossible_schedules_are_refused_by_name(kind, bad):
    with pytest.raises(ValueError, match=rf"outer\.schedule\.({'|'.join(bad)})="):
        kind(**bad)
