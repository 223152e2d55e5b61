"""A population goes its way interval by interval, and the same way after a kill anywhere."""

import csv
import random

import pytest
import yaml

from maml_dist.config.compose import compose
from maml_dist.runs.lock import Locked
from maml_dist.tuning import population
from maml_dist.tuning.draws import Draws
from maml_dist.tuning.judge import Judge
from maml_dist.tuning.population import Population
from maml_dist.tuning.record import RECORD
from maml_dist.tuning.recorded import read_record
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trials import BEST, TABLE, Trials, draw_again

SPACE = {"learner.alpha": {"loguniform": [0.001, 1]}, "learner.steps": {"randint": [1, 6]}}
PLAN = Search("sinusoid", SPACE, scheduler="pbt", num_samples=4, perturbation_interval=10)
CONFIG = compose("sinusoid", {"iterations": 25})


@pytest.fixture
def forks(monkeypatch):
    """The runs that would be made, by name -> (the other's name, the changes)."""
    made = {}

    class Made:
        path = "made"

        def __init__(self, iteration):
            self.checkpoints = type("", (), {"last": type("", (), {"iteration": iteration})})

    def fork(source, path, changes):
        made[path.name] = source, changes
        return Made(int(path.name.partition("-")[2]))

    monkeypatch.setattr(population, "config_of", lambda shared, run, values: shared)
    monkeypatch.setattr(population, "begun", lambda path, config: path.name)
    monkeypatch.setattr(population, "fork", fork)
    return made


def score(trial, until):
    """By values and iteration alone; now and then it diverges."""
    noise = random.Random(f"{trial.values} {until}").random()
    return None if noise < 0.15 else noise


def opened(folder):
    """What a process begins with."""
    lines = read_record(folder, PLAN)
    trials = Trials(folder, Judge(("val/mse/path",), (False,)), compose("sinusoid"), lines)
    draws = Draws(PLAN, maximize=(False,), study="s")
    draw_again(draws, trials, lines)
    return trials, Population(PLAN, CONFIG, trials, draws)


def train(folder, *, steps=1000):
    """Trains so many intervals of trials, as Tune's callbacks tell of them."""
    trials, upcoming = opened(folder)
    told = []
    while steps and (trial := upcoming.next()):
        until, steps = upcoming.until(trial), steps - 1
        told.append((trial.runs[-1], until))
        trial.latest = score(trial, until)
        trial.diverged = trial.latest is None
        trial.end.iteration, trial.end.seconds = until, until / 10
        if not trial.diverged:
            trial.end.scores = [min(trial.latest, *(trial.end.scores or [1.0]))]
        if until < CONFIG["iterations"]:
            trials.reached(trial, until)
        else:
            trials.ended(trial, "diverged" if trial.diverged else "finished")
    return told, trials, upcoming


def test_each_interval_is_trained_by_all_and_then_the_worst_take_over(tmp_path, forks):
    told, trials, upcoming = train(tmp_path)
    assert upcoming.over and [until for _, until in told] == [10] * 4 + [20] * 4 + [25] * 4
    exploits = [line.exploit for line in read_record(tmp_path, PLAN) if line.exploit]
    assert [each.iteration for each in exploits] == [10, 20]
    assert sum(len(each.takeovers) for each in exploits) == len(forks) >= 2
    for each in exploits:
        for takeover in each.takeovers:
            name = f"{takeover.trial}-{each.iteration}"
            assert forks[name][1] == takeover.values and name in dict(told)
            assert takeover.before != takeover.values
    last = exploits[1].takeovers[0]
    trial = trials.all[last.trial]
    assert trial.runs[-1] == f"{last.trial}-20" and trial.values == last.values
    assert trial.schedule[-2].trial == last.source and trial.schedule[-1].iteration == 20


@pytest.mark.parametrize("cut", [1, 3, 4, 6, 8, 9, 11, 13, 14, 17])
def test_after_a_kill_it_goes_the_same_way(tmp_path, forks, cut, monkeypatch):
    monkeypatch.setattr(Trials, "write", lambda trials: None)  # it takes longer than all else
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, whole, _ = train(tmp_path / "a")
    lines = (tmp_path / "a" / RECORD).read_bytes().splitlines(keepends=True)
    assert len(lines) == 18  # draws, intervals, an exploit, twice that, and the ends
    (tmp_path / "b" / RECORD).write_bytes(b"".join(lines[:cut]) + lines[cut][:20])
    _, again, _ = train(tmp_path / "b")
    assert (tmp_path / "b" / RECORD).read_bytes() == b"".join(lines)
    for number, trial in whole.all.items():
        other = again.all[number]
        assert (other.schedule, other.runs, other.end) == (trial.schedule, trial.runs, trial.end)


