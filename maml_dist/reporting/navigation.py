"""Navigation: where the policies of 2-D navigation go, before and after adapting."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from maml_dist.core.data.episode import Episode
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.params import flatten
from maml_dist.reporting.plotting import Picture, PlottedRun, plain
from maml_dist.runs.run import Run
from maml_dist.runtime.shard import TaskShard
from maml_dist.tasks.navigation import Navigation

TASKS, EPISODES = 3, 5  # drawn
STAGES = (("#009E73", "before"), ("#0072B2", "after"))


def navigation(drawn: Sequence[PlottedRun]) -> Picture | None:
    """The paths of some episodes of a few test tasks, a column a task (the paper's figure 4)."""
    run = drawn[0].run
    source, steps = run.experiment.task, run.experiment.test_steps
    if not isinstance(source, Navigation) or drawn[0].evaluation is None:
        return None
    lived = collect(run, tasks=TASKS, steps=steps)
    seed = run.experiment.seed
    figure = Figure((2 + 3 * TASKS, 3.7), layout="constrained")
    for index, axes in enumerate(figure.subplots(1, TASKS, sharex=True, sharey=True)):
        first = lived.support[0] if steps else lived.query
        for batch, (colour, name) in zip((first, lived.query), STAGES, strict=True):
            label = f"{name} adaptation" if name == "before" else f"after {steps} steps"
            for episode in range(min(EPISODES, source.episodes)):
                lasts = int(batch.y.mask[index, episode].sum())
                path = np.asarray(batch.x[index, episode, :lasts, :2])
                axes.plot(*path.T, color=colour, linewidth=1, label=label)
        goal = source.sample(TaskKey(seed, "test", 0, index)).value
        axes.plot(*goal, "*", color="#D55E00", markersize=14, zorder=3, label="goal")
        axes.plot(0, 0, "ko", zorder=3, label="start")
        axes.set(aspect="equal", xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), xlabel="x")
        plain(axes)
    figure.axes[0].set_ylabel("y")
    handles = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(handles=handles.values(), loc="outside upper center", ncols=4, frameon=False)
    caption = f"{TASKS} test tasks: {EPISODES} episodes before and after adapting to the goal."
    return Picture("trajectories", caption, figure)


def collect(run: Run, *, tasks: int, steps: int) -> Episode:
    """What a run's best checkpoint lives through on its first test tasks."""
    weights, entry = run.weights("best")
    meta = flatten({name: weights[name] for name in run.layout.names}).numpy()
    shard = TaskShard(run.shard_spec._replace(slices=1))
    named = [TaskKey(run.experiment.seed, "test", 0, index) for index in range(tasks)]
    return shard.collect(meta, named, entry.iteration, steps=steps)
