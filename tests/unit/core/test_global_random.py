import random

import numpy as np
import torch

from maml_dist.core.global_random import global_generators


def draw():
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


def test_all_three_are_seeded_and_afterwards_where_they_were():
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    expected = draw()
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    with global_generators() as seed:
        seed(7)
        first = draw()
        seed(7)
        assert draw() == first
    assert draw() == expected
    assert first[1] == np.random.RandomState(7).rand(2).tolist()
    assert first[2] == random.Random(7).random()
    assert first[0] == torch.rand(2, generator=torch.Generator().manual_seed(7)).tolist()


def test_what_fails_inside_leaves_them_where_they_were():
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    try:
        with global_generators() as seed:
            seed(2**40)
            raise KeyError
    except KeyError:
        pass
    assert np.random.rand() == expected
