"""Figures: what every run has, its scores and its learning curves, beside the runs it is compared with.

Each is a `Figure` of its own, so matplotlib's global state is never touched.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from maml_dist.run import Run

# Okabe and Ito's colours, told apart by the colour-blind; markers for print without colour.
STYLES = tuple(
    zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), "os^DvP", strict=True)
)
BEFORE, AFTER = {"linestyle": ":"}, {"linestyle": "-"}
MODES = {"default": AFTER, "transductive": AFTER, "inductive": {"linestyle": "--"}}
PAPER: dict[str, Any] = {"linestyle": "", "marker": "*", "markersize": 14, "markeredgecolor": "k"}
BEST: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 9}
CURVE_POINTS = 150  # of a learning curve; more rows are averaged


class Drawn(NamedTuple):
    """A run as it is drawn."""

    label: str
    run: Run
    evaluation: dict[str, Any] | None  # None before the first checkpoint
    colour: str
    marker: str


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
    styles: dict[str, Mapping[str, Any]] = {}
    for each in drawn:
        for result in each.evaluation["results"] if each.evaluation else ():
            styles[result["mode"]] = MODES[result["mode"]]
            step, mean, half_width = (
                np.array([row[key] for row in result["steps"]]) for key in ("step", "mean", "ci95")
            )
            axes.fill_between(
                step, mean - half_width, mean + half_width, color=each.colour, alpha=0.2, linewidth=0
            )
            axes.plot(
                step, mean, color=each.colour, marker=each.marker, markersize=4,
                **MODES[result["mode"]],
            )  # fmt: skip
    styles = styles if len(styles) > 1 else {}
    for each in drawn:
        for step, score in each.run.experiment.paper.items():
            axes.plot(step, score, color=each.colour, zorder=3, **PAPER)
            styles["the paper"] = PAPER
    _finish(axes, drawn, styles, falls=not drawn[0].run.experiment.task.maximize)
    caption = (
        f"Mean {metric} over {evaluation['tasks']} {split} tasks after each adaptation step, "
        "on examples that were not adapted on. Bands: 95% interval of the mean."
    )
    return Picture("steps", caption, figure)


def loss(drawn: Sequence[Drawn]) -> Picture | None:
    """The training loss before and after adaptation."""
    curves = {"before adaptation": ("loss/before", BEFORE), "after": ("loss/after", AFTER)}
    if not _known(drawn, "loss/after"):
        return None
    figure, axes = _chart("meta-iterations", "training loss")
    for each in drawn:
        for name, style in curves.values():
            axes.plot(*_curve(each.run, name), color=each.colour, **style)
    _finish(axes, drawn, {label: style for label, (_, style) in curves.items()}, falls=True)
    caption = "Mean loss on training tasks before adaptation and after it."
    return Picture("loss", caption, figure)


def validation(drawn: Sequence[Drawn]) -> Picture | None:
    """The validation score after adaptation."""
    source = drawn[0].run.experiment.task
    name = f"val/{source.metric}"
    if not _known(drawn, name):
        return None
    figure, axes = _chart("meta-iterations", f"validation {source.metric}")
    for each in drawn:
        axes.plot(*_curve(each.run, name), color=each.colour, marker=".")
        best = each.run.checkpoints.best
        if best and best.score is not None:
            axes.plot(best.iteration, best.score, color=each.colour, **BEST)
    _finish(axes, drawn, {"best checkpoint": BEST}, falls=not source.maximize)
    caption = (
        f"Mean {source.metric} over the validation tasks after the last adaptation step. "
        "The best checkpoint is the one that is evaluated."
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
    """Iterations and values of a metric: [2, points]."""
    rows = np.array([(row["iteration"], row[name]) for row in run.metrics if name in row])
    points = min(len(rows), CURVE_POINTS)
    means = [part.mean(0) for part in np.array_split(rows, points)] if points else []
    return np.reshape(means, (points, 2)).T


def _finish(
    axes: Axes, drawn: Sequence[Drawn], styles: Mapping[str, Mapping[str, Any]], *, falls: bool
) -> None:
    """The scale, logarithmic for positive values that shall fall, and a legend of runs and styles."""
    if falls and all((np.asarray(line.get_ydata()) > 0).all() for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    alone = len(drawn) == 1
    entries = [] if alone else [Line2D([], [], color=e.colour, marker=e.marker, label=e.label) for e in drawn]
    colour = drawn[0].colour if alone else "0.4"
    entries += [Line2D([], [], color=colour, label=label, **style) for label, style in styles.items()]
    if entries:
        axes.legend(handles=entries, frameon=False, fontsize=9)
