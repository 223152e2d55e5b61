import numpy as np
import pytest

from maml_dist.core.data.task_source import TaskKey

KEY = TaskKey(seed=3, split="train", it=5, index=7)


def test_the_same_key_draws_the_same_numbers():
    assert KEY.rng().random(4).tolist() == KEY.rng().random(4).tolist()


@pytest.mark.parametrize("other", [{"seed": 4}, {"split": "val"}, {"it": 6}, {"index": 8}])
def test_another_key_draws_others(other):
    assert not np.isin(KEY.rng().random(4), KEY._replace(**other).rng().random(4)).any()


def test_salt_gives_a_second_stream():
    assert KEY.rng().random() != KEY.rng(1).random()


def test_draws_over_keys_are_uniform_and_uncorrelated():
    draws = np.array([KEY._replace(index=i).rng().random() for i in range(20000)])
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * 20000)
    assert abs(draws.var() * 12 - 1) < 0.05
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 4 / np.sqrt(20000)
