"""Few-shot images: one test task, its support set and the predictions of its queries."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from maml_dist.core.data.task_source import TaskKey
from maml_dist.inference.load import load
from maml_dist.reporting.plotting import Picture, PlottedRun, Style
from maml_dist.reporting.single_task import one_task, outputs
from maml_dist.tasks.few_shot import FewShot

RIGHT, WRONG = "#009E73", "#D55E00"  # a green and a red that the colour-blind tell apart
ACROSS, DOWN, GAP = 1.12, 1.4, 0.4  # to the next image, and between support and queries, in images


def sheet(drawn: Sequence[PlottedRun]) -> Picture | None:
    """Few-shot images: one test task, its support set and the predictions of its queries."""
    run, source = drawn[0].run, drawn[0].run.experiment.task
    if not isinstance(source, FewShot) or drawn[0].evaluation is None:
        return None
    task = source.sample(TaskKey(run.experiment.seed, "test", 0, 0))
    support, query = one_task(source.collect([task], steps=1))
    if query.x.dim() != 4 or query.x.shape[1] not in (1, 3):
        return None
    steps = run.experiment.test_steps
    predicted = outputs(load(run.path), support, query.x, steps=steps).argmax(-1)
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
