"""The report of a search, of a folder as a search leaves it."""

from dataclasses import asdict

import pytest
import yaml

import maml_dist
from maml_dist.config.compose import compose, override
from maml_dist.report import main
from maml_dist.reporting.search_pictures import importance, keys, progress
from maml_dist.tuning.draws import Draws
from maml_dist.tuning.judge import Judge
from maml_dist.tuning.opened import BASE, PLAN, opened
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trials import Trials

SMALL = {
    "iterations": 4, "checkpoint_every": 2, "log_every": 1, "validation_tasks": 2,
    "test_tasks": 2, "meta_batch": 2, "test_steps": 2, "engine.running": "eager",
}  # fmt: skip


@pytest.fixture(params=[["val/mse/path"], ["val/mse/path", "learner.steps"]], ids=len)
def search(tmp_path, request):
    """The folder of a search of which one trial has a run, and two have ended otherwise."""
    plan = Search(
        "sinusoid",
        {
            "learner.alpha": {"loguniform": [0.001, 0.1]},
            "learner.steps": {"randint": [1, 6]},
            "learner.inner": {"choice": ["SGD", "Adam"]},
        },
        metric=request.param,
        mode=["min"] * len(request.param),
        num_samples=9,
    )
    base = override(compose("sinusoid"), SMALL)
    (tmp_path / PLAN).write_text(yaml.safe_dump(asdict(plan)))
    (tmp_path / BASE).write_text(yaml.safe_dump(base))
    judge = Judge(tuple(request.param), (False,) * len(request.param))
    draws = Draws(plan, maximize=judge.maximize, study="search")
    trials = Trials(tmp_path, judge, base, [])
    for number in range(8):
        trial = trials.drawn(number, draws.draw(number))
        trial.end.iteration = 4
        if number < 6:
            trial.end.scores = [0.5 + number, float(number)][: len(request.param)]
        trials.ended(trial, ("finished", "stopped")[number % 2] if number < 6 else "diverged")
        draws.tell(number, trial.end.scores)
    maml_dist.meta_train(tmp_path / BASE, run=tmp_path / "trials" / "0", local=True, progress=False)
    return tmp_path


def test_there_is_a_page_with_its_pictures_and_its_table(search, capsys):
    assert main([str(search)]) == 0
    page = search / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    html = page.read_text()
    pictures = {path.stem for path in (search / "figures").glob("*.png")}
    both = (
        "learner.steps" in (search / PLAN).read_text().partition("metric:")[2].partition("mode")[0]
    )
    assert pictures == {"progress", "curves", "keys", "importance", "parallel"} | (
        {"front"} if both else set()
    )
    assert html.count("data:image/png;base64,") == len(pictures)
    assert html.count("<tr>") == 9 and "diverged" in html
    assert f"python -m maml_dist.train {search / 'best.yaml'}" in html


def test_what_is_drawn_is_what_was_recorded(search):
    found = opened(search)
    axes = progress(found).figure.axes[0]
    drawn = {point for line in axes.lines[:2] for point in zip(*line.get_data(), strict=True)}
    assert drawn == {(number, 0.5 + number) for number in range(6)}
    assert [*axes.lines[2].get_ydata()] == [0.5] * 6  # the best so far
    (alpha, *_) = keys(found).figure.axes
    shown = sorted(map(tuple, alpha.collections[0].get_offsets()))
    right = [
        (each.values["learner.alpha"], each.end.scores[0])
        for each in found.trials.all.values()
        if each.counts
    ]
    assert shown == sorted(right)
    shares = importance(found).figure.axes[0].patches
    assert sum(bar.get_width() for bar in shares) == pytest.approx(1)


def test_a_search_that_has_only_begun_has_a_page(tmp_path):
    plan = Search("sinusoid", {"alpha": {"choice": [1]}}, metric="val/mse/path", mode="min")
    (tmp_path / PLAN).write_text(yaml.safe_dump(asdict(plan)))
    (tmp_path / BASE).write_text(yaml.safe_dump(compose("sinusoid")))
    assert main([str(tmp_path)]) == 0
    assert not list((tmp_path / "figures").iterdir())


def test_a_search_is_not_compared(search):
    with pytest.raises(ValueError, match="a search is drawn alone"):
        main([str(search), "--compare", str(search)])
