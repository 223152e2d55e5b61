import gc
import weakref

import torch

from maml_dist.core.data.episode import (
    Batch,
    Episode,
    all_keyed,
    keyed,
    map_tensors,
    split,
    supervised,
    thinned,
)
from maml_dist.core.random import fold, keys


def batch(start, tasks=5):
    x = torch.arange(float(start), start + 2 * tasks).reshape(tasks, 2)
    return Batch(x, x + 0.5)


def test_an_episode_repeats_its_support_for_every_step():
    one = batch(0)
    assert supervised(one, one, steps=3) == Episode((one, one, one), one)
    assert supervised(one, one, steps=0).support == ()


def test_split_cuts_the_tasks_in_order_and_loses_none():
    episodes = supervised(batch(0), batch(100), steps=2)._replace(key=torch.arange(5))
    parts = split(episodes, 2)
    assert [part.key.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([part.query.y for part in parts]), episodes.query.y)
    assert torch.equal(torch.cat([part.support[1].x for part in parts]), episodes.support[1].x)
    assert [part.query.key for part in parts] == [None] * 3


def test_split_leaves_what_is_one_tensor_one():
    one = batch(0)
    for part in split(supervised(one, one, steps=3), 2):
        assert part.support[0].x is part.support[2].x is part.query.x
    own = Episode((batch(0), batch(0)), batch(0))
    for part in split(own, 2):
        assert part.support[0].x is not part.support[1].x


def test_split_cuts_an_answer_of_several_tensors_and_keeps_what_is_none():
    one = batch(0)
    many = one._replace(y={"value": one.y, "also": (one.x, 3)})
    parts = split(supervised(many, many, steps=1), 2)
    assert [part.query.y["value"].tolist() for part in parts] == [
        piece.tolist() for piece in one.y.split(2)
    ]
    for part in parts:
        assert part.support[0].y["also"] == (part.query.x, 3)


def test_what_was_split_is_freed_without_the_collector():
    gc.disable()
    try:
        parts = split(supervised(batch(0), batch(100), steps=1), 2)
        piece = weakref.ref(parts[0].query.x)
        del parts
        assert piece() is None
    finally:
        gc.enable()


def test_split_keeps_an_answer_of_nothing():
    one = batch(0)._replace(y=())
    assert [part.query.y for part in split(supervised(one, one, steps=0), 2)] == [()] * 3


def test_split_into_one_is_the_whole():
    episodes = supervised(batch(0), batch(100), steps=1)
    (only,) = split(episodes, 5)
    assert torch.equal(only.query.x, episodes.query.x)


def test_a_tensor_that_stands_twice_is_mapped_once():
    seen = []

    def double(tensor):
        seen.append(tensor)
        return tensor * 2

    one = torch.ones(2)
    tree = map_tensors(double, {"a": (one, [one, 3]), "b": Batch(one, torch.zeros(1)), "c": None})
    assert tree["a"][0] is tree["a"][1][0] is tree["b"].x
    assert tree["a"][0].tolist() == [2, 2]
    assert (tree["a"][1][1], tree["b"].key, tree["c"], len(seen)) == (3, None, None, 2)


def test_every_batch_of_a_task_has_a_key_of_its_own():
    (key,) = keys(0, "train", 0, [3])
    one = batch(0)
    episode = all_keyed(supervised(one, one, steps=3)._replace(key=key), torch.arange(4).unbind())
    told = [part.key.item() for part in (*episode.support, episode.query)]
    judged = [keyed(one, key, k, query=True).key.item() for k in range(4)]
    assert told[-1] == judged[-1]
    assert len({*told, *judged, key.item()}) == 3 + 4 + 1
    assert keyed(one, key, 2).key == keyed(one, key, torch.tensor(2)).key == fold(key, 4)
    assert keyed(one, key, 2).x is one.x


def test_without_a_key_there_is_nothing_to_key():
    one = batch(0)
    assert keyed(one, None, 1) is one
    counts = torch.arange(2).unbind()
    assert all_keyed(supervised(one, one, steps=1), counts).query.key is None


def test_a_share_of_equal_rollouts_has_the_curvature_of_all():
    """Half of what is there twice; and the support is thinned by its own share alone."""

    once = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    twice = Batch(torch.cat([once, once], 1), (torch.cat([once, once], 1),))
    episodes = Episode((twice,), twice)
    half = thinned(episodes, 0.5, 1.0)
    assert torch.equal(half.query.x, once) and torch.equal(half.query.y[0], once)
    assert half.support[0].x is twice.x
    assert thinned(episodes, 1.0, 0.5).support[0].x.shape == once.shape
    assert thinned(episodes, 0.01, 1.0).query.x.shape == (2, 1, 5)
