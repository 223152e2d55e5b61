"""MLflow. Its own variables say where: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

import os
from pathlib import Path
from typing import Any

from maml_dist.loggers.flat import flat
from maml_dist.loggers.identity import identity
from maml_dist.loggers.logger import Logger

LONGEST = 500  # characters of a parameter


class MLflow(Logger):
    """A run there, gone on with where it is resumed; the step is the meta-iteration."""

    def __init__(self, folder: Path, config: dict[str, Any], *, start: int) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "maml_dist")
        experiment = self._experiment(name)
        tag = identity(folder)
        runs = self._client.search_runs([experiment], f"tags.maml_dist = '{tag}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=folder.name, tags={"maml_dist": tag})
        self._run = made.info.run_id
        params = [Param(key, str(value)[:LONGEST]) for key, value in flat(config).items()]
        for at in range(0, len(params), 100):  # as many as it takes at once
            self._client.log_batch(self._run, params=params[at : at + 100])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another run has made it since
            if found := self._client.get_experiment_by_name(name):
                return str(found.experiment_id)
            raise

    def log(self, row: dict[str, Any]) -> None:
        """The numbers of a row."""
        import time

        now = round(1000 * time.time())
        numbers = {
            key: value
            for key, value in row.items()
            if key != "iteration" and isinstance(value, int | float)
        }
        metrics = [
            self._metric(key, float(value), now, row["iteration"]) for key, value in numbers.items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def picture(self, path: Path) -> None:
        """A picture among the run's artifacts."""
        self._client.log_artifact(self._run, str(path), "figures")

    def close(self) -> None:
        """End it."""
        self._client.set_terminated(self._run)
