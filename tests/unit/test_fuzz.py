"""A fixed sample of the fuzz (tests/fuzz.py, which is run by hand with many more)."""

import pytest
from fuzz import run, wrong
from malformed import cases

QUICK = ("values", "recipes", "searches", "records", "data")  # start no run, where refused
SAMPLE = [case for case in cases(343, seed=3) if case.kind in QUICK][: 4 * 60 : 4]


def test_cases_are_many_and_the_same_again():
    assert cases(60, seed=5) == cases(60, seed=5) != cases(60, seed=6)
    assert len(SAMPLE) == 60 and {case.kind for case in SAMPLE} == set(QUICK)


def test_malformed_inputs_are_refused_in_one_line():
    results = run(SAMPLE, limit=60)
    assert [result for result in results if wrong(result)] == []
    assert sum(result["outcome"] == "refused" for result in results) > 0.8 * len(SAMPLE)


@pytest.mark.slow
def test_many_more():
    assert [result for result in run(cases(600, seed=4)) if wrong(result)] == []
