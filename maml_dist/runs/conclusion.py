"""Conclusion: a run's loggers are told its test scores, and shown its pictures."""

from typing import Any

from maml_dist.runs import tensorboard
from maml_dist.runs.folder import make_within, replace
from maml_dist.runs.run import Run
from maml_dist.runs.trackers import Trackers


def conclude(run: Run, evaluation: dict[str, Any]) -> None:
    """Tell them, at the run's last iteration. Raises OSError where events cannot be written."""
    last = run.checkpoints.last
    iteration = last.iteration if last else 0
    row = {"iteration": iteration, **scores_of(evaluation)}
    pictures = sorted((run.path / "figures").glob("*.png"))
    if "tensorboard" in run.config["loggers"]:
        folder = run.path / "tensorboard"
        make_within(folder)
        numbers = {name: value for name, value in row.items() if name != "iteration"}
        events = (
            tensorboard.opening(iteration + 1)
            + tensorboard.scalars(numbers, iteration)
            + tensorboard.pictures(pictures, iteration)
        )
        replace(folder / tensorboard.file_name(), events)
    asked = [name for name in run.config["loggers"] if name != "prometheus"]  # its Ray has gone
    trackers = Trackers(run.path, {**run.config, "loggers": asked}, start=iteration)
    trackers.log(row)
    trackers.pictures(pictures)
    trackers.close()


def scores_of(evaluation: dict[str, Any]) -> dict[str, float]:
    """The mean after each number of steps: `test/METRIC/STEP`, and with their names other modes."""
    metric, first = evaluation["metric"], evaluation["results"][0]["mode"]
    return {
        f"{evaluation['split']}/{metric}{'' if result['mode'] == first else '/' + result['mode']}"
        f"/{row['step']}": row["mean"]
        for result in evaluation["results"]
        for row in result["steps"]
        if row["mean"] is not None
    }
