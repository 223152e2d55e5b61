"""What every run has: scores against steps, and learning curves, beside the runs compared."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from maml_dist.reporting.plotting import Picture, PlottedRun, Style, chart, finish
from maml_dist.runs.run import Run

BEFORE: Style = {"linestyle": ":"}
AFTER: Style = {"linestyle": "-"}
MODES: dict[str, Style] = {
    "default": AFTER,
    "transductive": AFTER,
    "inductive": {"linestyle": "--"},
    "running": {"linestyle": "-."},
}
PAPER: Style = {"linestyle": "", "marker": "*", "markersize": 14, "markeredgecolor": "black"}
BEST: Style = {"linestyle": "", "marker": "o", "markersize": 11, "fillstyle": "none"}
CURVE_POINTS = 150  # of a learning curve; more rows are averaged


def steps(drawn: Sequence[PlottedRun]) -> Picture | None:
    """The score against adaptation steps (the paper's figure 3)."""
    evaluation = drawn[0].evaluation
    if evaluation is None:
        return None
    metric, split = evaluation["metric"], evaluation["split"]
    figure, axes = chart("adaptation steps", f"{split} {metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    styles: dict[str, Style] = {}
    for each in drawn:
        for result in each.evaluation["results"] if each.evaluation else ():
            styles[result["mode"]] = MODES[result["mode"]]
            step, mean, half = (
                np.array([row[key] for row in result["steps"]], float)
                for key in ("step", "mean", "ci95")
            )
            fine = np.isfinite(mean)  # elsewhere tasks diverged
            step, mean, half = step[fine], mean[fine], half[fine]
            axes.errorbar(step, mean, half, elinewidth=1, **each.look, **styles[result["mode"]])
            if (
                len(result["steps"]) == 1 and fine.all()
            ):  # a run that does not adapt, beside others that do
                axes.axhline(mean[0], color=each.colour, linewidth=1)
    styles = styles if len(styles) > 1 else {}
    for each in drawn:
        for count, score in each.run.experiment.published.items():
            axes.plot(count, score, color=each.colour, zorder=3, **PAPER)
            styles["the paper"] = PAPER
    finish(axes, drawn, styles, falls=not drawn[0].run.experiment.task.maximize)
    caption = (
        f"Mean {metric} over {evaluation['tasks']} {split} tasks after each adaptation step, "
        "on examples that were not adapted on. Bars: 95% interval of the mean."
    )
    return Picture("steps", caption, figure)


def training(drawn: Sequence[PlottedRun]) -> Picture | None:
    """The training loss before and after adaptation; of rollouts their return."""
    source = drawn[0].run.experiment.task
    name = source.metric if source.on_policy else "loss"
    if not _known(drawn, f"{name}/after"):
        return None
    figure, axes = chart("meta-iterations", f"training {name}")
    drawn = [each._replace(marker="") for each in drawn]  # too many points to mark
    for each in drawn:
        for when, style in (("before", BEFORE), ("after", AFTER)):
            if _known([each], f"{name}/{when}"):
                curve = _curve(each.run, f"{name}/{when}")
                alone = "o" if curve.shape[1] == 1 else ""  # a line of one point is not seen
                axes.plot(*curve, color=each.colour, marker=alone, **style)
    styles = {"before adaptation": BEFORE, "after adaptation": AFTER}
    finish(axes, drawn, styles, falls=not source.on_policy)
    where = "in its episodes" if source.on_policy else "on their queries"
    caption = f"Mean {name} of training tasks: before adaptation, and {where} after it."
    return Picture("training" if source.on_policy else "loss", caption, figure)


def validation(drawn: Sequence[PlottedRun]) -> Picture | None:
    """The validation score, by which checkpoints are chosen."""
    source = drawn[0].run.experiment.task
    name = f"val/{source.metric}/path"
    if not _known(drawn, name):
        return None
    figure, axes = chart("meta-iterations", f"validation {source.metric}")
    for each in drawn:
        axes.plot(*_curve(each.run, name), **each.look)
        best = each.run.checkpoints.best
        if best and best.score is not None:
            axes.plot(best.iteration, best.score, color=each.colour, **BEST)
    finish(axes, drawn, {"best checkpoint": BEST}, falls=not source.maximize)
    caption = (
        f"Mean {source.metric} over the validation tasks and their adaptation steps. "
        "The best checkpoint is the one that `evaluate` takes unless told otherwise."
    )
    return Picture("validation", caption, figure)


def _known(drawn: Sequence[PlottedRun], name: str) -> bool:
    return any(name in row for each in drawn for row in each.run.metrics)


def _curve(run: Run, name: str) -> np.ndarray:
    """Iterations and values of a metric, neighbours averaged: [2, points]."""
    rows = np.array([(row["iteration"], row[name]) for row in run.metrics if name in row], float)
    each = max(1, len(rows) // CURVE_POINTS)
    means: np.ndarray = rows[len(rows) % each :].reshape(-1, each, 2).mean(1)
    return means.T
