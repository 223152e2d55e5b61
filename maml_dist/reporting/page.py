"""Report: the pictures of a run, and one self-contained page that shows them."""

import base64
import io
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from maml_dist.config.trust import flags
from maml_dist.inference.meta_test import meta_test
from maml_dist.loggers.flat import flat
from maml_dist.loggers.lines import duration
from maml_dist.reporting.curves import steps, training, validation
from maml_dist.reporting.few_shot import sheet
from maml_dist.reporting.navigation import navigation
from maml_dist.reporting.plotting import STYLES, Picture, PlottedRun
from maml_dist.reporting.sinusoid import waves
from maml_dist.reporting.table import score_text
from maml_dist.reporting.video import video
from maml_dist.runs.evaluation import read
from maml_dist.runs.folder import make_within, replace
from maml_dist.runs.run import Run
from maml_dist.runs.sessions import sessions
from maml_dist.runtime.user_errors import user_errors_located

DPI = 144  # of the pictures, dots an inch
NOT_COMPARED = ("name", "description", "paper", "checkpoints", "code", "loggers")  # of recipes


def report(run: Run, compare: Sequence[Run] = ()) -> Path:
    """Draw a run: replaces `figures/*.png` and `report.html` in its folder.

    A run without an `evaluation.json`, or with one older than its training, is evaluated first.

    Args:
        run: the run.
        compare: runs to draw beside it.

    Returns:
        The page.

    Raises:
        ValueError: the runs have different scores, `figures` is a link, or a picture could not be
            drawn; then the page holds the others.
        OSError: the pictures cannot be written, or the data of the tasks are not there.
    """
    drawn = _drawn([run, *compare])
    folder = run.path / "figures"
    make_within(folder)
    pictures, failed = [], []
    for draw in (steps, training, validation, waves, sheet, navigation, video):
        try:
            with user_errors_located():
                picture = draw(drawn)
        except ValueError as error:
            failed.append(f"the picture {draw.__name__} cannot be drawn: {error}")
            continue
        if picture:
            pictures.append(saved(picture, folder))
    page = run.path / "report.html"
    run.write(page.name, _page(drawn, pictures))
    if failed:
        raise ValueError(f"{'; '.join(failed)}; {page} shows the rest of the run")
    return page


def _drawn(runs: Sequence[Run]) -> list[PlottedRun]:
    """The runs with their evaluations, labels and colours."""
    _refuse_mixed({run.path: run.experiment.task.metric for run in runs})
    evaluations = [_evaluation(run) for run in runs]
    _refuse_mixed(
        {
            run.path: f"{evaluation['metric']} on {evaluation['split']} tasks"
            for run, evaluation in zip(runs, evaluations, strict=True)
            if evaluation
        }
    )
    names = [run.config["name"] for run in runs]
    if len(set(names)) < len(names):  # the same recipe twice: by folder
        shared = os.path.commonpath([run.path.parent for run in runs])
        names = [str(run.path.relative_to(shared)) for run in runs]
    return [
        PlottedRun(name, run, evaluation, *STYLES[place % len(STYLES)])
        for place, (name, run, evaluation) in enumerate(zip(names, runs, evaluations, strict=True))
    ]


def _refuse_mixed(scores: dict[Path, str]) -> None:
    if len(set(scores.values())) > 1:
        listed = ", ".join(f"{path}: {score}" for path, score in scores.items())
        raise ValueError(f"only runs with the same score can be compared; {listed}")


def _evaluation(run: Run) -> dict[str, Any] | None:
    """The run's evaluation, made anew where it is older than the training; None without weights."""
    if run.checkpoints.last is None:
        return None
    file, trained = run.path / "evaluation.json", run.path / "metrics.jsonl"
    if file.exists() and (not trained.exists() or trained.stat().st_mtime <= file.stat().st_mtime):
        with suppress(ValueError):  # a damaged one is made anew
            evaluation = read(file)
            if evaluation["metric"] == run.experiment.task.metric:
                return evaluation
    return meta_test(run)


