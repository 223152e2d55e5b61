"""Prometheus: the numbers of the last row as gauges of Ray's, beside Ray's own on each node."""

import re
from pathlib import Path
from typing import Any

from maml_dist.loggers.logger import Logger
from maml_dist.runtime.meter import Meter, Metric, Reading
from maml_dist.runtime.private_ray import is_own


def labels(folder: Path, recipe: str) -> dict[str, str]:
    """What all metrics of a run have: its folder's name, of a trial also the search's."""
    trial = folder.parent.name == "trials"
    run = "/".join(folder.parts[-3:]) if trial else folder.name
    return {"run": run, "recipe": recipe}


def column(key: str) -> Metric:
    """The gauge of a row's column."""
    return Metric(re.sub(r"\W+", "_", key), f"{key} of a run")


class Prometheus(Logger):
    """`ray_maml_dist_NAME{run="…"}` at the driver's node of a cluster."""

    def __init__(self, folder: Path, config: dict[str, Any], *, start: int) -> None:
        import ray

        if not ray.is_initialized() or is_own():
            raise ValueError(
                "its numbers go through a cluster's Ray (--address); one that is started for a "
                "run, or none, shows them to nobody"
            )
        self._last: Reading = {}
        self._meter = Meter(labels(folder, str(config["name"])), lambda: self._last)

    def log(self, row: dict[str, Any]) -> None:
        """The numbers of a row."""
        self._last = self._last | {
            (column(key), ()): float(value)
            for key, value in row.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._meter.tell()

    def close(self) -> None:
        """They are gone within a minute: what is shown is in training."""
        self._meter.close()
