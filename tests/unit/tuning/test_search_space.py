"""What is searched: files and words as a Search."""

import pytest
import yaml

from maml_dist.config.recipe import parse_overrides
from maml_dist.tuning.search_space import Search, read
from maml_dist.tuning.tried import tried

ALPHA = {"alpha": {"loguniform": [0.001, 1]}}


@pytest.fixture
def file(tmp_path):
    """Writes a search of the sinusoid's alpha with other keys; returns its path."""

    def write(**keys):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"recipe": "sinusoid", "search": ALPHA, **keys}))
        return path

    return write


def test_a_file_and_its_defaults(file):
    plan = read(file(num_samples=3, overrides={"iterations": 9}))
    assert plan == Search("sinusoid", ALPHA, overrides={"iterations": 9}, num_samples=3)


def test_words_change_the_search_and_the_recipe(file):
    path = file(num_samples=3, overrides={"iterations": 9, "task.shots": 5})
    plan = read(path, parse_overrides(["num_samples=4", "iterations=300", "shots=7", "seed=2"]))
    assert plan.num_samples == 4 and plan.seed == 2
    assert plan.overrides == {"iterations": 300, "shots": 7}


def test_words_can_exchange_what_is_searched(file):
    words = ["search={steps: {choice: [1, 2]}}", "alpha=0.1"]
    plan = read(file(), parse_overrides(words))
    assert plan.search == {"steps": {"choice": [1, 2]}} and plan.overrides == {"alpha": 0.1}


def test_numbers_as_yaml_misreads_them(file):
    plan = read(file(search={"alpha": {"loguniform": ["1e-3", 1]}}))
    assert plan.search["alpha"] == {"loguniform": [0.001, 1]}


def test_every_value_that_is_tried_is_in_a_draw_that_can_be_made():
    plan = Search(
        "sinusoid",
        {
            "learner.alpha": {"uniform": [1, 3], "when": {"learner": "MAML"}},
            "learner": {"choice": ["MetaSGD", "MAML", "Reptile"]},
            "learner.inner": {
                "choice": ["SGD", "Adam"],
                "when": {"learner": ["Reptile", "MAML"]},
            },
            "steps": {"randint": [1, 10]},
        },
    )
    drawn = tried(plan)
    assert {each.get("learner.alpha") for each in drawn} == {1.0, 3.0, 1.764, None}
    assert {each["learner"] for each in drawn} == {"MetaSGD", "MAML", "Reptile"}
    assert {each.get("learner.inner") for each in drawn} == {"SGD", "Adam", None}
    assert {each["steps"] for each in drawn} == {1, 9, 5}
    assert all(("learner.alpha" in each) == (each["learner"] == "MAML") for each in drawn)
    assert len(drawn) <= 7


def test_how_many_trials():
    assert Search("sinusoid", ALPHA).num_trials == 16
    grids = {"alpha": {"grid": [1, 2]}, "steps": {"grid": [1, 2, 3]}}
    assert Search("sinusoid", grids).num_trials == 6
    assert Search("sinusoid", grids, num_samples=2).num_trials == 12


def test_optuna_is_its_default(file):
    assert read(file(algorithm="optuna")).algorithm == "tpe"


