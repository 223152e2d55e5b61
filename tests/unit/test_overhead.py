"""The model of a round's cost: what it is fitted to comes out, and what it says of networks."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import overhead_model as model  # noqa: E402 - not installed


def seconds(coefficients, *of):
    return float(
        np.dot(coefficients, [1, of[2], model.traffic(*of), model.updated(*of, all_actors=True)])
    )


def rounds(mode, coefficients):
    sizes = (10_000, 1_000_000, 10_000_000)
    return [
        model.Round(
            mode,
            size,
            shards,
            seconds(coefficients, mode, size, shards),
        )
        for size in sizes
        for shards in (1, 2, 4, 8)
    ]


@pytest.mark.parametrize("mode", ["one", "split", "spread"])
@pytest.mark.parametrize("coefficients", [(1e-3, 2e-4, 1e-9, 3e-9), (0.0, 1e-4, 3e-10, 0.0)])
def test_the_fit_finds_what_was_put_in(mode, coefficients):
    found, residuals = model.fit(rounds(mode, coefficients))
    np.testing.assert_allclose(found, coefficients, rtol=1e-4, atol=1e-13)
    np.testing.assert_allclose(residuals, 0, atol=1e-6)


def test_no_coefficient_is_below_zero():
    falling = [model.Round("one", 10_000, n, 1e-3 - 1e-5 * n) for n in (1, 2, 4, 8)]
    assert (model.fit(falling)[0] >= 0).all()


def test_what_moves():
    """By counting messages: to the server and back; to all others; to owners and back."""
    whole = 4 * 1_000_000
    assert model.traffic("one", 1_000_000, 4) == 8 * whole
    assert model.traffic("spread", 1_000_000, 4) == 4 * 2 * whole * 3 / 4
    assert model.traffic("spread", 50_000, 4) == 4 * 3 * 200_000
    assert model.busiest("one", 1_000_000, 4) == 8 * whole
    assert model.busiest("split", 1_000_000, 4) == 4 * whole
    assert model.busiest("spread", 1_000_000, 4) == 1.5 * whole
    assert model.busiest("spread", 1_000_000, 512) < 2 * whole


def test_a_slower_network_takes_longer():
    found = model.fit(rounds("one", (1e-3, 2e-4, 1e-9, 3e-9)))[0]
    times = [model.reached(found, "one", 1_000_000, 64, gbit) for gbit in (10, 100, 400)]
    assert times == sorted(times, reverse=True)
    copied, wired = 2 * 64 * 4e6, 56 * 4e6  # eight of the shards are beside the server
    expected = 1e-3 + 64 * 2e-4 + copied * 1e-9 + wired * 8e-10 + 3e-3
    assert times[0] == pytest.approx(expected, rel=1e-4)


def test_what_passes_a_card():
    """By counting messages, eight shards a machine: none of one machine's own."""
    whole = 4 * 1_000_000
    assert [model.wired(mode, 1_000_000, 8) for mode in ("one", "split", "spread")] == [0, 0, 0]
    assert model.wired("one", 1_000_000, 64) == 56 * whole
    assert model.wired("spread", 1_000_000, 16) == 2 * whole / 2  # half of each, both ways
    assert model.wired("spread", 50_000, 16) == 8 * 8 * 200_000  # each to each of the other machine


def test_what_computes_for_longer_takes_more_shards():
    found = np.array([1e-3, 1e-4, 1e-9, 3e-9])
    most = [model.most_shards(found, "spread", 1_000_000, each, 10) for each in (0.001, 0.2, 100)]
    assert most[0] == 0 and 8 <= most[1] < most[2] == model.MOST
    at = [model.reached(found, "spread", 1_000_000, each, 10) for each in (most[1], 2 * most[1])]
    assert at[0] <= 0.2 / 9 < at[1]
