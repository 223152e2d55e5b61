"""Partial sums: whoever adds what, the bits are the same."""

import random

import numpy as np
import pytest

from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.partial_sums import PartialSum, add_up, holder, share, total


def contributions(slices):
    draw = np.random.default_rng(slices)
    return [
        Contribution(
            (draw.standard_normal(50) * 10 ** draw.uniform(-3, 3, 50)).astype(np.float32),
            n + 1,
            {"loss/after": draw.standard_normal()} if n != 2 else {},
            (n,),
            ("slow",),
        )
        for n in range(slices)
    ]


@pytest.mark.parametrize("slices", range(1, 14))
def test_who_adds_up_what_changes_no_bit(slices):
    given, draw = contributions(slices), random.Random(slices)
    expected = total(given)
    for of in range(1, slices + 1):
        groups = [[PartialSum(n, n + 1, given[n]) for n in share(slices, k, of)] for k in range(of)]
        sent = [part for group in groups for part in add_up(group, slices)]
        draw.shuffle(sent)
        (whole,) = add_up(sent, slices)
        assert (whole.first, whole.stop) == (0, slices)
        assert np.array_equal(whole.sum.gradient, expected.gradient)
        assert whole.sum[1:] == expected[1:]
    assert expected.tasks == slices * (slices + 1) // 2
    assert expected.skipped == tuple(range(slices)) and expected.warnings == ("slow",)
    exact = sum(each.gradient.astype(np.float64) for each in given)
    np.testing.assert_allclose(expected.gradient, exact, rtol=1e-4, atol=1e-3)


def test_the_order_is_a_tree():
    one, two, three, four, five = contributions(5)
    by_hand = ((one.gradient + two.gradient) + (three.gradient + four.gradient)) + five.gradient
    assert np.array_equal(total([one, two, three, four, five]).gradient, by_hand)


def test_what_has_no_neighbour_stays_apart():
    parts = [PartialSum(n, n + 1, each) for n, each in enumerate(contributions(8))]
    added = add_up([parts[n] for n in (1, 2, 3, 4, 5, 7)], 8)
    assert [(each.first, each.stop) for each in added] == [(1, 2), (2, 4), (4, 6), (7, 8)]


@pytest.mark.parametrize(("slices", "of"), [(1, 1), (5, 2), (6, 4), (7, 7), (16, 5), (2, 3)])
def test_each_slice_has_one_holder(slices, of):
    shares = [share(slices, number, of) for number in range(of)]
    assert [n for each in shares for n in each] == [*range(slices)]
    for slice in range(slices):
        assert slice in shares[holder(slice, slices, of)]
