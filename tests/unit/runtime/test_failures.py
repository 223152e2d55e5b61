"""What a run survives, and what it ends by."""

import pytest

from maml_dist.runtime.backend import ResourceRequest, Resources, ShardRange, how_many
from maml_dist.runtime.failures import Failures


def failures(most=3):
    return Failures(most=most, meta_batch=8, slices=4)


def test_failures_with_an_iteration_between_are_survived_without_end():
    of = failures(most=1)
    for it in range(50):
        of.note("shard 1 was lost", slices=(0,))
        of.count(it)


def test_too_many_in_a_row_tell_the_whole_story_once():
    of = failures(most=2)
    for line in ("shard 1 was lost", "shard 2 was lost"):
        of.note(line)
        of.count(7)
    of.note("shard 2 was lost")
    with pytest.raises(
        ChildProcessError, match="^3 failures at iteration 7.*lost; shard 2 was lost$"
    ):
        of.count(7)


def test_a_task_that_ends_each_process_is_named_by_the_slice_they_share():
    of = failures(most=9)
    for slices in ((0, 1, 2), (1, 2), (2, 3)):
        of.note("lost", slices=slices)
        if slices != (2, 3):
            of.count(5)
    with pytest.raises(ChildProcessError, match="iteration 5, .* one of its tasks 2, 6 does"):
        of.count(5)


@pytest.mark.parametrize("lost", [((0, 1), (2,), (3,)), ((0, 1), (), (0, 1))])
def test_machines_that_are_lost_count_against_no_task(lost):
    of = failures(most=9)
    for slices in lost:
        of.note("lost", slices=slices)
        of.count(5)


@pytest.mark.parametrize(
    ("shards", "cores", "devices", "expected"),
    [
        (None, 4, 0, (4, 0.0, 4)),
        (None, 64, 0, (8, 0.0, 8)),  # no more than tasks
        (None, 0.5, 0, (1, 0.0, 1)),
        (None, 16, 2, (2, 1.0, 2)),
        (3, 1, 0, (3, 0.0, 3)),
        (ShardRange(max=6, min=2), 1, 0, (6, 0.0, 2)),
        (ShardRange(max=20), 1, 0, (8, 0.0, 1)),
    ],
)
def test_how_many_shards_there_are(shards, cores, devices, expected):
    request = ResourceRequest(1, None)
    found = how_many(shards, request, cores=cores, devices=devices, most=8)
    assert (found.shards, found.gpus, found.least) == expected


def test_a_range_is_written_as_a_range():
    request = ResourceRequest(1, 0)
    assert Resources(4, 0, request, 2).key == {"min": 2, "max": 4}
    assert Resources(4, 0, request, 4).key == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"min": 3, "max": 2}, "shards.min=3: more than shards.max=2"),
        ({"min": 0, "max": 2}, "shards.min=0: must be 1 or more"),
    ],
)
def test_a_range_that_is_none_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        ShardRange(**given)


def test_a_state_from_before_the_failure_is_no_progress():
    """Linked shards go back to a snapshot, each time a little later, and meet the same task."""
    failures = Failures(most=10, meta_batch=4, slices=2)
    for it in (278, 279):
        failures.note("lost", slices=[1])
        failures.count(it, furthest=320)
    failures.note("lost", slices=[1])
    with pytest.raises(ChildProcessError, match="iteration 280 to 320, .* of its tasks 1, 3 does"):
        failures.count(280, furthest=310)
    failures = Failures(most=1, meta_batch=4, slices=2)
    failures.count(278, furthest=320)
    failures.count(321, furthest=400)
    assert failures.in_a_row == 1
