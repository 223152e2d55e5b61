"""Examples: what adapting does to single test tasks, drawn for the domains of the paper.

Each function asks for the task source that it draws and gives None for any other.
"""

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from maml_dist.adaptable import Adaptable, load
from maml_dist.core.episode import Batch, Episode, map_tensors
from maml_dist.core.params import real_of
from maml_dist.core.source import TaskKey
from maml_dist.figures import Drawn, Picture, Style, plain
from maml_dist.tasks.few_shot import FewShot
from maml_dist.tasks.sinusoid import Sinusoid

WAVES = 3  # tasks drawn
LINES = (("#009E73", ":"), ("#D55E00", "--"), ("#0072B2", "-"))  # after no, one and all steps
RIGHT, WRONG = "#009E73", "#D55E00"  # a green and a red that the colour-blind tell apart
ACROSS, DOWN, GAP = 1.12, 1.4, 0.4  # to the next image, and between support and queries, in images


def waves(drawn: Sequence[Drawn]) -> Picture | None:
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
    support, query = _one_task(source.episode(unit[None], steps=1))
    axes.plot(grid, query.y, color="0.75", linewidth=4, label="true curve")
    for k, (colour, style) in zip(sorted({0, min(1, steps), steps}), LINES, strict=False):
        label = f"after {k} step{'s' * (k > 1)}" if k else "before adaptation"
        fitted = _outputs(model, support, query.x, steps=k)
        axes.plot(grid, fitted, color=colour, linestyle=style, label=label)
    axes.plot(
        support.x[:, 0], support.y, color="black", marker="^", linestyle="", label="support points"
    )
    axes.set_ylim(-6, 6)  # amplitudes are up to 5; the same for all, whatever diverges
    plain(axes)


def sheet(drawn: Sequence[Drawn]) -> Picture | None:
    """Few-shot images: one test task, its support set and the predictions of its queries."""
    run, source = drawn[0].run, drawn[0].run.experiment.task
    if not isinstance(source, FewShot) or drawn[0].evaluation is None:
        return None
    task = source.sample(TaskKey(run.experiment.seed, "test", 0, 0))
    support, query = _one_task(source.collect([task], steps=1))
    if query.x.dim() != 4 or query.x.shape[1] not in (1, 3):
        return None
    steps = run.experiment.test_steps
    predicted = _outputs(load(run.path), support, query.x, steps=steps).argmax(-1)
    images = torch.cat([x.unflatten(0, (source.ways, -1)) for x in (support.x, query.x)], 1)
    figure = _sheet(_pixels(images), predicted.unflatten(0, (source.ways, -1)).numpy())
    caption = (
        f"A test task after {steps} adaptation steps: {(predicted == query.y).sum()} of "
        f"{len(query.y)} queries right. Below each query: its class → the class predicted."
    )
    return Picture("episode", caption, figure)


def _sheet(pixels: np.ndarray, predicted: np.ndarray) -> Figure:
    """Classes as rows, or as columns where there are more of them than of examples each.

    Args:
        pixels: [ways, shots + query, height, width, channels], 0 to 1.
        predicted: [ways, query].
    """
    ways, each = pixels.shape[:2]
    shots = each - predicted.shape[1]
    as_rows = ways <= each

    def corner(label: float, example: float) -> tuple[float, float]:
        """Upper left, in images."""
        example += GAP * (as_rows and example >= shots)
        column, row = (example, label) if as_rows else (label, example)
        return ACROSS * column, DOWN * row

    right, bottom = corner(ways - 1, each - 1)
    left, top, right, bottom = -1.0, -0.4, right + 1.1, bottom + 1.4
    inches = min(0.9, 11 / (right - left))  # of an image
    figure = Figure((inches * (right - left), inches * (bottom - top)))
    axes = figure.add_axes((0, 0, 1, 1))
    font: Style = {"fontsize": min(9.0, 14 * inches), "ha": "center", "va": "center"}

    def name(text: str, x: float, y: float, *, above: bool) -> None:
        if above:
            axes.text(x + 0.5, y - 0.2, text, **font)
        else:
            axes.text(x - 0.5, y + 0.5, text, **font)

    for label, example in np.ndindex(ways, each):
        x, y = corner(label, example)
        image = pixels[label, example]
        axes.imshow(image, extent=(x, x + 1, y + 1, y), cmap="gray", vmin=0, vmax=1)
        if example >= shots:
            guess = predicted[label, example - shots]
            colour = RIGHT if guess == label else WRONG
            axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=3))
            axes.text(x + 0.5, y + 1.17, f"{label} → {guess}", color=colour, **font)
    for label in range(ways):
        name(f"class {label}", *corner(label, 0), above=not as_rows)
    name("support", *corner(0, 0), above=as_rows)
    name("query", *corner(0, shots), above=as_rows)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    return figure


def _pixels(images: Tensor) -> np.ndarray:
    """[ways, n, channels, height, width] of any range -> channels last, 0 to 1."""
    low, high = images.aminmax()
    pixels: np.ndarray = ((images - low) / (high - low).clamp(min=1e-9)).movedim(2, -1).numpy()
    return pixels


def _one_task(episode: Episode) -> tuple[Batch, Batch]:
    """The support set and the queries of an episode of a single task."""
    alone = map_tensors(itemgetter(0), episode)
    return alone.support[0], alone.query


def _outputs(model: Adaptable, support: Batch, x: Tensor, *, steps: int) -> Tensor:
    """The model's outputs at x [n, …] after some steps on the support set."""
    like = real_of(next(model.parameters()))
    with torch.no_grad():
        x = x.to(like.dtype) if x.is_floating_point() else x
        outputs: Tensor = model.adapt(support.x, support.y, steps=steps)(x)
    return outputs
