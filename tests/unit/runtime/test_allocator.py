import gc

import pytest

from maml_dist.runtime.allocator import freeze_gc


@pytest.fixture(autouse=True)
def afresh():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_the_collector_is_spared_inside_alone():
    counts = []
    kept = []

    def pieces():
        counts.append(gc.get_freeze_count())
        kept.extend([] for _ in range(5000))
        yield from "abc"

    seen = []
    for piece in freeze_gc(pieces()):
        counts.append(gc.get_freeze_count())
        seen.append(piece)
    assert seen == ["a", "b", "c"] and len(kept) == 5000
    assert 0 < counts[0] < counts[1] - 4900  # what the first piece made is spared too
    assert counts[1] >= counts[2] >= counts[3]  # nothing is frozen again; what dies is not
    assert gc.get_freeze_count() == 0


def test_what_the_work_raises_ends_it_too():
    def pieces():
        yield 1
        raise FloatingPointError("diverged")

    with pytest.raises(FloatingPointError, match="diverged"):
        list(freeze_gc(pieces()))
    assert gc.get_freeze_count() == 0


def test_what_the_caller_froze_stays_frozen():
    gc.freeze()
    assert list(freeze_gc(iter([1, 2]))) == [1, 2]
    assert gc.get_freeze_count() > 0


def test_what_one_thread_spares_another_does_not_give_back():
    first, second = freeze_gc(iter("ab")), freeze_gc(iter("ab"))
    next(first), next(second)
    assert [*first] == ["b"] and gc.get_freeze_count() > 0
    assert [*second] == ["b"] and gc.get_freeze_count() == 0