def _page(drawn: Sequence[PlottedRun], pictures: list[dict[str, Any]]) -> str:
    """The page of runs as HTML."""
    run = drawn[0].run
    here = Path.cwd()
    recipe = run.path / "recipe.yaml"
    recipe = recipe.relative_to(here) if recipe.is_relative_to(here) else recipe
    return rendered(
        "page.html",
        title=run.config["name"],
        description=run.config["description"],
        facts=_facts(run),
        differences=differences([each.run for each in drawn]),
        scores=_scores(drawn),
        drawn=drawn,
        pictures=pictures,
        command=f"python -m maml_dist.train {shlex.quote(str(recipe))}{flags(run.config['code'])}",
        yaml=yaml.safe_dump(run.config, sort_keys=False),
    )


def rendered(template: str, **values: Any) -> str:
    """A page as HTML, from a template beside this module."""
    environment = Environment(
        loader=PackageLoader("maml_dist.reporting", ""), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["score"] = score_text
    return environment.get_template(template).render(**values)


def saved(picture: Picture, folder: Path) -> dict[str, Any]:
    """Save a picture as `folder`/NAME.png; what a page shows of it."""
    png = io.BytesIO()
    picture.figure.savefig(png, dpi=DPI)
    replace(folder / f"{picture.name}.png", png.getvalue())
    return {
        "caption": picture.caption,
        "width": round(96 * picture.figure.get_figwidth()),  # CSS pixels
        "data": base64.b64encode(png.getvalue()).decode(),
    }


def _facts(run: Run) -> dict[str, str]:
    """What the head of the page says of a run."""
    experiment, last, best = run.experiment, run.checkpoints.last, run.checkpoints.best
    done = last.iteration if last else 0
    of = "" if run.finished else f" of {experiment.iterations:,}"
    facts = {
        "meta-iterations": f"{done:,}{of}",
        "tasks an iteration": str(experiment.meta_batch),
        "shards": str(experiment.shards),
        "seed": str(experiment.seed),
    }
    if best:
        facts["best checkpoint"] = f"iteration {best.iteration:,}"
    if best and best.score is not None:
        facts[f"its validation {experiment.task.metric}"] = f"{best.score:.4g}"
    if experiment.init:
        facts["started from"] = experiment.init
    if found := sessions(run.path):
        last_one = found[-1]
        facts["trained"] = last_one.began
        facts["for"] = duration(sum(each.seconds for each in found))
        facts["on"] = f"{last_one.cores} cores, {last_one.system}"
        versions = [f"{name} {each}" for name, each in last_one.versions.items()]
        facts["by"] = ", ".join(versions) + (f" ({last_one.commit})" if last_one.commit else "")
    return facts


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The keys of the recipes whose values are not the same in all, with those of each run."""
    leaves = [flat(run.config) for run in runs]
    found = []
    for key in dict.fromkeys(name for each in leaves for name in each):
        if key.partition(".")[0] in NOT_COMPARED:
            continue
        values = ["–" if key not in each else str(each[key]) for each in leaves]
        if len(set(values)) > 1:
            found.append((key, values))
    return found


def _scores(drawn: Sequence[PlottedRun]) -> tuple[list[str], list[list[str]]]:
    """Of several runs: the head and the rows of a table, a column for each run and mode."""
    columns = [
        (each, result) for each in drawn if each.evaluation for result in each.evaluation["results"]
    ]
    heads = [
        each.label if result["mode"] == "default" else f"{each.label}, {result['mode']}"
        for each, result in columns
    ]
    by_step = [{row["step"]: row for row in result["steps"]} for _, result in columns]
    rows = []
    for step in sorted({step for each in by_step for step in each}):
        cells = [
            f"{score_text(each[step]['mean'])} ± {score_text(each[step]['ci95'])}"
            if step in each
            else ""
            for each in by_step
        ]
        rows.append([str(step), *cells])
    return heads, rows
