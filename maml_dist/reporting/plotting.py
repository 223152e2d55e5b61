"""What the pictures share: runs as they are drawn, colours, axes and legends.

Each is a `Figure` of its own, so matplotlib's global state is never touched.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from maml_dist.runs.run import Run

Style = dict[str, Any]  # of a line

# Okabe and Ito's colours, told apart by the colour-blind; markers for print without colour.
STYLES = tuple(
    zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), "os^DvP", strict=True)
)


class PlottedRun(NamedTuple):
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


def plain(axes: Axes) -> None:
    """A light grid, and no box around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def chart(across: str, up: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, and their labels."""
    figure = Figure((5.2, 3.7), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up)
    plain(axes)
    return figure, axes


def logarithmic(axis: Axis, low: float, high: float, *, decades: int = 3) -> None:
    """Labels of a logarithmic axis; of up to so many decades some between the powers too."""
    subs = (1, 2, 5) if high < 10**decades * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def finish(
    axes: Axes, drawn: Sequence[PlottedRun], styles: dict[str, Style], *, falls: bool
) -> None:
    """A legend of runs and styles; a logarithmic scale for what is positive and shall fall."""
    lines = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    finite = [line[np.isfinite(line)] for line in lines if np.isfinite(line).any()]
    if falls and finite and all((line > 0).all() for line in finite):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        low = max(low, min(line.min() for line in finite) / 2)
        high = min(high, max(line[0] for line in finite) * 10)  # what diverges leaves the picture
        axes.set_ylim(low, high)
        logarithmic(axes.yaxis, low, high)
    alone = len(drawn) == 1
    entries = {} if alone else {each.label: each.look for each in drawn}
    shade = drawn[0].colour if alone else "0.4"
    entries |= {label: {"color": shade, **style} for label, style in styles.items()}
    if entries:
        handles = [Line2D([], [], label=label, **style) for label, style in entries.items()]
        axes.legend(handles=handles, edgecolor="none", framealpha=0.9, fontsize=9)
