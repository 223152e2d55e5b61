"""What is drawn: a function of the seed, the number and what was told; never the same twice."""

import json

import optuna
import pytest

from maml_dist.tuning.draws import Draw, Draws, listed
from maml_dist.tuning.search_space import Search

SPACE = {"alpha": {"loguniform": [0.001, 1]}, "steps": {"randint": [1, 6]}}
ALGORITHMS = ["random", "tpe", "gp", "cmaes", "nsga2"]


def made(plan, **options):
    return Draws(plan, **{"maximize": (False,), "study": "search"} | options)


def score(values):
    return (values["alpha"] - 0.1) ** 2 + values["steps"]


def searched(draws, count):
    """Draws with their scores told, each but the last two."""
    drawn = []
    for number in range(count):
        drawn.append(draws.draw(number))
        if number >= 2:
            draws.tell(number - 2, [score(drawn[number - 2].values)])
    return drawn


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_asked_and_told_the_same_again_it_draws_the_same(algorithm):
    plan = Search("sinusoid", SPACE, algorithm=algorithm, seed=3)
    undisturbed = searched(made(plan), 24)
    draws = made(plan)
    for number in range(20):  # by its record
        draws.drawn(number, Draw(*json.loads(json.dumps(undisturbed[number]))))
        if number >= 2:
            draws.tell(number - 2, [score(undisturbed[number - 2].values)])
    for number in range(20, 24):
        assert draws.draw(number) == undisturbed[number]
        draws.tell(number - 2, [score(undisturbed[number - 2].values)])


def test_what_was_drawn_otherwise_stays_as_it_was():
    draws = made(Search("sinusoid", SPACE, algorithm="tpe"))
    draws.drawn(0, Draw({"alpha": 0.5, "steps": 2}, {"alpha": 0.5, "steps": 2}))
    draws.tell(0, [1.0])
    assert draws.draw(1).values["alpha"] != 0.5
    done = [trial for trial in draws._study.trials if trial.value is not None]
    assert [trial.params for trial in done] == [{"alpha": 0.5, "steps": 2}]


def test_another_seed_draws_others():
    one, other = (made(Search("sinusoid", SPACE, seed=seed)).draw(0) for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize("algorithm", ["tpe", "gp", "cmaes"])
def test_what_was_told_is_learned_from(algorithm):
    space = {"alpha": {"uniform": [0, 1]}, "beta": {"uniform": [0, 1]}}
    draws, found = made(Search("sinusoid", space, algorithm=algorithm)), []
    for number in range(60):
        values = draws.draw(number).values
        found.append((values["alpha"] - 0.3) ** 2 + (values["beta"] - 0.6) ** 2)
        draws.tell(number, [found[-1]])
    assert sum(found[-15:]) < 0.5 * sum(found[:15])


def test_trials_without_a_score_keep_it_away_from_there():
    draws, far = made(Search("sinusoid", {"alpha": {"uniform": [0, 1]}}, algorithm="tpe")), 0
    for number in range(60):
        alpha = draws.draw(number).values["alpha"]
        far += number >= 30 and alpha > 0.5
        draws.tell(number, [alpha] if alpha < 0.5 else None)
    assert far <= 3


def test_equal_draws_are_not_made_twice_and_end_when_there_are_no_others():
    draws = made(Search("sinusoid", {"steps": {"randint": [1, 4]}, "first": {"choice": [0, 1]}}))
    drawn = [draws.draw(number) for number in range(6)]
    assert len({json.dumps(each.values) for each in drawn}) == 6
    assert draws.draw(6) is None


def test_a_grid_is_gone_through_with_draws_of_the_others():
    plan = Search(
        "sinusoid",
        {
            "steps": {"grid": [1, 5]},
            "hidden": {"grid": [[40], [40, 40]]},
            **{"alpha": SPACE["alpha"]},
        },
        num_samples=2,
    )
    assert plan.num_trials == 8
    draws = made(plan)
    drawn = [draws.draw(number).values for number in range(8)]
    assert [(each["steps"], each["hidden"]) for each in drawn[:4]] == [
        (steps, hidden) for steps in (1, 5) for hidden in ([40], [40, 40])
    ]
    assert drawn[4]["steps"] == 1 and drawn[4]["alpha"] != drawn[0]["alpha"]


def test_only_grids_are_gone_through_once():
    draws = made(Search("sinusoid", {"steps": {"grid": [1, 5]}}, num_samples=3))
    assert [draws.draw(number).values["steps"] for number in range(2)] == [1, 5]
    assert draws.draw(2) is None


def test_a_key_with_a_condition_is_drawn_where_it_holds():
    space = {
        "learner.alpha": {"loguniform": [0.001, 1], "when": {"learner": ["MAML", "Reptile"]}},
        "learner": {"choice": ["MAML", "MetaSGD", "Reptile"]},
    }
    draws = made(Search("sinusoid", space))
    drawn = [draws.draw(number).values for number in range(12)]
    assert {each["learner"] for each in drawn} == {"MAML", "MetaSGD", "Reptile"}
    assert all(("learner.alpha" in each) == (each["learner"] != "MetaSGD") for each in drawn)


def test_optunas_dashboard_finds_the_study(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    for _ in range(2):  # the second makes it anew
        draws = made(Search("sinusoid", SPACE), storage=storage, maximize=(True,))
        values = draws.draw(0).values
        draws.tell(0, [0.5])
    (trial,) = optuna.load_study(study_name="search", storage=storage).trials
    assert trial.params == values and trial.value == 0.5 and trial.user_attrs == {"trial": 0}


def test_a_study_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="study=sqlite:") as caught:
        made(Search("sinusoid", SPACE), storage=f"sqlite:///{tmp_path / 'none' / 'study.db'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_all_that_there_is_is_drawn_in_the_end(algorithm):
    space = {"steps": {"randint": [1, 7]}, "inner": {"choice": ["SGD", "Adam", "Momentum"]}}
    draws, found = made(Search("sinusoid", space, algorithm=algorithm)), set()
    for number in range(18):
        values = draws.draw(number).values
        found.add(json.dumps(values))
        draws.tell(number, [float(values["steps"])])
    assert len(found) == 18 and draws.draw(18) is None


def test_a_point_of_a_grid_at_which_nothing_is_left_is_passed_over():
    space = {
        "learner": {"grid": ["MAML", "MetaSGD"]},
        "learner.alpha": {"loguniform": [0.001, 1], "when": {"learner": "MAML"}},
    }
    plan = Search("sinusoid", space, num_samples=4)
    draws = made(plan)
    drawn = [draws.draw(number).values["learner"] for number in range(plan.num_trials)]
    assert drawn.count("MetaSGD") == 1 and drawn.count("MAML") == 7


def test_what_is_listed_is_all_that_can_be_drawn():
    space = {
        "learner": {"choice": ["MAML", "MetaSGD"]},
        "steps": {"randint": [1, 3], "when": {"learner": "MAML"}},
        "hidden": {"grid": [[40], [40, 40]]},
    }
    found = [values for values, _ in listed(Search("sinusoid", space), {"hidden": "[40]"})]
    assert found == [
        {"learner": "MAML", "steps": 1, "hidden": [40]},
        {"learner": "MAML", "steps": 2, "hidden": [40]},
        {"learner": "MetaSGD", "hidden": [40]},
    ]
    assert not list(listed(Search("sinusoid", SPACE), {}))
