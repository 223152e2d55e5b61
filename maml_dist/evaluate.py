"""Meta-test: the score of held-out tasks after 0 … M adaptation steps, in this process."""

import json
import math
import statistics
import sys
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from maml_dist.command import Parser, add_trust, guarded

if TYPE_CHECKING:
    import numpy as np

    from maml_dist.run import Run

EVALUATION_BYTES = 50_000_000  # of evaluation.json at the most


class Step(TypedDict):
    """The score after some adaptation steps; None where tasks diverged."""

    step: int
    mean: float | None
    ci95: float | None
    median: float | None


class Result(TypedDict):
    """The scores of one mode of batch norm."""

    mode: Literal["default", "transductive", "inductive", "running"]
    steps: list[Step]


class Evaluation(TypedDict):
    """The content of evaluation.json."""

    recipe: str
    split: Literal["train", "val", "test"]
    tasks: int
    metric: str
    results: list[Result]


def evaluate(
    run: "Run",
    *,
    split: str = "test",
    tasks: int | None = None,
    steps: int | None = None,
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Score a run's checkpoint; the result is also written to its `evaluation.json`.

    Args:
        run: the run.
        split: "train", "val" or "test".
        tasks: how many tasks; the recipe's `test_tasks` if None.
        steps: how many adaptation steps; the recipe's `test_steps` if None.
        checkpoint: "best", "last" or a checkpoint file.

    Returns:
        `{"recipe", "split", "tasks", "metric", "results": [{"mode", "steps": [{"step", "mean",
        "ci95", "median"}, …]}]}`. With batch norm the modes are `transductive` (a batch of queries
        is normalised by itself, as in the paper), `inductive` (by the support set) and, where
        running statistics are kept, `running` (by those).

    Raises:
        ValueError: there is no such split or checkpoint.
    """
    import torch

    from maml_dist.core.bounds import STEPS
    from maml_dist.core.objective import modes
    from maml_dist.core.params import flatten
    from maml_dist.experiment import TASKS
    from maml_dist.plain import short
    from maml_dist.runtime.launch import InProcess
    from maml_dist.runtime.shard import TaskShard

    experiment = run.experiment
    if split not in ("train", "val", "test"):
        raise ValueError(f"split {short(repr(split))}: there are train, val and test")
    tasks = experiment.test_tasks if tasks is None else tasks
    steps = experiment.test_steps if steps is None else steps
    for name, value, low, high in (("tasks", tasks, 2, TASKS), ("steps", steps, 0, STEPS)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
            raise ValueError(f"{name}={value!r}: must be a whole number from {low} to {high}")
    weights, entry = run.weights(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    meta = flatten({name: weights[name] for name in run.layout.names}).numpy()
    results = []
    with InProcess():
        shard = TaskShard(run.work, rank=0, shards=1, device=device)
        for mode in modes(experiment.model) or ("default",):
            scores = shard.scores(
                meta, entry.iteration, split=split, tasks=tasks, steps=steps,
                mode="transductive" if mode == "default" else mode,
            )  # fmt: skip
            by_step = enumerate(scores[experiment.task.metric].T)  # [step, task]
            results.append(
                {"mode": mode, "steps": [{"step": k, **_statistics(v)} for k, v in by_step]}
            )
    evaluation = {
        "recipe": experiment.name,
        "split": split,
        "tasks": tasks,
        "metric": experiment.task.metric,
        "results": results,
    }
    run.write("evaluation.json", json.dumps(evaluation, indent=1))
    return evaluation


def read(path: Path) -> dict[str, Any]:
    """An evaluation that was written.

    Raises:
        ValueError: it is damaged or of another form.
        OSError: it cannot be read.
    """
    from maml_dist.core.schema import from_json
    from maml_dist.runtime.folder import read_bounded

    content = read_bounded(path, most=EVALUATION_BYTES)
    evaluation: dict[str, Any] = from_json(content, Evaluation, str(path))
    if not evaluation["results"] or not all(each["steps"] for each in evaluation["results"]):
        raise ValueError(f"{path} holds no results")
    return evaluation


def _statistics(values: "np.ndarray") -> dict[str, float | None]:
    """Mean, its 95% half-width 1.96 std / sqrt(tasks), and median; None where tasks diverged."""
    import numpy as np

    values = values.astype(np.float64)  # the square of what nearly diverged is beyond float32
    finite = bool(np.isfinite(values).all())
    half_width = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if finite else None
    median = statistics.median(values.tolist())
    return {
        "mean": float(values.mean()) if finite else None,
        "ci95": half_width,
        "median": median if math.isfinite(median) else None,
    }


def score_text(value: float | None) -> str:
    """A score as a reader wants it: – where some tasks diverged."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}"


def show(evaluation: dict[str, Any], paper: dict[int, float]) -> None:
    """Print an evaluation as a table, beside the paper's figures (steps -> score)."""
    from rich.console import Console
    from rich.table import Table

    for result in evaluation["results"]:
        table = Table(
            title=f"{evaluation['recipe']}: {evaluation['metric']} over {evaluation['tasks']} "
            f"{evaluation['split']} tasks ({result['mode']})"
        )
        for column in ("steps", "mean", "± 95%", "median", "paper"):
            table.add_column(column, justify="right")
        for row in result["steps"]:
            cited = (
                paper.get(row["step"]) if result["mode"] in ("default", "transductive") else None
            )
            numbers = [score_text(row[key]) for key in ("mean", "ci95", "median")]
            table.add_row(str(row["step"]), *numbers, "" if cited is None else f"{cited:g}")
        Console().print(table)


def main(arguments: list[str]) -> int:
    """`python -m maml_dist.evaluate`."""
    parser = Parser(
        prog="python -m maml_dist.evaluate", description="Meta-test a run on held-out tasks."
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--split", default="test", help="train, val or test (default)")
    parser.add_argument("--tasks", type=int, metavar="N", help="tasks (default: the recipe's)")
    parser.add_argument("--steps", type=int, metavar="M", help="steps (default: the recipe's)")
    parser.add_argument("--checkpoint", default="best", help="best (default), last or a file")
    add_trust(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.parse_args(arguments)

    from maml_dist.run import Run

    run = Run.open(options.run, trust=options.trust)
    evaluation = run.evaluate(
        split=options.split, tasks=options.tasks, steps=options.steps, checkpoint=options.checkpoint
    )
    if options.json:
        print(json.dumps(evaluation))
    else:
        show(evaluation, run.experiment.published)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
