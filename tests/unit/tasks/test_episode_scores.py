"""Scores of episodes beside the return: against plain lists."""

import numpy as np
import pytest

from maml_dist.core.data.simulator import EnvironmentFault
from maml_dist.tasks.episode_scores import EpisodeScores, check_scores, key_of

STEPS = [  # of two tasks with one episode each; nan: not said
    [[0.0], [2.0]],
    [[np.nan], [5.0]],
    [[1.0], [-1.0]],
    [[0.0], [9.0]],  # when the second has ended
]
RUNNING = [[[True], [True]]] * 3 + [[[True], [False]]]
EXPECTED = {
    "success": [1, 5],
    "success:max": [1, 5],
    "success:min": [0, -1],
    "success:sum": [1, 6],
    "success:mean": [1 / 3, 2],
    "success:last": [0, -1],
}


@pytest.mark.parametrize("entry", EXPECTED)
def test_a_score_is_one_number_of_the_steps_that_say_it(entry):
    check_scores([entry], "task.scores")
    scores = EpisodeScores([entry], (2, 1))
    for values, running in zip(STEPS, RUNNING, strict=True):
        scores.add({"success": np.array(values), "more": np.zeros((2, 1))}, np.array(running))
    found = scores.result()
    assert found.keys() == {key_of(entry)}
    np.testing.assert_allclose(found[key_of(entry)][:, 0], EXPECTED[entry], rtol=1e-6)


def test_of_what_diverged_it_is_no_number_and_of_nothing_it_is_nothing():
    scores = EpisodeScores(["success"], (1, 2))
    scores.add({"success": np.array([[1.0, 1.0]])}, np.ones((1, 2), bool))
    scores.spoil(np.array([[False, True]]))
    assert scores.result()["success"][0, 0] == 1 and scores.result()["success"].isnan().sum() == 1
    assert EpisodeScores([], (1, 2)).result() is None


def test_what_no_step_of_an_episode_says_is_refused_with_what_is_said():
    scores = EpisodeScores(["succes"], (2, 1))
    scores.add({"succes": np.array([[1.0], [np.nan]])}, np.ones((2, 1), bool))
    with pytest.raises(
        EnvironmentFault, match=r"info\['succes'\]; did you mean success\?"
    ) as found:
        scores.result({"success", "far"})
    assert found.value.task == 1
    with pytest.raises(EnvironmentFault, match=r"info\['succes'\] \(there are far, near\)"):
        scores.result({"near", "far"})
    with pytest.raises(EnvironmentFault, match=r"scores succes have shape \(3,\), not \(2, 1\)"):
        scores.add({"succes": np.zeros(3)}, np.ones((2, 1), bool))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["success:lst"], "with max, min, sum, mean, last; did you mean success:last"),
        (["success:"], "NAME or NAME: with"),
        ([""], "must be the name of a number in info"),
        (["return"], "return is the name of another score"),
        (["success", "success"], "names a score twice"),
        ("success", r"must be a list of names, \[success\]"),
    ],
)
def test_entries_that_are_none(entries, said):
    with pytest.raises(ValueError, match=said):
        check_scores(entries, "task.scores")