@pytest.mark.parametrize(
    ("distribution", "said"),
    [
        ({"loguniform2": [1, 2]}, "no distribution 'loguniform2'; did you mean 'loguniform'?"),
        ({"eval": ["print(1)"]}, "no distribution 'eval'"),
        ({"loguniform": [1]}, r"loguniform takes \[low, high\], not \[1\]"),
        ({"uniform": [1, 2, 3]}, r"uniform takes \[low, high\], not \[1, 2, 3\]"),
        ({"uniform": [2, 1]}, "low < high"),
        ({"uniform": [0, float("inf")]}, "low < high"),
        ({"uniform": ["a", "b"]}, "numbers"),
        ({"loguniform": [0, 1]}, "0 < low < high"),
        ({"randint": [1, 2.5]}, "whole numbers"),
        ({"choice": []}, "choice takes"),
        ({"randint": [0, 2**63]}, "whole numbers up to 2147483647"),
        ({"lograndint": [True, 3]}, "whole numbers"),
        ({"uniform": [0, 1], "choice": [1]}, "takes one distribution, not 2"),
        ({}, "takes one distribution, not 0"),
        ({"uniform": {"low": 1}}, "uniform takes"),
        ({"quniform": [0, 1]}, r"quniform takes \[low, high, step\]"),
        ({"quniform": [0, 1, 2]}, "0 < step"),
        ({"qloguniform": [0, 1, 0.1]}, "0 < low < high"),
        ({"normal": [0, 0]}, "0 < deviation"),
        ({"normal": [0, 1, 2]}, "normal takes"),
        ({"lognormal": [1000, 1]}, "too large"),
        ({"uniform": [-1e308, 1e308]}, "low < high"),
        ({"choice": [1, 2, 1]}, "1 is there twice"),
        ({"choice": [1, 2], "when": {"steps": 1}}, "when.steps: is not searched"),
        ({"choice": [1, 2], "when": 3}, "when=3: must be keys and their values"),
        ({"choice": [1, 2], "when": {"alpha": 1}}, "alpha would depend on itself"),
    ],
)
def test_a_wrong_distribution_is_one_clear_line(distribution, said):
    with pytest.raises(ValueError, match=said) as caught:
        Search("sinusoid", {"alpha": distribution})
    assert str(caught.value).startswith("search.alpha") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_sample": 3}, "unknown key 'num_sample'; did you mean 'num_samples'?"),
        ({"num_samples": 0}, "num_samples=0: must be 1 or more"),
        ({"num_samples": "many"}, "num_samples.*many"),
        ({"algorithm": "bohb"}, "'random', 'tpe'.*bohb"),
        ({"time_budget": 0}, "time_budget=0"),
        ({"metric": []}, "metric=.*must be one name, or several"),
        ({"metric": ["val/mse", "val/mse"]}, "several different ones"),
        ({"metric": ["val/mse", "seconds"], "mode": ["min"]}, "one for each of 2 metrics"),
        (
            {"metric": ["val/mse", "seconds"], "scheduler": "asha"},
            "scheduler=asha: compares trials",
        ),
        ({"metric": ["val/mse", "seconds"], "algorithm": "cmaes"}, "use nsga2 or tpe"),
        ({"mode": "less"}, "mode"),
        ({"mode": []}, r"mode=\[\]: must be one for each"),
        (
            {
                "search": {
                    "a": {"choice": [1, 2], "when": {"b": 1}},
                    "b": {"choice": [1, 2], "when": {"a": 1}},
                }
            },
            "a would depend on itself",
        ),
        (
            {"search": {"a": {"choice": [1]}, "b": {"choice": [1], "when": {"a": []}}}},
            "when.a: must name a value",
        ),
        (
            {"search": {**ALPHA, "steps": {"choice": [1], "when": {"alpha": 1}}}},
            "when.alpha: must be a choice or a grid",
        ),
        (
            {"search": {"x": {"choice": [1]}, "y": {"grid": [1], "when": {"x": 1}}}},
            "a grid cannot have conditions",
        ),
        (
            {"search": {"x": {"choice": [1]}, "y": {"choice": [1], "when": {"x": True}}}},
            "when.x=True: must be of",
        ),
        ({"search": {"x": {"grid": list(range(1000))}}, "num_samples": 101}, "more than 100000"),
        ({"overrides": [1]}, "overrides"),
        ({"overrides": {"learner.alpha": 1}}, "the value of learner.alpha is set already"),
        ({"search": {}}, "there is no key to search"),
        ({"search": None}, "required: search"),
        ({"search": {"alpha": [1, 2]}}, "search"),
        ({"search": {**ALPHA, "learner.alpha": {"choice": [1]}}}, "is set already"),
        ({"search": {"shards": {"choice": [1, 2]}}}, "all trials share it"),
        ({"search": {"alpha": {"choice": [float("nan")]}}}, "search.alpha.choice=nan: must be"),
        ({"search": {"alpha": {"uniform": 3}}}, "search: Expected one of list.*Got value: 3"),
        ({"num_samples": 10**9}, "num_samples=1000000000: must be 1 … 100000"),
        ({"seed": 2**32}, "seed=4294967296: must be 0 … 4294967295"),
        ({"scheduler": "fifo2"}, "scheduler: Expected one of Literal.*'fifo'.*fifo2"),
        ({"overrides": {"x": float("nan")}}, "overrides.x=nan"),
    ],
)
def test_a_wrong_file_is_one_clear_line(file, keys, said):
    with pytest.raises(ValueError, match=said) as caught:
        read(file(**keys))
    assert "\n" not in str(caught.value)
