"""The pictures of a search: what it has found, by which keys, and at what price."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from maml_dist.reporting.plotting import STYLES, Picture, chart, logarithmic, plain
from maml_dist.runs.run import Run
from maml_dist.tuning.distributions import choices, is_log
from maml_dist.tuning.opened import Opened
from maml_dist.tuning.trials import Trial, text

COLOURS = dict(
    zip(
        ("finished", "stopped", "diverged", "failed", "running", "waiting"),
        (colour for colour, _ in STYLES),
        strict=True,
    )
)
ACROSS = 4  # pictures of keys side by side
CURVES = 200  # learning curves, at the most


def progress(search: Opened) -> Picture | None:
    """The score of each trial, and the best so far."""
    scored = _scored(search)
    if not scored:
        return None
    figure, axes = chart("trial", search.trials.judge.metrics[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for status in dict.fromkeys(trial.status for trial in scored):
        own = [trial for trial in scored if trial.status == status]
        axes.plot(
            [trial.number for trial in own],
            [_score(trial) for trial in own],
            "o",
            color=COLOURS[status],
            label=status,
        )
    better = max if search.trials.judge.maximize[0] else min
    counting = [trial for trial in scored if trial.counts]
    best = [
        better(_score(other) for other in counting[: place + 1]) for place in range(len(counting))
    ]
    numbers = [trial.number for trial in counting]
    axes.step(numbers, best, where="post", color="0.3", label="the best so far")
    _scaled(axes, search, [_score(trial) for trial in scored])
    axes.legend(edgecolor="none", framealpha=0.9, fontsize=9)
    return Picture("progress", "The score of each trial in the order of the draws.", figure)


def curves(search: Opened) -> Picture | None:
    """The validations of all trials, by how they ended."""
    metric = search.trials.judge.metrics[0]
    figure, axes = chart("meta-iterations", metric)
    shown: set[str] = set()
    values: list[float] = []
    for trial in list(search.trials.all.values())[:CURVES]:
        for path in map(search.trials.path, trial.runs):
            if not (path / "recipe.yaml").exists():
                continue
            rows = [
                (row["iteration"], row[metric])
                for row in Run.open(path).metrics
                if isinstance(row.get(metric), float)
            ]
            if rows:
                values += [value for _, value in rows]
                axes.plot(*np.array(rows).T, color=COLOURS.get(trial.status, "0.5"), alpha=0.7)
                shown.add(trial.status)
    if not shown:
        return None
    _scaled(axes, search, values)
    handles = [Line2D([], [], color=COLOURS.get(each, "0.5"), label=each) for each in sorted(shown)]
    axes.legend(handles=handles, edgecolor="none", framealpha=0.9, fontsize=9)
    return Picture("curves", f"{metric} of each trial while it was trained.", figure)


def keys(search: Opened) -> Picture | None:
    """The score against each key that was searched."""
    scored = [trial for trial in _scored(search) if trial.counts]
    if not scored:
        return None
    names = search.plan.order
    rows = math.ceil(len(names) / ACROSS)
    across = min(ACROSS, len(names))
    figure = Figure((2.9 * across, 2.8 * rows), layout="constrained")
    for place, key in enumerate(names):
        axes = figure.add_subplot(rows, across, place + 1, xlabel=key.rpartition(".")[2])
        plain(axes)
        own = [trial for trial in scored if key in trial.values]
        at, labels = _places(search, key, own)
        axes.scatter(at, [_score(trial) for trial in own], s=22, color=STYLES[0][0], alpha=0.8)
        if labels:
            axes.set_xticks(range(len(labels)), labels)
        elif is_log(search.plan.search[key]) and at:
            axes.set_xscale("log")
            logarithmic(axes.xaxis, min(at), max(at), decades=1)
        _scaled(axes, search, [_score(trial) for trial in own])
        if place % across == 0:
            axes.set_ylabel(search.trials.judge.metrics[0])
    return Picture("keys", "The score of the trials against each key.", figure)


def importance(search: Opened) -> Picture | None:
    """How much of what makes a trial good each key explains."""
    shares = search.draws.importance()
    if not shares:
        return None
    figure, axes = chart("share", "")
    names = sorted(shares, key=lambda key: shares[key])
    axes.barh([name.rpartition(".")[2] for name in names], [shares[name] for name in names])
    caption = (
        "Importance of the keys (PED-ANOVA, arXiv 2304.10255): how differently they are "
        "distributed among the better trials. Of few trials it says little."
    )
    return Picture("importance", caption, figure)


def parallel(search: Opened) -> Picture | None:
    """Each trial as a line through its values, coloured by its score."""
    scored = [trial for trial in _scored(search) if trial.counts]
    names = [key for key in search.plan.order if all(key in trial.values for trial in scored)]
    if len(scored) < 2 or len(names) < 2:
        return None
    figure = Figure((max(7.5, 1.9 * (len(names) + 1)), 3.7), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    sign = -1 if search.trials.judge.maximize[0] else 1
    ranks = np.argsort(np.argsort([sign * _score(trial) for trial in scored]))
    heights = [_heights(search, key, scored) for key in names]
    lines = np.array([*(height for height, _ in heights), 1 - ranks / (len(ranks) - 1)])
    for place in np.argsort(-ranks):  # the best on top
        colour = colormaps["viridis"](ranks[place] / (len(ranks) - 1))
        axes.plot(lines[:, place], color=colour, alpha=0.85, linewidth=1.6)
    for place, (_, (low, high)) in enumerate(heights):
        axes.axvline(place, color="0.7", linewidth=0.8)
        for height, label in ((-0.06, low), (1.03, high)):
            axes.text(place, height, label, ha="center", fontsize=8, color="0.35")
    for rank, height in ((0, 1.03), (len(ranks) - 1, -0.06)):
        score = text(_score(scored[int(np.flatnonzero(ranks == rank)[0])]))
        axes.text(len(names), height, score, ha="center", fontsize=8, color="0.35")
    labels = [*(key.rpartition(".")[2] for key in names), "score"]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks([])
    axes.set_ylim(-0.12, 1.12)
    return Picture("parallel", "Each trial as a line; dark ones are better, by rank.", figure)


def front(search: Opened) -> Picture | None:
    """Of several metrics the first two, and the trials that none beats in both."""
    judge = search.trials.judge
    if len(judge.metrics) < 2:
        return None
    counting = [trial for trial in search.trials.all.values() if trial.counts]
    if not counting:
        return None
    figure, axes = chart(judge.metrics[0], judge.metrics[1])
    best = {trial.number for trial in search.trials.front}
    for name, colour, among in (("others", "0.6", False), ("the front", STYLES[1][0], True)):
        points = [
            (trial.end.scores or [])[:2] for trial in counting if (trial.number in best) == among
        ]
        if points:
            axes.plot(*np.array(sorted(points)).T, "o", color=colour, label=name)
    axes.legend(edgecolor="none", framealpha=0.9, fontsize=9)
    return Picture("front", "The Pareto front: trials than which none is better in both.", figure)


def _scored(search: Opened) -> list[Trial]:
    return [trial for trial in search.trials.all.values() if trial.end.scores]


def _score(trial: Trial) -> float:
    assert trial.end.scores
    return trial.end.scores[0]


def _scaled(axes: Axes, search: Opened, values: list[float]) -> None:
    """A logarithmic scale for what is positive, shall fall and is far apart."""
    falls = not search.trials.judge.maximize[0]
    if falls and values and min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale("log")
        logarithmic(axes.yaxis, min(values), max(values))


def _places(search: Opened, key: str, trials: list[Trial]) -> tuple[list[float], list[str]]:
    """Where the values of a key stand, and the labels of choices."""
    listed = choices(search.plan.search[key])
    if listed is None:
        return [float(trial.values[key]) for trial in trials], []
    return [float(listed.index(trial.values[key])) for trial in trials], [*map(text, listed)]


def _heights(search: Opened, key: str, trials: list[Trial]) -> tuple[np.ndarray, tuple[str, str]]:
    """Values of a key between 0 and 1, and what these are."""
    at, labels = _places(search, key, trials)
    if labels:
        return np.array(at) / max(1, len(labels) - 1), (labels[0], labels[-1])
    values = np.log(at) if is_log(search.plan.search[key]) else np.array(at)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.full(len(at), 0.5)
    return scaled, (text(min(at)), text(max(at)))
