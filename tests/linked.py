"""Linked shards in this process, for tests: each waits for the others, so each has a thread."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from maml_dist.runtime.links import Door

KEY = b"k" * 32


def linked(size, host=None, keys=None):
    """The links of a group, in the order of ranks."""
    doors = [Door(host) for _ in range(size)]
    addresses = [door.address for door in doors]
    pairs = enumerate(keys or [KEY] * size)
    with ThreadPoolExecutor(size) as pool:
        made = [pool.submit(doors[rank].meet, rank, addresses, key) for rank, key in pairs]
        return [each.result() for each in made]


def at_once(members, call):
    """What each returns of a call that all make at once."""
    with ThreadPoolExecutor(len(members)) as pool:
        return [each.result() for each in [pool.submit(call, one) for one in members]]


def same_state(one, other):
    """Assert that two states of a server have the same bits."""
    assert one[0] == other[0] and np.array_equal(one[1], other[1])
    assert one[2].keys() == other[2].keys()
    for name in one[2]:
        assert np.array_equal(one[2][name], other[2][name]), name
