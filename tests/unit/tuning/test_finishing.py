"""The best of a search over seeds: which is the best of them, and when that is known."""

import numpy as np
import pytest
from scipy import stats

from maml_dist.config.compose import compose
from maml_dist.tuning.draws import Draw
from maml_dist.tuning.finishing import Seeds, interval, plan_of, ranked
from maml_dist.tuning.judge import Judge
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trials import Trials


@pytest.fixture
def best(tmp_path):
    """Two trials that were the best."""
    folder = tmp_path / "search"
    folder.mkdir()
    trials = Trials(folder, Judge(("val/mse/path",), (False,)), compose("sinusoid"), [])
    for number, alpha in enumerate((0.1, 0.2)):
        trial = trials.drawn(number, Draw({"alpha": alpha}, {"alpha": alpha}))
        trial.end.scores = [float(number)]
        trials.ended(trial, "finished")
    return trials.ranked


@pytest.fixture
def runs(tmp_path):
    return Trials(tmp_path, Judge(("val/mse/path",), (False,)), compose("sinusoid"), [])


def train(runs, units, scores):
    """Each run that is still to be done, with these scores; None fails."""
    for number, score in enumerate(scores, len(runs.all)):
        run = runs.drawn(number, units.draw(number))
        run.end.scores = None if score is None else [score]
        runs.ended(run, "failed" if score is None else "finished")


def test_each_is_trained_with_each_seed_once(best, runs):
    units = Seeds(best, [1, 2], runs)
    assert units.total == 4
    train(runs, units, [0.5, 0.7])
    again = Seeds(best, [1, 2], runs)  # resumed
    assert again.total == 4 and again.draw(2).values == {"alpha": 0.2, "seed": 1}
    more = Seeds(best, [1, 2, 3], runs)
    values = [more.draw(number).values for number in range(2, more.total)]
    assert values == [
        {"alpha": 0.1, "seed": 3},
        *({"alpha": 0.2, "seed": seed} for seed in (1, 2, 3)),
    ]
    assert more.draw(more.total) is None


def test_the_better_mean_comes_first_and_what_lacks_a_seed_last(best, runs):
    train(runs, Seeds(best, [1, 2], runs), [0.5, 0.9, 0.6, 0.6])
    first, second = ranked(best, [1, 2], runs)
    assert first.trial.number == 1 and first.whole and str(first) == interval([0.6, 0.6])
    assert second.scores == [0.5, 0.9]


@pytest.mark.parametrize("scores", [[0.5, 0.9], [0.5, 0.9, 0.1], [0.5, 0.9, 0.1, None]])
def test_what_was_not_trained_to_the_end_does_not_win(best, runs, scores):
    train(runs, Seeds(best, [1, 2], runs), scores)
    first, second = ranked(best, [1, 2], runs)
    assert first.trial.number == 0 and first.whole and not second.whole


def test_a_run_that_diverged_late_counts_with_its_best_checkpoint(best, runs):
    units = Seeds(best, [1, 2], runs)
    train(runs, units, [0.5, 0.9, 0.1])
    late = runs.drawn(3, units.draw(3))
    late.end.scores = [0.2]
    runs.ended(late, "diverged")
    first, _ = ranked(best, [1, 2], runs)
    assert first.trial.number == 1 and first.whole and first.scores == [0.1, 0.2]


def test_an_interrupted_run_is_not_whole(best, runs):
    units = Seeds(best, [1, 2], runs)
    train(runs, units, [0.5, 0.9, 0.1])
    cut = runs.drawn(3, units.draw(3))
    cut.end.scores, cut.status = [0.1], "interrupted"
    first, second = ranked(best, [1, 2], runs)
    assert first.trial.number == 0 and not second.whole


def test_the_plan_of_these_runs_is_one(best):
    plan = Search("sinusoid", {"alpha": {"choice": [1, 2]}}, overrides={"seed": 7, "iterations": 3})
    assert plan_of(plan, 6).num_trials == 6 and plan_of(plan, 6).stops == "fifo"


def test_the_interval_is_students():
    values = [0.3, 0.35, 0.28]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert interval(values) == f"{np.mean(values):.4g} ± {(high - low) / 2:.2g} (3 seeds)"
    assert interval([0.3]) == "0.3 (one seed)" and interval([]) == "-"
