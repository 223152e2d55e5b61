"""Schedulers that are shown what an earlier process has told decide as the undisturbed one."""

import random

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from maml_dist.tuning.search_space import Search
from maml_dist.tuning.stopping import Before, replay, scheduler

ALPHA = {"alpha": {"loguniform": [0.001, 1]}}
ITERATIONS = 900


def plan(name, **keys):
    return Search("sinusoid", ALPHA, scheduler=name, grace_period=100, **keys)


def rows(number):
    """What a trial tells: the better, the lower its number."""
    noise = random.Random(number)
    best = 10.0
    for iteration in range(100, ITERATIONS + 1, 100):
        best = min(best, number + 100 / iteration + noise.random())
        yield {"iteration": iteration, "score": best}


def run(scheduled, number):
    """Tells a trial's rows until it is stopped; returns the rows that were told."""
    trial, told = Before(number), []
    scheduled.on_trial_add(None, trial)
    for row in rows(number):
        told.append(row)
        if scheduled.on_trial_result(None, trial, row) == TrialScheduler.STOP:
            return told
    scheduled.on_trial_complete(None, trial, row)
    return told


@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_worse_trials_are_stopped_early(name, maximize):
    scheduled = scheduler(plan(name), iterations=ITERATIONS, maximize=maximize)
    lengths = [len(run(scheduled, number)) for number in range(12)]
    worse = lengths[:-2] if maximize else lengths[5:]
    if maximize:  # each is the best so far
        assert lengths == [9] * 12
    else:
        assert sum(worse) < 9 * len(worse) / 2 and lengths[0] == 9


@pytest.mark.parametrize("name", ["asha", "median"])
def test_what_is_shown_again_counts(name):
    order = [3, 1, 8, 5, 0, 9, 2, 7, 4, 6]
    undisturbed = scheduler(plan(name), iterations=ITERATIONS, maximize=False)
    told = [run(undisturbed, number) for number in order]
    resumed = scheduler(plan(name), iterations=ITERATIONS, maximize=False)
    for number, before in zip(order[:5], told, strict=False):
        trial = Before(number)
        resumed.on_trial_add(None, trial)
        replay(resumed, trial, before)
    assert [run(resumed, number) for number in order[5:]] == told[5:]


def test_brackets_begin_to_stop_later_and_later():
    scheduled = scheduler(plan("hyperband"), iterations=2700, maximize=False)
    first = [min(rung for rung, _ in bracket._rungs) for bracket in scheduled._brackets]
    assert first == [100, 300, 900]
    short = scheduler(plan("hyperband"), iterations=150, maximize=False)
    assert all(bracket._rungs for bracket in short._brackets)


def test_several_metrics_stop_nothing():
    both = Search("sinusoid", ALPHA, metric=["val/mse", "seconds"])
    assert type(scheduler(both, iterations=9, maximize=False)) is FIFOScheduler
