"""Figures: what every run has, scores and learning curves, with the runs it is compared with.

Each is a `Figure` of its own, so matplotlib's global state is never touched.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from maml_dist.run import Run

Style = dict[str, Any]  # of a line

# Okabe and Ito's colours, told apart by the colour-blind; markers for print without colour.
STYLES = tuple(
    zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), "os^DvP", strict=True)
)
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


class Drawn(NamedTuple):
    """A run as it is drawn."""

    label: str
    run: Run
    evaluation: dict[str, Any] | None  # None before the first checkpoint
    colour: str
    marker: str

    @property
    def look(self) -> Style:
        """Its lines."""
        return {"color": self.colour, "marker": self.marker, "markersize": 4}


class Picture(NamedTuple):
    """A figure, the name of its file and what is to be seen."""

    name: str
    caption: str
    figure: Figure


def steps(drawn: Sequence[Drawn]) -> Picture | None:
    """The score against adaptation steps (the paper's figure 3)."""
    evaluation = drawn[0].evaluation
    if evaluation is None:
        return None
    metric, split = evaluation["metric"], evaluation["split"]
    figure, axes = _chart("adaptation steps", f"{split} {metric}")
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
    _finish(axes, drawn, styles, falls=not drawn[0].run.experiment.task.maximize)
    caption = (
        f"Mean {metric} over {evaluation['tasks']} {split} tasks after each adaptation step, "
        "on examples that were not adapted on. Bars: 95% interval of the mean."
    )
    return Picture("steps", caption, figure)


def training(drawn: Sequence[Drawn]) -> Picture | None:
    """The training loss before and after adaptation; of rollouts their return."""
    source = drawn[0].run.experiment.task
    name = source.metric if source.on_policy else "loss"
    if not _known(drawn, f"{name}/after"):
        return None
    figure, axes = _chart("meta-iterations", f"training {name}")
    drawn = [each._replace(marker="") for each in drawn]  # too many points to mark
    for each in drawn:
        for when, style in (("before", BEFORE), ("after", AFTER)):
            if _known([each], f"{name}/{when}"):
                axes.plot(*_curve(each.run, f"{name}/{when}"), color=each.colour, **style)
    styles = {"before adaptation": BEFORE, "after adaptation": AFTER}
    _finish(axes, drawn, styles, falls=not source.on_policy)
    where = "in its episodes" if source.on_policy else "on their queries"
    caption = f"Mean {name} of training tasks: before adaptation, and {where} after it."
    return Picture("training" if source.on_policy else "loss", caption, figure)


def validation(drawn: Sequence[Drawn]) -> Picture | None:
    """The validation score, by which checkpoints are judged."""
    source = drawn[0].run.experiment.task
    name = f"val/{source.metric}/path"
    if not _known(drawn, name):
        return None
    figure, axes = _chart("meta-iterations", f"validation {source.metric}")
    for each in drawn:
        axes.plot(*_curve(each.run, name), **each.look)
        best = each.run.checkpoints.best
        if best and best.score is not None:
            axes.plot(best.iteration, best.score, color=each.colour, **BEST)
    _finish(axes, drawn, {"best checkpoint": BEST}, falls=not source.maximize)
    caption = (
        f"Mean {source.metric} over the validation tasks and their adaptation steps. "
        "The best checkpoint is the one that `evaluate` takes unless told otherwise."
    )
    return Picture("validation", caption, figure)


def plain(axes: Axes) -> None:
    """A light grid, and no box around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _chart(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure((5.2, 3.7), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up)
    plain(axes)
    return figure, axes


def _known(drawn: Sequence[Drawn], name: str) -> bool:
    return any(name in row for each in drawn for row in each.run.metrics)


def _curve(run: Run, name: str) -> np.ndarray:
    """Iterations and values of a metric, neighbours averaged: [2, points]."""
    rows = np.array([(row["iteration"], row[name]) for row in run.metrics if name in row], float)
    each = max(1, len(rows) // CURVE_POINTS)
    means: np.ndarray = rows[len(rows) % each :].reshape(-1, each, 2).mean(1)
    return means.T


def _finish(axes: Axes, drawn: Sequence[Drawn], styles: dict[str, Style], *, falls: bool) -> None:
    """A legend of runs and styles; a logarithmic scale for what is positive and shall fall."""
    lines = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    finite = [line[np.isfinite(line)] for line in lines if np.isfinite(line).any()]
    if falls and finite and all((line > 0).all() for line in finite):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        low = max(low, min(line.min() for line in finite) / 2)
        high = min(high, max(line[0] for line in finite) * 10)  # what diverges leaves the picture
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    alone = len(drawn) == 1
    entries = {} if alone else {each.label: each.look for each in drawn}
    shade = drawn[0].colour if alone else "0.4"
    entries |= {label: {"color": shade, **style} for label, style in styles.items()}
    if entries:
        handles = [Line2D([], [], label=label, **style) for label, style in entries.items()]
        axes.legend(handles=handles, edgecolor="none", framealpha=0.9, fontsize=9)
