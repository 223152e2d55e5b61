"""What a search shows while it runs: plain lines in a pipe, a view in a terminal."""

import io
import json
import re

import pytest
from rich.console import Console

from maml_dist.config.compose import compose
from maml_dist.loggers.lines import use_format
from maml_dist.tuning import live
from maml_dist.tuning.draws import Draw
from maml_dist.tuning.judge import Judge
from maml_dist.tuning.live import Live
from maml_dist.tuning.trials import Trials


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(live.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def trials(tmp_path):
    return Trials(tmp_path, Judge(("val/mse/path",), (False,)), compose("sinusoid"), [])


def run(view, trials, clock):
    """Four trials of which two end, and one gets half of its 100 iterations in 200 s."""
    for number, (status, score) in enumerate([("finished", 0.5), ("diverged", None)]):
        trial = trials.drawn(number, Draw({"learner.alpha": 0.1}, {}))
        trial.status = "running"
        view.started(trial)
        clock.now += 50
        trial.end.iteration, trial.end.scores = 100, [score] if score else None
        trials.ended(trial, status)
        view.ended(trial)
    trial = trials.drawn(2, Draw({"learner.alpha": 0.2}, {}))
    trial.status = "running"
    view.started(trial)
    clock.now += 100
    trial.end.iteration, trial.end.scores = 50, [0.25]
    view.changed()


def test_plain_lines_in_a_pipe(trials, clock, capsys):
    with Live(trials, total=4, iterations=100) as view:
        run(view, trials, clock)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "trial 0 starts  learner.alpha=0.1"
    assert lines[1] == "1/4  trial 0  learner.alpha=0.1  score=0.5 at 100  finished"
    assert lines[2] == "0 running, 3 waiting, 1 finished, best 0.5 by trial 0, 2 min left"
    assert "score=- at 100  diverged" in lines[4]
    # 2.5 of 4 trials in 200 s
    assert lines[-1] == (
        "1 running, 1 waiting, 1 finished, 1 diverged, best 0.25 by trial 2, 2 min left"
    )


def test_a_view_in_a_terminal(trials, clock, monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(live, "Console", lambda **options: screen)
    with Live(trials, total=4, iterations=100) as view:
        run(view, trials, clock)
        screen.print(view._render())
    shown = re.sub(r"\x1b\[[\d?;]*[a-zA-Z]", "", screen.file.getvalue())
    assert "trial  alpha  iteration  score" in shown and "2      0.2    50         0.25" in shown
    assert "1 running, 1 waiting" in shown


def test_what_an_earlier_process_did_is_not_counted_for_the_time_left(trials, clock):
    for number in range(2):
        trial = trials.drawn(number, Draw({"learner.alpha": 0.1 + number}, {}))
        trials.ended(trial, "finished")
    view = Live(trials, total=4, iterations=100)
    assert view._left() == ""
    trial = trials.drawn(2, Draw({"learner.alpha": 9.0}, {}))
    clock.now += 30
    trials.ended(trial, "finished")
    assert view._left() == "30 s left"


def test_lines_of_json_have_what_is_known_of_a_trial(trials, clock, capsys):
    use_format("json")
    with Live(trials, total=4, iterations=100) as view:
        run(view, trials, clock)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["values"] == {"learner.alpha": 0.1} and lines[0]["trial"] == 0
    assert (lines[1]["status"], lines[1]["scores"], lines[1]["iteration"]) == (
        "finished",
        [0.5],
        100,
    )
    assert lines[2]["finished"] == 1 and lines[2]["message"].startswith("0 running, 3 waiting")
