"""Sinusoid: the curves fitted to a few tasks, before and after adapting."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maml_dist.core.data.task_source import TaskKey
from maml_dist.inference.adaptable import Adaptable
from maml_dist.inference.load import load
from maml_dist.reporting.plotting import Picture, PlottedRun, plain
from maml_dist.reporting.single_task import one_task, outputs
from maml_dist.tasks.sinusoid import Sinusoid

WAVES = 3  # tasks drawn
LINES = (("#009E73", ":"), ("#D55E00", "--"), ("#0072B2", "-"))  # after no, one and all steps


def waves(drawn: Sequence[PlottedRun]) -> Picture | None:
    """Sinusoid: the curves fitted to a few tasks, a column a run (the paper's figure 2)."""
    seed = drawn[0].run.experiment.seed
    columns = [
        (each, source)
        for each in drawn
        if isinstance(source := each.run.experiment.task, Sinusoid) and each.evaluation
    ]
    if not columns or columns[0][0] is not drawn[0]:
        return None
    alone = len(columns) == 1  # then its tasks stand side by side
    shape = (1, WAVES) if alone else (WAVES, len(columns))
    figure = Figure((1 + 3.3 * shape[1], 1.2 + 2.2 * shape[0]), layout="constrained")
    grid = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    for (each, source), column in zip(columns, grid.reshape(WAVES, -1).T, strict=True):
        model, steps = load(each.run.path), each.run.experiment.test_steps
        for index, axes in enumerate(column):
            _wave(axes, model, source, TaskKey(seed, "test", 0, index), steps=steps)
        if not alone:
            column[0].set_title(each.label, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("x (radians)")
    for axes in grid[:, 0]:
        axes.set_ylabel("y")
    handles = {line.get_label(): line for axes in grid.flat for line in axes.lines}
    fits = 5 if shape[1] > 2 else 3  # entries beside each other
    figure.legend(handles=handles.values(), loc="outside upper center", ncols=fits, frameon=False)
    caption = f"{WAVES} test tasks, and what is fitted to their support points."
    return Picture("waves", caption, figure)


def _wave(axes: Axes, model: Adaptable, source: Sinusoid, key: TaskKey, *, steps: int) -> None:
    """The true curve of one task, its support points, and the curves after 0, 1 and all steps."""
    wave, grid = source.sample(key), np.linspace(-5, 5, 201)
    drawn = wave.unit[: 2 + source.shots]
    unit = np.concatenate([drawn, (grid + 5) / 10])  # the queries: all of it
    support, query = one_task(source.episode(unit[None], steps=1))
    axes.plot(grid, query.y, color="0.75", linewidth=4, label="true curve")
    for k, (colour, style) in zip(sorted({0, min(1, steps), steps}), LINES, strict=False):
        label = f"after {k} step{'s' * (k > 1)}" if k else "before adaptation"
        fitted = outputs(model, support, query.x, steps=k)
        axes.plot(grid, fitted, color=colour, linestyle=style, label=label)
    axes.plot(
        support.x[:, 0], support.y, color="black", marker="^", linestyle="", label="support points"
    )
    axes.set_ylim(-6, 6)  # amplitudes are up to 5; the same for all, whatever diverges
    plain(axes)
