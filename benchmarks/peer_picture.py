"""The picture of `benchmarks.peers`: speed against the loop by hand, memory against inner steps."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks.peer_cases import WORKLOADS
from benchmarks.peer_process import LIBRARIES
from maml_dist.reporting.plotting import STYLES, plain

COLOURS = dict(zip(LIBRARIES, [colour for colour, _ in STYLES] + ["0.6"], strict=True))
COLOURS["pytorch"] = "0.3"
REFERENCE = "pytorch"


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture of what was measured."""
    speed = any(row["library"] == REFERENCE for row in results["rows"])
    memory = "memory" in results
    if not (speed or memory):
        return
    widths = [7.0] * speed + [4.2] * memory
    figure = Figure((sum(widths), 3.7), layout="constrained")
    panels = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    if speed:
        _speed(panels.pop(0), results["rows"])
    if memory:
        _memory(panels.pop(0), results["memory"])
    figure.savefig(path, dpi=160)


def _speed(axes: Axes, rows: list[dict[str, Any]]) -> None:
    seconds = {(row["workload"], row["library"]): row["seconds"] for row in rows}
    named = [name for name in WORKLOADS if (name, REFERENCE) in seconds]
    libraries = [library for library in LIBRARIES if any(key[1] == library for key in seconds)]
    width = 0.84 / len(libraries)
    for place, library in enumerate(libraries):
        shown = [(at, name) for at, name in enumerate(named) if (name, library) in seconds]
        axes.bar(
            [at + (place - (len(libraries) - 1) / 2) * width for at, _ in shown],
            [seconds[name, REFERENCE] / seconds[name, library] for _, name in shown],
            width,
            color=COLOURS[library],
            label=library,
        )
    axes.axhline(1, color="0.3", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("speed against the PyTorch loop by hand")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    titles = (WORKLOADS[name].title.replace(", ", "\n") for name in named)
    axes.set_xticks(range(len(named)), list(titles), fontsize=7)
    plain(axes)
    axes.grid(False, axis="x")
    axes.legend(edgecolor="none", framealpha=0.9, fontsize=8)


def _memory(axes: Axes, rows: list[dict[str, Any]]) -> None:
    filters = WORKLOADS["B"].filters
    shown = [row for row in rows if row["filters"] == filters]
    for library, marker in (("maml_dist", "o"), ("pytorch", "s")):
        points = [(row["steps"], row["mb"]) for row in shown if row["library"] == library]
        steps, mb = zip(*points, strict=True)
        axes.plot(steps, mb, color=COLOURS[library], marker=marker, markersize=4, label=library)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("inner steps")
    axes.set_ylabel("peak memory of one task, MB")
    plain(axes)
    axes.legend(edgecolor="none", framealpha=0.9, fontsize=8)
