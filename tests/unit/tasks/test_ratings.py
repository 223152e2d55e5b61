"""Ratings: taste and attributes decide them, and ids are those of a few popular items."""

import numpy as np
import pytest
import torch

from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.ratings import Ratings

SOURCE = Ratings(items=300, attributes=3, noise=0.0, shots=20, query=30)


def keys(count=40, split="train"):
    return [TaskKey(0, split, 0, index) for index in range(count)]


def episodes(source=SOURCE, named=None):
    return source.collect([source.sample(key) for key in named or keys()], steps=2)


def test_a_few_numbers_explain_all_ratings_of_a_user():
    found = episodes()
    support, query = found.support[0], found.query
    assert support.x.shape == (40, 20, 1) and query.y.shape == (40, 30, 1)
    for number in range(40):
        known = SOURCE.attributes_of(support.x[number, :, 0].numpy())
        taste, *_ = np.linalg.lstsq(known, support.y[number, :, 0].numpy(), rcond=None)
        predicted = SOURCE.attributes_of(query.x[number, :, 0].numpy()) @ taste
        np.testing.assert_allclose(predicted, query.y[number, :, 0], atol=1e-4)


def test_ids_are_items_and_low_ones_are_the_most_rated():
    ids = episodes(named=keys(400)).query.x
    assert ids.dtype == torch.int64 and ids.min() == 0 and 250 < ids.max() < 300
    share = (ids < 10).double().mean()
    assert share == pytest.approx(np.log(11) / np.log(301), abs=0.03)


def test_attributes_are_of_variance_one_and_the_same_for_ever():
    numbers = Ratings(attributes=4).attributes_of(np.arange(20_000))
    assert numbers.std(0) == pytest.approx(1, abs=0.02) and abs(numbers.mean()) < 0.02
    assert numbers[0, :3].tolist() == SOURCE.attributes_of(np.array([0]))[0].tolist()


def test_noise_has_the_deviation_that_is_asked_for():
    noisy = Ratings(items=300, attributes=3, noise=0.5, shots=20, query=30)
    apart = episodes(noisy).query.y - episodes().query.y
    assert float(apart.std()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("wrong", [{"items": 0}, {"attributes": 0}, {"noise": -1.0}])
def test_what_is_no_number_of_such_is_refused(wrong):
    with pytest.raises(ValueError, match=f"task.{next(iter(wrong))}="):
        Ratings(**wrong)
