import math
import threading

import pytest
import torch

from maml_dist.core.data.episode import Batch, supervised
from maml_dist.runtime import prefetch
from maml_dist.runtime.prefetch import EpisodePrefetcher


class Collecting:
    """Gives episodes whose numbers name their iteration; notes what is asked, and where."""

    def __init__(self, *, numbers=2000, fails_from=None):
        self.numbers, self.fails_from = numbers, fails_from
        self.asked = []

    def __call__(self, first, count):
        self.asked.append((first, count, threading.current_thread() is threading.main_thread()))
        if self.fails_from is not None and first + count > self.fails_from:
            raise OSError("a file is gone")
        batches = [
            Batch(*(torch.full((self.numbers // 2,), float(it)),) * 2)
            for it in range(first, first + count)
        ]
        return [supervised(batch, batch, steps=1) for batch in batches]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 20,000 numbers, of 16 iterations at the most."""
    monkeypatch.setattr(prefetch, "BLOCK", 20_000)
    monkeypatch.setattr(prefetch, "AT_ONCE", 16)


@pytest.fixture
def quick(monkeypatch):
    """Collecting is quick, however busy the machine is."""
    monkeypatch.setattr(prefetch, "QUICK", math.inf)


@pytest.fixture
def slow(monkeypatch):
    """Collecting takes its time."""
    monkeypatch.setattr(prefetch, "QUICK", -1.0)
    monkeypatch.setattr(prefetch, "COLD", 0.0)


def first_numbers(collected, its):
    return [float(collected.of(it).query.x[0]) for it in its]


@pytest.mark.parametrize("pace", ["quick", "slow"])
def test_each_iteration_has_its_own_episodes_forwards_backwards_and_anew(pace, request):
    request.getfixturevalue(pace)
    its = [0, 1, 2, 9, 10, 11, 30, 29, 3, 3, 25]
    assert first_numbers(EpisodePrefetcher(Collecting()), its) == its


def test_what_is_quick_is_collected_here_a_block_at_a_time(quick):
    collect = Collecting(numbers=2000)
    first_numbers(EpisodePrefetcher(collect), range(7, 21))
    # One iteration to measure by, then those of blocks [0, 10), [10, 20), [20, 30).
    assert collect.asked == [(7, 1, True), (0, 10, True), (10, 10, True), (20, 10, True)]


def test_what_takes_its_time_goes_on_ahead_in_a_thread(slow):
    collect = Collecting(numbers=2000)
    first_numbers(EpisodePrefetcher(collect), range(11))
    assert collect.asked[:3] == [(0, 1, True), (0, 10, True), (10, 10, False)]


@pytest.mark.parametrize(
    ("seconds", "thread"),
    [
        ([0.001], False),
        ([0.5, 0.001], False),  # the first call of a process imports and traces
        ([0.5, 0.1], True),
        ([2.0], True),  # is not done again for that
    ],
)
def test_how_long_it_takes_is_measured_when_the_process_is_warm(monkeypatch, seconds, thread):
    now, take = [0.0], iter([*seconds, *[0.0] * 9])

    class Timed(Collecting):
        def __call__(self, first, count):
            now[0] += next(take)
            return super().__call__(first, count)

    monkeypatch.setattr(prefetch.time, "monotonic", lambda: now[0])
    collect = Timed(numbers=2000)
    first_numbers(EpisodePrefetcher(collect), range(10, 12))
    monkeypatch.undo()
    tries = len(seconds)
    assert [asked[:2] for asked in collect.asked[:tries]] == [(10, 1)] * tries
    assert [asked[2] for asked in collect.asked[tries + 1 :]] == [False] * thread


@pytest.mark.parametrize(("numbers", "count"), [(2, 16), (5000, 4), (50_000, 1)])
def test_a_block_holds_so_many_iterations_as_bound_its_size(quick, numbers, count):
    collect = Collecting(numbers=numbers)
    EpisodePrefetcher(collect).of(0)
    assert [asked[:2] for asked in collect.asked] == [(0, 1), (0, count)]


def test_what_fails_ahead_is_raised_where_it_is_needed(slow):
    ahead = EpisodePrefetcher(Collecting(fails_from=10))
    assert first_numbers(ahead, range(10)) == [*range(10)]
    with pytest.raises(OSError, match="a file is gone"):
        ahead.of(10)
