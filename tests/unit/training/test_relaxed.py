"""Updates that need not wait: what is handed out when, what is dropped, and how stale it is."""

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maml_dist.config.compose import compose
from maml_dist.runs.run import Run
from maml_dist.training.loop import loop


class Shard:
    def __init__(self, group, name):
        self.group, self.name, self.gradient = group, name, self

    def remote(self, meta, it, *, slice):
        assert not any(by is self for by, _ in self.group.under_way), "it computes already"
        part = (it, slice, meta)
        self.group.asked.append((self.name, it, slice, meta))
        self.group.under_way.append((self, part))
        return part


class Group:
    """Shards that answer in an order that is given; weights are the number of updates."""

    parallel = True

    def __init__(self, shards, slices, order):
        self.slices, self._order = slices, deque(order)
        self._shards = [Shard(self, name) for name in shards]
        self.asked: list[Any] = []
        self.under_way: list[Any] = []
        self.updates: list[Any] = []
        self.server = self.meta = self.update = self.state = self.eval_parameters = self

    def remote(self, *parts, facts=None):
        if facts is not None:
            self.updates.append(([(it, slice) for it, slice, _ in parts], facts))
        return len(self.updates) if facts is None else (len(self.updates), facts)

    def shards_up(self):
        return self._shards

    def submitted(self, it):
        pass

    def first(self, references):
        name = self._order.popleft()
        (done,) = [each for each in self.under_way if each[0].name == name]
        self.under_way.remove(done)
        assert done[1] in references
        return [done[1]]


def run_with(group, iterations=3, **keys):
    given = {"iterations": iterations, "checkpoint_every": 100, "meta_batch": 4, "slices": 2}
    experiment = Run(Path("unused"), compose("sinusoid", given | keys)).experiment
    unread = []
    for count in loop(experiment, group, unread, start=0, stop=lambda: False):
        del unread[:count]
    return group.updates


def facts(staleness, most, dropped):
    return {"staleness": staleness, "staleness/most": most, "dropped": dropped}


def test_a_shard_that_is_free_goes_ahead_at_stale_weights():
    group = Group("ab", 2, "bbabab")
    updates = run_with(group, max_staleness=1)
    # b does its slice, then both of the next iteration's but at the first weights; then a answers.
    assert group.asked[:4] == [("a", 0, 0, 0), ("b", 0, 1, 0), ("b", 1, 0, 0), ("b", 1, 1, 0)]
    assert [parts for parts, _ in updates] == [[(it, 0), (it, 1)] for it in range(3)]
    assert updates[0][1] == facts(0.0, 0.0, 0.0)
    assert updates[1][1] == facts(1.0, 1.0, 0.0)
    assert max(each["staleness/most"] for _, each in updates) == 1.0


def test_no_shard_goes_further_ahead_than_allowed():
    group = Group("ab", 2, "bbbbb" + "a" + "babababab")
    with pytest.raises(ValueError, match="not enough values"):  # b has nothing to do
        run_with(group, max_staleness=1)
    assert max(it for _, it, _, _ in group.asked) == 1


def test_an_update_does_not_wait_for_backups_and_counts_them():
    group = Group("abc", 3, "ababab")
    updates = run_with(group, meta_batch=6, slices=3, backup=1)
    assert [parts for parts, _ in updates] == [[(it, 0), (it, 1)] for it in range(3)]
    assert [each["dropped"] for _, each in updates] == [1.0] * 3
    assert [each["staleness"] for _, each in updates] == [0.0] * 3
    assert [it for name, it, _, _ in group.asked if name == "c"] == [0]  # it is still at that


def test_what_is_late_is_not_taken_for_another_iterations():
    group = Group("ab", 2, "aaba")
    updates = run_with(group, backup=1, iterations=3)
    assert [parts for parts, _ in updates][:2] == [[(0, 0)], [(1, 0)]]
    assert all(len(parts) == 1 for parts, _ in updates)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"backup": 2}, "backup=2: must be fewer than the 2 slices"),
        ({"backup": 1, "server": "spread"}, "backup=1: one server makes such updates"),
        ({"max_staleness": 1, "outer.epochs": 2}, "max_staleness=1: this update asks all tasks"),
        ({"max_staleness": -1}, "max_staleness=-1"),
        ({"servers": 2}, "servers=2: are parts of server=split"),
        ({"server": "split", "outer.epochs": 2}, "server=split: the update of Adam asks"),
        ({"server": "both"}, "server"),
    ],
)
def test_what_cannot_be_is_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        replace(Run(Path("unused"), compose("sinusoid", {"slices": 2} | keys)).experiment)
