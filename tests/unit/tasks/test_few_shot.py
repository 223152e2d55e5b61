"""FewShot: what a task may contain, and what it costs to send."""

import pickle

import numpy as np
import pytest
import torch

from maml_dist.core.data.episode import Batch
from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.few_shot import Arrays, FewShot


def numbered(classes: int = 8, examples: int = 6) -> Arrays:
    """Example e of class c holds the single number 100 c + e."""
    arrays = [100 * c + np.arange(examples, dtype=np.float32)[:, None] for c in range(classes)]
    return Arrays({"train": arrays})


def keys(count: int) -> list[TaskKey]:
    return [TaskKey(0, "train", 0, index) for index in range(count)]


def test_a_task_is_a_pure_function_of_its_key() -> None:
    here, there = FewShot(numbered(), query=2), FewShot(numbered(), query=2)
    there.sample(TaskKey(0, "train", 9, 9))
    key = TaskKey(3, "train", 5, 7)
    for mine, yours in zip(here.sample(key)[1:], there.sample(key)[1:], strict=True):
        np.testing.assert_array_equal(mine, yours)


def test_tasks_differ_between_keys() -> None:
    source = FewShot(numbered(), query=2)
    drawn = {source.sample(key).classes.tobytes() for key in keys(20)}
    assert len(drawn) > 10


def test_support_and_query_are_disjoint_and_labels_mean_one_class_each() -> None:
    source = FewShot(numbered(), ways=4, shots=2, query=3)
    episode = source.collect([source.sample(key) for key in keys(50)], steps=1)
    for task in range(50):
        numbers = torch.cat([episode.support[0].x[task, :, 0], episode.query.x[task, :, 0]]).int()
        labels = torch.cat([episode.support[0].y[task], episode.query.y[task]])
        assert len(set(numbers.tolist())) == 4 * 5
        meaning = set(zip(labels.tolist(), (numbers // 100).tolist(), strict=True))
        assert len(meaning) == 4 and {label for label, _ in meaning} == {0, 1, 2, 3}


def test_every_class_is_drawn_equally_often_under_every_label() -> None:
    source = FewShot(numbered(classes=4), ways=2, query=1)
    counts = np.zeros((4, 2))
    for key in keys(2000):
        counts[source.sample(key).classes, [0, 1]] += 1
    assert np.all(abs(counts - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75))  # five standard deviations


def test_shapes_types_and_the_support_set_for_every_step() -> None:
    images = [np.full((6, 1, 3, 3), 51 * c, np.uint8) for c in range(6)]
    source = FewShot(Arrays({"train": images}), ways=5, shots=2, query=4)
    tasks = [source.sample(key) for key in keys(3)]
    support, query, *_ = source.collect(tasks, steps=4)
    assert len(support) == 4
    assert support[0].x.shape == (3, 10, 1, 3, 3) and support[0].y.shape == (3, 10)
    assert query.x.shape == (3, 20, 1, 3, 3) and query.y.shape == (3, 20)
    assert query.x.dtype == torch.float32 and query.y.dtype == torch.int64
    expected = torch.tensor(tasks[1].classes) / 5  # uint8 51 c is c / 5 of white
    torch.testing.assert_close(query.x[1, ::4, 0, 0, 0], expected.float())


def test_loss_and_score_of_known_logits() -> None:
    source = FewShot(numbered())
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    batch = Batch(torch.zeros(4, 1), torch.tensor([0, 1, 1, 0]))
    score = source.score(logits, batch)
    wrong = np.exp([-2.0, -1.0, 3.0, 0.0])  # odds of the other class
    assert score["accuracy"].item() == 0.75
    assert score["loss"].item() == pytest.approx(np.log1p(wrong).mean(), abs=1e-12)
    assert source.loss(logits, batch) == score["loss"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FewShot(numbered(classes=3)), "task.ways=5: there are only 3 classes in split 'train'"),
        (FewShot(numbered(), shots=3, query=4), "need 7 examples .* split 'train' has 6"),
        (FewShot(Arrays({"test": []})), "ways=5: there are only 0 classes"),
        (FewShot(Arrays({"train": [np.zeros((20, 2))] * 5})), "uint8 or float32.*float64"),
        (
            FewShot(Arrays({"train": [np.zeros((20, n), np.uint8) for n in range(5)]})),
            "must all have one shape",
        ),
    ],
)
def test_data_that_cannot_give_the_task(source: FewShot, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source.sample(TaskKey(0, "train", 0, 0))


def test_one_class_too_small_is_an_error_before_it_is_drawn() -> None:
    arrays = [np.zeros((20, 1), np.uint8)] * 1000 + [np.zeros((15, 1), np.uint8)]
    with pytest.raises(ValueError, match="need 16 examples a class; .* has 15"):
        FewShot(Arrays({"train": arrays})).sample(TaskKey(0, "train", 0, 0))


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="split 'tset': must be one of train, val, test"):
        FewShot(numbered()).sample(TaskKey(0, "tset", 0, 0))


@pytest.mark.parametrize("wrong", [{"ways": 1}, {"shots": 0}, {"query": -1}])
def test_counts_out_of_range(wrong: dict[str, int]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"task.{name}={value}"):
        FewShot(numbered(), **wrong)


def test_tasks_are_tiny() -> None:
    images = Arrays({"train": [np.zeros((600, 3, 84, 84), np.uint8)] * 5})
    assert len(pickle.dumps(FewShot(images).sample(TaskKey(0, "train", 0, 0)))) < 1000
