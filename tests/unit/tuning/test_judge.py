"""Which validation of a trial counts, and which trials no other beats."""

import math
from itertools import product

import pytest

from maml_dist.config.compose import build, compose
from maml_dist.tuning.judge import Judge, judge
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trial_run import WORST, Reached

CONFIG = compose("sinusoid", {"alpha": 0.5, "learner.steps": 3, "test_steps": 4})
ALPHA = {"alpha": {"loguniform": [0.001, 1]}}


def made(config=CONFIG, names=("mse",), **keys):
    return judge(Search("sinusoid", ALPHA, **keys), build(config), config, names=list(names))


def test_what_is_not_said_is_the_tasks_own():
    assert made() == Judge(("val/mse/path",), (False,))
    navigation = compose("navigation")
    assert made(navigation, ["return"]) == Judge(("val/return/path",), (True,))


@pytest.mark.parametrize(
    ("keys", "right"),
    [
        ({"metric": "val/mse/1"}, Judge(("val/mse/1",), (False,))),
        ({"metric": "val/mse", "mode": "max"}, Judge(("val/mse",), (True,))),
        ({"metric": ["val/mse", "seconds"]}, Judge(("val/mse", "seconds"), (False, False))),
        ({"metric": ["val/mse", "learner.steps"], "mode": ["max", "min"]},
         Judge(("val/mse", "learner.steps"), (True, False))),
        ({"metric": "eps"}, Judge(("outer.eps",), (False,))),
    ],
)  # fmt: skip
def test_what_is_said(keys, right):
    assert made(**keys) == right


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("val/mes", "did you mean 'val/mse'"),
        ("val/mse_spread", "needs a mode, min or max"),
        ("val/mse/5", "metric=val/mse/5: is none of this recipe"),
        ("loss", "is none of this recipe"),
        ("outer.clip", "metric=outer.clip: is None in this recipe, no number"),
        ("init_scale", "is none of this recipe"),
    ],
)
def test_a_metric_that_is_none_is_one_clear_line(metric, said):
    with pytest.raises(ValueError, match=said) as caught:
        made(names=("mse", "mse_spread"), metric=metric)
    assert "\n" not in str(caught.value)


def test_the_front_is_that_by_definition():
    points = [[a, b] for a, b in product([1.0, 2.0, 3.0], repeat=2)] + [[1.0, 1.0], [0.5, 2.0]]
    front = Judge(("x", "y"), (False, True)).front(points)

    def beats(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    assert front == [
        number for number, each in enumerate(points) if not any(beats(one, each) for one in points)
    ]
    assert [points[number] for number in front] == [[1.0, 3.0], [0.5, 2.0]]


def test_how_far_a_trial_has_got():
    reached = Reached(made(metric=["val/mse/path", "learner.steps"]), CONFIG)
    assert reached.told()["score"] == WORST and reached.scores is None
    assert not reached.take({"iteration": 100, "loss/after": 1.0, "it_per_s": 50.0})
    assert reached.take({"iteration": 200, "it_per_s": 100.0, "val/mse/path": 0.5})
    assert reached.take({"iteration": 300, "val/mse/path": 0.7})
    told = reached.told()
    assert told["iteration"] == 300 and told["score"] == 0.5 and told["scores"] == [0.5, 3.0]
    assert told["train_seconds"] == 3.0 and not told["diverged"]
    for lost in (math.nan, math.inf, None):  # as metrics.jsonl has it
        reached.take({"iteration": 400, "val/mse/path": lost})
        assert reached.diverged and reached.scores == [0.5, 3.0]


def test_more_of_a_return_is_better():
    reached = Reached(Judge(("val/return/path",), (True,)), CONFIG)
    assert reached.told()["score"] == -WORST
    for value in (-5.0, -2.0, -3.0):
        reached.take({"iteration": 1, "val/return/path": value})
    assert reached.told()["score"] == -2.0
