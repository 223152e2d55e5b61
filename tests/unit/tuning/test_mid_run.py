"""What a population cannot have is refused in one line before anything starts."""

import pytest

from maml_dist.config.compose import compose, override
from maml_dist.tuning.mid_run import refuse_fixed
from maml_dist.tuning.search_space import Finish, Search

CONFIG = compose("sinusoid", {"iterations": 20, "checkpoint_every": 10})
ALPHA = {"alpha": {"loguniform": [0.001, 0.1]}}


def plan(search, **keys):
    return Search("sinusoid", search, **{"scheduler": "pbt", "num_samples": 4, **keys})


@pytest.mark.parametrize(
    ("search", "overrides"),
    [
        (ALPHA | {"steps": {"randint": [1, 3]}, "outer.clip": {"choice": [None, 10.0]}}, {}),
        (
            {"momentum": {"choice": [0.5, 0.9]}, "first_order": {"choice": [True, False]}},
            {"outer": "SGD"},
        ),
    ],
)
def test_numbers_of_the_learner_and_the_outer_optimizer_can_change(search, overrides):
    refuse_fixed(plan(search), override(CONFIG, overrides) if overrides else CONFIG)


BEGIN, ARE = (
    "it says where learned values, or moments, begin",
    "it decides which parameters, or mom",
)


@pytest.mark.parametrize(
    ("search", "overrides", "said"),
    [
        ({"learner": {"choice": ["MAML", "MetaSGD"]}}, {}, "search.learner: cannot change in mid"),
        ({"hidden": {"choice": [[3], [4]]}}, {}, "search.hidden: cannot change in mid-run"),
        ({"shots": {"randint": [3, 6]}}, {}, "search.shots: cannot change in mid-run"),
        ({"seed": {"randint": [3, 6]}}, {}, "search.seed: cannot change in mid-run"),
        (
            {"decays": {"choice": [[0.9, 0.9], [0.9, 1]]}},
            {},
            "search.decays: cannot change in mid-run",
        ),
        (ALPHA, {"learner": "MetaSGD"}, BEGIN),
        ({"initial": {"uniform": [0.0, 1.0]}}, {"outer": "Adagrad"}, BEGIN),
        ({"momentum": {"quniform": [0, 0.9, 0.1]}}, {"outer": "SGD"}, ARE),
        ({"alhpa": {"uniform": [0, 1]}}, {}, "did you mean 'alpha'?"),
        (ALPHA, {"checkpoint_every": 30}, "perturbation_interval=30: must be less than the 20"),
    ],
)
def test_what_is_fixed_is_refused_in_one_line(search, overrides, said):
    with pytest.raises(ValueError) as caught:
        refuse_fixed(plan(search), override(CONFIG, overrides) if overrides else CONFIG)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_samples": 1}, "num_samples=1: a population has 2"),
        ({"algorithm": "tpe"}, "algorithm=tpe: has an effect not with scheduler=pbt"),
        ({"grace_period": 5}, "grace_period=5: has an effect not with"),
        ({"scheduler": "asha", "perturbation_interval": 5}, "with scheduler=pbt alone"),
        ({"perturbation_interval": 0}, "perturbation_interval=0"),
        ({"quantile_fraction": 0.6}, "quantile_fraction=0.6"),
        ({"resample_probability": 1.1}, "resample_probability=1.1"),
        ({"perturbation_factors": (1.2, 1.1)}, "one over and one under 1"),
        ({"metric": ["val/mse", "seconds"]}, "compares trials by one metric"),
        ({"finish": Finish(seeds=3)}, "finish: a schedule"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, said):
    with pytest.raises(ValueError) as caught:
        plan(ALPHA, **keys)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_cannot_change_is_refused():
    for one in ({"choice": [2]}, {"randint": [2, 3]}):
        with pytest.raises(ValueError, match="search.steps: has one value"):
            plan(ALPHA | {"steps": one})


def test_conditions_are_refused():
    under = {"alpha": {"uniform": [0.1, 1], "when": {"steps": 1}}}
    with pytest.raises(ValueError, match="search.alpha.when: with scheduler=pbt"):
        plan({"steps": {"choice": [1, 2]}} | under)
