"""What is searched: files and words as a Search."""

import pytest
import yaml

from maml_dist.config.recipe import parse_overrides
from maml_dist.tuning.search_space import Search, ends, read

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
    assert plan.num_samples == 4
    assert plan.settings == {"iterations": 300, "shots": 7, "seed": 2}


def test_words_can_exchange_what_is_searched(file):
    words = ["search={steps: {choice: [1, 2]}}", "alpha=0.1"]
    plan = read(file(), parse_overrides(words))
    assert plan.search == {"steps": {"choice": [1, 2]}} and plan.settings == {"alpha": 0.1}


def test_numbers_as_yaml_misreads_them(file):
    plan = read(file(search={"alpha": {"loguniform": ["1e-3", 1]}}))
    assert plan.search["alpha"] == {"loguniform": [0.001, 1]}


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        ({"uniform": [1, 2.5]}, [1, 2.5]),
        ({"randint": [1, 5]}, [1, 4]),
        ({"lograndint": [1, 5]}, [1, 4]),
        ({"choice": [3, "a", None]}, [3, "a", None]),
    ],
)
def test_the_ends_are_values_that_can_be_drawn(distribution, values):
    assert ends(distribution) == values


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
    ],
)
def test_a_wrong_distribution_is_one_clear_line(distribution, said):
    with pytest.raises(ValueError, match=said) as caught:
        Search("sinusoid", {"alpha": distribution})
    assert str(caught.value).startswith("search.alpha: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_sample": 3}, "unknown key 'num_sample'; did you mean 'num_samples'?"),
        ({"num_samples": 0}, "num_samples=0: must be 1 or more"),
        ({"num_samples": "many"}, "num_samples.*many"),
        ({"algorithm": "bohb"}, "'random', 'optuna'.*bohb"),
        ({"overrides": [1]}, "overrides"),
        ({"overrides": {"learner.alpha": 1}}, "the value of learner.alpha is set already"),
        ({"search": {}}, "there is no key to search"),
        ({"search": None}, "required: search"),
        ({"search": {"alpha": [1, 2]}}, "search"),
        ({"search": {**ALPHA, "learner.alpha": {"choice": [1]}}}, "is set already"),
        ({"search": {"shards": {"choice": [1, 2]}}}, "all trials share it"),
        ({"search": {"alpha": {"choice": [float("nan")]}}}, "search.alpha.choice=nan: must be"),
        ({"search": {"alpha": {"uniform": 3}}}, "search: Expected"),
        ({"num_samples": 10**9}, "num_samples=1000000000: must be 1 … 100000"),
        ({"seed": 2**32}, "seed=4294967296: must be 0 … 4294967295"),
        ({"scheduler": "fifo2"}, "scheduler: Expected a Literal"),
        ({"overrides": {"x": float("nan")}}, "overrides.x=nan"),
    ],
)
def test_a_wrong_file_is_one_clear_line(file, keys, said):
    with pytest.raises(ValueError, match=said) as caught:
        read(file(**keys))
    assert "\n" not in str(caught.value)
