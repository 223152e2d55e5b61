"""Each distribution gives what its name says, against SciPy's or numbers written by hand."""

import math
from itertools import pairwise

import optuna
import pytest
from scipy import stats

from maml_dist.tuning.distributions import DISTRIBUTIONS, gives, labels, perturbed, suggest, tried

optuna.logging.set_verbosity(optuna.logging.CRITICAL)

EXAMPLES = {
    "uniform": [-1, 2.5],
    "quniform": [0.1, 0.5, 0.1],
    "loguniform": [0.001, 10],
    "qloguniform": [1, 100, 5],
    "normal": [2, 0.5],
    "lognormal": [-3, 0.5],
    "randint": [1, 6],
    "lograndint": [1, 65],
    "choice": [3, "a", None, [40, 40], True, 1],
    "grid": [0.1, 0.2],
}
# The distribution function of each that has one.
EXACT = {
    "uniform": stats.uniform(-1, 3.5),
    "loguniform": stats.loguniform(0.001, 10),
    "normal": stats.norm(2, 0.5),
    "lognormal": stats.lognorm(0.5, scale=math.exp(-3)),
}


def draws(name, count=300):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest(study.ask(), "key", {name: EXAMPLES[name]}) for _ in range(count)]


def test_there_is_an_example_of_each():
    assert EXAMPLES.keys() == DISTRIBUTIONS.keys()


@pytest.mark.parametrize("name", EXACT)
def test_draws_follow_the_distribution_function(name):
    assert stats.kstest(draws(name), EXACT[name].cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("quniform", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("qloguniform", [1.0 + 5 * number for number in range(20)]),
        ("randint", [1, 2, 3, 4, 5]),
        ("grid", [0.1, 0.2]),
    ],
)
def test_draws_are_all_of_these(name, values):
    assert sorted(set(draws(name, 3000))) == values


def test_whole_numbers_by_their_logarithm_are_as_many_in_each_octave():
    drawn = draws("lograndint", 3000)
    assert all(type(each) is int and 1 <= each <= 64 for each in drawn)
    octaves = [sum(low <= each < high for each in drawn) for low, high in ((4, 16), (16, 64))]
    assert octaves[0] / octaves[1] == pytest.approx(1, abs=0.2)


def test_choices_are_what_was_given_not_what_is_kept_of_it():
    drawn = draws("choice")
    texts = {repr(each) for each in drawn}
    assert texts == {"3", "'a'", "None", "[40, 40]", "True", "1"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_gives_what_it_draws_and_what_that_is_perturbed_to(name):
    distribution = {name: EXAMPLES[name]}
    for value in draws(name):
        near = [perturbed(distribution, value, factor) for factor in (1.2, 0.8)]
        assert all(gives(distribution, each) for each in (value, *near))


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize(
    "value", ["x\n", [1], {"a": 1}, False, math.inf, -math.inf, math.nan, -1e9, 10**400, 0.12345678]
)
def test_it_gives_nothing_else(name, value):
    between = type(value) is float and name in {"uniform", "loguniform", "normal", "lognormal"}
    within = between and EXACT[name].cdf(value) not in (0, 1) and not math.isnan(value)
    assert gives({name: EXAMPLES[name]}, value) == within


def test_what_optuna_keeps_is_plain_where_it_can_be():
    assert labels([3, "a", None]) == {3: 3, "a": "a", None: None}
    assert labels([True, 1]) == {"true": True, "1": 1}
    assert labels([[40], "x"]) == {"[40]": [40], '"x"': "x"}


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        ({"uniform": [1, 3]}, [1.0, 3.0, 1.764]),
        ({"quniform": [1, 3, 0.5]}, [1.0, 3.0, 2.0]),
        ({"loguniform": [1, 100]}, [1.0, 100.0, 10**0.764]),
        ({"normal": [0, 2]}, [-6.0, 6.0, 0.764]),
        ({"lognormal": [0, 1]}, [math.exp(-3), math.exp(3), math.exp(0.382)]),
        ({"randint": [1, 5]}, [1, 4, 2]),
        ({"randint": [1, 2]}, [1]),
        ({"lograndint": [1, 5]}, [1, 4, 2]),
        ({"choice": [3, "a", None]}, [3, "a", None]),
        ({"grid": [3]}, [3]),
    ],
)
def test_the_ends_and_a_value_inside_are_tried(distribution, values):
    found = tried(distribution)
    assert list(map(type, found)) == list(map(type, values))
    for mine, right in zip(found, values, strict=True):
        assert mine == (pytest.approx(right) if isinstance(right, float) else right)


@pytest.mark.parametrize("name", ["quniform", "qloguniform"])
def test_steps_are_equal_and_within_the_ends(name):
    values = sorted(set(draws(name, 2000)))
    low, high, step = EXAMPLES[name]
    assert values[0] >= low and values[-1] <= high
    assert all(b - a == pytest.approx(step) for a, b in pairwise(values))
