"""The report of small runs in this process."""

import base64
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from generated import omniglot_folder

import maml_dist
from maml_dist.cli import guarded
from maml_dist.config.compose import compose
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.params import flatten
from maml_dist.inference.load import load
from maml_dist.loggers.flat import flat
from maml_dist.report import main
from maml_dist.reporting import curves, few_shot, page
from maml_dist.reporting import sinusoid as sinusoid_pictures
from maml_dist.reporting.page import report
from maml_dist.reporting.plotting import STYLES, PlottedRun
from maml_dist.runs.run import Run
from maml_dist.runs.sessions import sessions
from maml_dist.runtime.shard import TaskShard
from maml_dist.tasks.images import omniglot

SMALL = {"iterations": 4, "checkpoint_every": 2, "log_every": 1, "meta_batch": 3, "local": True}
SMALL |= {"validation_tasks": 3, "test_tasks": 4, "test_steps": 2, "progress": False}
SMALL |= {"engine.running": "eager"}


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Pictures of few dots are drawn sooner."""
    monkeypatch.setattr(page, "DPI", 36)


def train(recipe, path, **changes):
    run = maml_dist.meta_train(recipe, run=path, **{**SMALL, **changes})
    return Run.open(run.path)


@pytest.fixture(scope="module")
def sinusoid(tmp_path_factory):
    return train("sinusoid", tmp_path_factory.mktemp("runs") / "s")


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return train("sinusoid-oracle", tmp_path_factory.mktemp("runs") / "o", shots=5, query=5)


@pytest.fixture
def characters(tmp_path, monkeypatch):
    """An Omniglot run on generated drawings."""
    omniglot.convert(omniglot_folder(tmp_path / "images"), tmp_path / "omniglot.arrow")
    monkeypatch.setenv("MAML_DIST_DATA", str(tmp_path))
    changes = {"ways": 3, "shots": 2, "query": 4, "filters": 4, "outputs": 3}
    return train("omniglot-5way-1shot", tmp_path / "run", **changes)


def drawn(*runs, evaluation=None):
    return [
        PlottedRun(run.config["name"], run, evaluation or maml_dist.meta_test(run), *STYLES[place])
        for place, run in enumerate(runs)
    ]


def lines(axes):
    """The lines of a chart by label."""
    return {line.get_label(): line for line in axes.lines}


def pictures(run):
    return {file.stem: file.read_bytes() for file in (run.path / "figures").iterdir()}


def test_the_page_holds_its_pictures_and_needs_nothing_else(sinusoid, oracle):
    made = report(sinusoid, [oracle])
    assert made == sinusoid.path / "report.html"
    html = made.read_text()
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert pictures(sinusoid).keys() == {"steps", "loss", "validation", "waves"}
    assert {base64.b64decode(source) for source in sources} == set(pictures(sinusoid).values())
    assert len(re.findall(r"src=|href=|url\(|<script|@import", html)) == len(sources)
    assert html.count("<table") == 2 and "sinusoid-oracle" in html


def test_runs_are_compared_side_by_side_and_by_what_differs(sinusoid, oracle):
    html = report(sinusoid, [oracle]).read_text()
    scores, recipes = re.findall(r"<table.*?</table>", html, flags=re.S)
    table = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in scores.split("<tr>")[1:]]
    assert table[0] == ["steps", "sinusoid", "sinusoid-oracle"]
    each = [json.loads((run.path / "evaluation.json").read_text()) for run in (sinusoid, oracle)]
    for step, row in enumerate(table[1:]):
        found = [evaluation["results"][0]["steps"] for evaluation in each]
        right = [
            f"{steps[step]['mean']:.4f} ± {steps[step]['ci95']:.4f}" if step < len(steps) else ""
            for steps in found
        ]
        assert row == [str(step), *right]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in recipes.split("<tr>")[2:]]
    shown = {key: values for key, *values in rows}
    leaves = [flat(run.config) for run in (sinusoid, oracle)]
    assert shown["model.inputs"] == [str(each["model.inputs"]) for each in leaves]
    assert "meta_batch" not in shown and "name" not in shown and "paper.1" not in shown
    assert all(len(set(values)) == 2 for values in shown.values())


def test_the_page_says_when_and_by_what_it_was_trained(sinusoid):
    html = report(sinusoid).read_text()
    (found,) = sessions(sinusoid.path)
    assert f"<dd>{found.began}</dd>" in html and f"torch {torch.__version__}" in html
    assert f"<dd>{found.seconds:.0f} s</dd>" in html


def test_the_page_says_what_was_measured(sinusoid):
    html = report(sinusoid).read_text()
    evaluation = json.loads((sinusoid.path / "evaluation.json").read_text())
    for row in evaluation["results"][0]["steps"]:
        assert all(f"<td>{row[key]:.4f}</td>" in html for key in ("mean", "ci95", "median"))
    assert "<td>0.38</td>" in html  # the paper's, from the recipe
    assert f"train {sinusoid.path}/recipe.yaml" in html
    assert "  class_path: Sinusoid" in html


def test_scores_are_drawn_as_evaluated_beside_the_papers(sinusoid, oracle):
    each = drawn(sinusoid, oracle)
    (axes,) = curves.steps(each).figure.axes
    drawn_points = [line.get_xydata() for line in axes.lines]
    for one in each:
        (result,) = one.evaluation["results"]
        expected = [(row["step"], row["mean"]) for row in result["steps"]]
        assert any(np.array_equal(points, expected) for points in drawn_points)
    assert any(np.array_equal(points, [(1, 0.38)]) for points in drawn_points)
    assert axes.get_yscale() == "log"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["sinusoid", "sinusoid-oracle", "the paper"]


def test_what_diverges_leaves_the_picture(sinusoid, tmp_path):
    means = [3.0, 0.5, 1e29, float("inf"), float("nan")]
    rows = [{"step": k, "mean": m, "ci95": m / 10, "median": m} for k, m in enumerate(means)]
    evaluation = {"metric": "mse", "split": "test", "tasks": 4}
    evaluation |= {"results": [{"mode": "default", "steps": rows}]}
    picture = curves.steps(drawn(sinusoid, evaluation=evaluation))
    low, high = picture.figure.axes[0].get_ylim()
    assert (low, high) == pytest.approx((0.38 / 2, 30))  # the paper's is the lowest
    picture.figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_long_learning_curves_are_averaged(sinusoid, tmp_path):
    rows = [{"iteration": i, "loss/before": 2.0 * i, "loss/after": i} for i in range(1, 451)]
    run = Run(tmp_path, sinusoid.config)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (axes,) = curves.training([PlottedRun("run", run, None, *STYLES[0])]).figure.axes
    before, after = (line.get_xydata() for line in axes.lines)
    assert np.array_equal(after, [(i, i) for i in range(2, 450, 3)])  # three by three
    assert np.array_equal(before, after * [1, 2])


def test_a_learning_curve_of_one_point_is_seen(sinusoid, tmp_path):
    run = Run(tmp_path, sinusoid.config)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 3, "loss/before": 2, "loss/after": 1}\n')
    (axes,) = curves.training([PlottedRun("run", run, None, *STYLES[0])]).figure.axes
    assert [line.get_marker() for line in axes.lines] == ["o", "o"]


@pytest.mark.parametrize("runs", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_legend_of_waves_stays_within_the_picture(sinusoid, oracle, runs):
    figure = sinusoid_pictures.waves(drawn(sinusoid, *[oracle] * (runs - 1))).figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} >= {"true curve", "support points"}
    assert figure.bbox.containsx(legend.get_window_extent().x0)
    assert figure.bbox.containsx(legend.get_window_extent().x1)


def test_waves_are_those_of_the_task_and_of_the_model(sinusoid, oracle):
    grid = figures_grid(sinusoid_pictures.waves(drawn(sinusoid, oracle)).figure)
    wave = sinusoid.experiment.task.sample(TaskKey(0, "test", 0, 1))
    x = np.linspace(-5, 5, 201)
    points = {"sinusoid": wave.x[:10], "sinusoid-oracle": wave.x[:5]}
    for title, axes in grid[1].items():
        shown = lines(axes)
        assert np.allclose(shown["true curve"].get_ydata().ravel(), wave.y(x), atol=1e-5)
        support = shown["support points"].get_xydata()
        assert np.allclose(support, np.stack([points[title], wave.y(points[title])], 1), atol=1e-5)
        assert {"before adaptation", "after 1 step", "after 2 steps"} <= shown.keys()
    inputs = np.stack([x, np.full(201, wave.amplitude), np.full(201, wave.phase)], 1)
    with torch.no_grad():
        expected = load(oracle.path)(torch.tensor(inputs, dtype=torch.float32))
    fitted = lines(grid[1]["sinusoid-oracle"])["before adaptation"].get_ydata().ravel()
    assert np.allclose(fitted, expected.ravel(), atol=1e-5)


def figures_grid(figure):
    """Rows of tasks: title of the column -> axes."""
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    rows = [figure.axes[at : at + len(titles)] for at in range(0, len(figure.axes), len(titles))]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_a_sheet_shows_the_predictions_that_are_scored(characters):
    html = report(characters).read_text()
    assert pictures(characters).keys() == {"steps", "loss", "validation", "episode"}
    assert html.count("<table>") == 2  # transductive and inductive
    picture = few_shot.sheet(drawn(characters))
    texts = [text.get_text() for text in picture.figure.axes[0].texts]
    pairs = [text.split(" → ") for text in texts if "→" in text]
    assert [true for true, _ in pairs] == [str(label) for label in range(3) for _ in range(4)]
    right = sum(true == guess for true, guess in pairs)
    weights, _ = characters.weights()
    meta = flatten({name: weights[name] for name in characters.layout.names}).numpy()
    shard = TaskShard(characters.shard_spec)
    accuracy = shard.scores(meta, 4, split="test", tasks=1, steps=2)["accuracy"][0, -1]
    assert right == round(12 * accuracy) and f"{right} of 12 queries right" in picture.caption


@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
def test_a_sheet_has_a_place_for_every_image(shape):
    ways, each = shape
    pixels = np.zeros((ways, each, 4, 4, 1))
    (axes,) = few_shot._sheet(pixels, np.zeros((ways, 2), int)).axes
    corners = {tuple(np.round(image.get_extent(), 6)) for image in axes.images}
    assert len(corners) == ways * each
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(left < a < b < right and top < d < c < bottom for a, b, c, d in corners)


def test_a_run_without_iterations_is_drawn_and_told_apart_by_its_folder(tmp_path, sinusoid):
    run = train("sinusoid", tmp_path / "untrained", iterations=0)
    html = report(run, [sinusoid]).read_text()
    assert pictures(run).keys() == {"steps", "loss", "validation", "waves"}
    assert re.findall(r"<th>[^<]*/(\w+)</th>", html)[:2] == ["untrained", "s"]


def test_a_run_without_a_checkpoint_says_so(tmp_path, sinusoid):
    run = Run(tmp_path / "killed", {**sinusoid.config, "description": "<b>bold</b> & more"})
    run.write_recipe(new=True)
    html = report(run).read_text()
    assert "no checkpoint yet" in html and "0 of 4" in html and not pictures(run)
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in html
    (run.path / "metrics.jsonl").write_text('{"iteration": 1, "loss/before": 2, "loss/after": 1}\n')
    report(run)
    assert pictures(run).keys() == {"loss"}


def test_a_first_order_run_that_was_interrupted_is_drawn(tmp_path):
    run = train("sinusoid", tmp_path / "run", first_order=True)
    (run.path / "metrics.jsonl").write_text("")
    html = report(Run(run.path, {**run.config, "iterations": 9})).read_text()
    assert "4 of 9" in html and pictures(run).keys() == {"steps", "waves"}


def test_an_evaluation_is_made_anew_when_the_run_went_on(sinusoid):
    file, trained = sinusoid.path / "evaluation.json", sinusoid.path / "metrics.jsonl"
    evaluation = maml_dist.meta_test(sinusoid, tasks=3)
    report(sinusoid)
    assert json.loads(file.read_text()) == evaluation
    os.utime(trained, (file.stat().st_mtime + 9,) * 2)
    report(sinusoid)
    assert json.loads(file.read_text())["tasks"] == 4
    os.utime(trained, (file.stat().st_mtime - 9,) * 2)


def test_mistakes_are_one_line(tmp_path, sinusoid, monkeypatch, capsys):
    other = Run(tmp_path / "other", compose("omniglot-5way-1shot"))
    other.write_recipe(new=True)
    for arguments, message in (
        ([str(tmp_path)], "is not a run"),
        ([str(sinusoid.path), "--compare", str(tmp_path)], "is not a run"),
        ([str(sinusoid.path), "--compare", str(other.path)], "same score"),
    ):
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        assert guarded(main) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom maml_dist.report import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'matplotlib', 'numpy', 'jinja2', 'yaml'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
