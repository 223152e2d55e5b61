"""The content of a run's evaluation.json."""

from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from maml_dist.core.schema import from_json
from maml_dist.runs.folder import read_bounded

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
    others: NotRequired[dict[str, list[Step]]]  # of scores beside the metric


class Evaluation(TypedDict):
    """The content of evaluation.json."""

    recipe: str
    split: Literal["train", "val", "test"]
    tasks: int
    metric: str
    results: list[Result]


def read(path: Path) -> dict[str, Any]:
    """An evaluation that was written.

    Raises:
        ValueError: it is damaged or of another form.
        OSError: it cannot be read.
    """
    content = read_bounded(path, most=EVALUATION_BYTES)
    evaluation: dict[str, Any] = from_json(content, Evaluation, str(path))
    if not evaluation["results"] or not all(each["steps"] for each in evaluation["results"]):
        raise ValueError(f"{path} holds no results")
    return evaluation
