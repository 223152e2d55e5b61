"""The rows of a search: recorded as they come, ranked, written whole."""

import csv
import json
import math

import pytest
import yaml

from maml_dist.config.compose import compose
from maml_dist.tuning.draws import Draw
from maml_dist.tuning.judge import Judge
from maml_dist.tuning.record import RECORD
from maml_dist.tuning.recorded import read_record
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trials import BEST, TABLE, Stretch, Trials, text

BASE = compose("sinusoid")
JUDGE = Judge(("val/mse/path",), (False,))
PLAN = Search("sinusoid", {"alpha": {"uniform": [0, 1]}})


@pytest.fixture
def trials(tmp_path):
    return Trials(tmp_path, JUDGE, BASE, [])


def end(trials, number, status, scores, *, alpha=0.1, iteration=100, error=""):
    trial = trials.drawn(number, Draw({"alpha": alpha}, {"alpha": alpha}))
    trial.end.iteration, trial.end.scores, trial.end.error = iteration, scores, error
    trials.ended(trial, status)


def table(trials):
    with (trials.folder / TABLE).open() as file:
        return list(csv.DictReader(file))


def test_the_best_comes_first_and_what_has_failed_last(trials):
    end(trials, 0, "stopped", [0.5])
    end(trials, 1, "diverged", [0.1])
    end(trials, 2, "finished", [0.3], alpha=0.02)
    end(trials, 3, "failed", None, error="ValueError: no")
    trials.drawn(4, Draw({"alpha": 1.0}, {"alpha": 1.0}))
    trials.write()
    rows = table(trials)
    assert [row["trial"] for row in rows] == ["2", "0", "1", "3", "4"]
    assert [row["status"] for row in rows] == [
        *("finished", "stopped", "diverged", "failed", "waiting")
    ]
    assert rows[3]["error"] == "ValueError: no" and rows[0]["score"] == "0.3"
    best = (trials.folder / BEST).read_text()
    assert best.startswith("# trial 2: val/mse/path 0.3 within 100 iterations\n")
    assert yaml.safe_load(best) == compose("sinusoid", {"alpha": 0.02})


def test_one_that_has_diverged_is_not_the_best_though_it_has_not_ended(trials):
    for number, score in enumerate((0.1, 0.5)):
        trials.drawn(number, Draw({"alpha": 0.1}, {"alpha": 0.1})).end.scores = [score]
    trials.all[0].diverged = True
    for status in ("waiting", "running", "interrupted"):
        trials.all[0].status = status
        assert trials.best.number == 1 and [each.number for each in trials.front] == [1]


def test_no_value_ends_the_comment_of_the_best_recipe(tmp_path):
    key = "learner.alpha"
    judge = Judge(("val/mse\u2028path: 1",), (False,))
    trials = Trials(tmp_path, judge, BASE, [])
    for number in range(2):
        trials.drawn(number, Draw({key: 1.0}, {}))
    trials.all[0].end.scores = [0.5]
    evil = "0.1\ncode: [/tmp/evil]\n#\x1b"
    trials.all[1].schedule.append(Stretch(10, 1, {key: evil}))
    trials.all[0].schedule += trials.all[1].schedule[1:]
    trials.all[0].schedule.append(Stretch(20, 0, {key: 1.0}))
    trials.write()
    lines = (tmp_path / BEST).read_text().splitlines()
    assert [line[0] for line in lines[:5]] == ["#"] * 5 and not lines[5].startswith("#")
    assert yaml.safe_load((tmp_path / BEST).read_text())["code"] == BASE["code"]
    assert text(evil) == json.dumps(evil) and text("plain ±") == "plain ±"


def test_more_is_better_where_it_is(tmp_path):
    trials = Trials(tmp_path, Judge(("val/return/path",), (True,)), BASE, [])
    end(trials, 0, "finished", [-5.0])
    end(trials, 1, "finished", [-2.0])
    assert trials.best.number == 1 and [each.number for each in trials.ranked] == [1, 0]


def test_the_record_gives_the_same_trials(trials):
    end(trials, 0, "stopped", [0.5])
    end(trials, 1, "diverged", None)
    trials.drawn(2, Draw({"alpha": 0.3}, {"alpha": 0.3}))
    with (trials.folder / RECORD).open("a") as file:
        file.write('{"trial": 3, "val')  # cut by a kill
    again = Trials(trials.folder, JUDGE, BASE, read_record(trials.folder, PLAN))
    assert again.all == trials.all
    end(again, 3, "finished", [0.2])
    third = Trials(trials.folder, JUDGE, BASE, read_record(trials.folder, PLAN))
    assert third.all == again.all and third.best.number == 3


def test_the_front_of_two_metrics(tmp_path):
    trials = Trials(tmp_path, Judge(("val/mse/path", "learner.steps"), (False, False)), BASE, [])
    for number, scores in enumerate([[0.5, 1.0], [0.2, 5.0], [0.6, 2.0], [math.nan, 0.0]]):
        end(trials, number, "finished" if number < 3 else "diverged", scores)
    assert [each.number for each in trials.front] == [0, 1]
    assert table(trials)[0]["val/mse/path"] == "0.2" and table(trials)[0]["learner.steps"] == "5.0"