def test_an_interval_that_is_begun_is_not_given_twice(tmp_path, forks):
    _, upcoming = opened(tmp_path)
    assert [upcoming.next().number for _ in range(4)] == [0, 1, 2, 3]
    assert upcoming.next() is None and not upcoming.over


def test_where_all_diverge_it_is_over(tmp_path, forks, monkeypatch):
    monkeypatch.setitem(globals(), "score", lambda trial, until: None)
    told, trials, upcoming = train(tmp_path)
    assert len(told) == 4 and upcoming.over and not forks
    assert {trial.status for trial in trials.all.values()} == {"diverged"}


def test_where_a_takeover_fails_its_trial_has_failed_and_the_others_go_on(
    tmp_path, forks, monkeypatch
):
    made = population.fork

    def refused(source, path, changes):
        if path.name.startswith("3-"):
            raise ValueError("learner.alpha=9: must be less")
        return made(source, path, changes)

    monkeypatch.setattr(population, "fork", refused)
    monkeypatch.setitem(globals(), "score", lambda trial, until: trial.number / 10)
    _, trials, upcoming = train(tmp_path)
    last = trials.all[3]
    assert upcoming.over and [each.status for each in trials.all.values()][:3] == ["finished"] * 3
    assert (last.status, last.end.error, last.runs) == (
        *("failed", "learner.alpha=9: must be less"),
        ["3"],
    )
    lines = (tmp_path / RECORD).read_bytes().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if b"exploit" in line)
    for cut in (place, place + 1):  # before it is decided, and before it has ended
        (tmp_path / RECORD).write_bytes(b"".join(lines[:cut]))
        train(tmp_path)
        assert (tmp_path / RECORD).read_bytes() == b"".join(lines)
    again = opened(tmp_path)[0].all[3]
    assert (again.status, again.end, again.runs) == (last.status, last.end, last.runs)


def test_a_run_that_another_process_holds_ends_the_search(tmp_path, forks, monkeypatch):
    def held(source, path, changes):
        raise Locked("held")

    monkeypatch.setattr(population, "fork", held)
    with pytest.raises(Locked):
        train(tmp_path)


def test_equal_first_draws_stand(tmp_path):
    plan = Search("sinusoid", {"learner.steps": {"choice": [1, 2]}}, scheduler="pbt", num_samples=8)
    judge = Judge(("val/mse/path",), (False,))
    drawn = []
    for _ in range(2):
        lines = read_record(tmp_path, plan)
        trials = Trials(tmp_path, judge, CONFIG, lines)
        draws = Draws(plan, maximize=(False,), study="s")
        draw_again(draws, trials, lines)
        Population(plan, CONFIG, trials, draws)
        drawn.append([trial.draw for trial in trials.all.values()])
    assert len(drawn[0]) == 8 and drawn[0] == drawn[1]


def test_one_that_fails_is_left_out(tmp_path, forks):
    trials, upcoming = opened(tmp_path)
    trials.ended(trials.all[2], "failed")
    numbers = [upcoming.next().number for _ in range(3)]
    assert numbers == [0, 1, 3] and upcoming.next() is None


def test_the_table_and_the_best_say_what_led_there(tmp_path, forks, monkeypatch):
    better = {"0-10": 0.1}
    monkeypatch.setitem(
        globals(), "score", lambda trial, until: better.get(trial.runs[-1], 1 - trial.number / 10)
    )
    _, trials, _ = train(tmp_path)
    with (tmp_path / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["trial"] == "0" and rows[0]["lineage"] == "3, 0 from 10"
    assert "2" in [row["lineage"] for row in rows]
    best = (tmp_path / BEST).read_text()
    first, second = trials.all[0].schedule
    assert "the trained run is trials/0-10\n" in best
    assert f"#   {first}\n#   {second}\n" in best and str(first).startswith("from 0: trial 3  ")
    alpha = yaml.safe_load(best)["learner"]["init_args"]["alpha"]
    assert alpha == second.values["learner.alpha"] != first.values["learner.alpha"]
    assert trials.command.endswith(str(tmp_path / "trials" / "0-10"))
