"""Prometheus: the numbers of the last row as gauges of Ray's, beside Ray's own on each node."""

import re
from pathlib import Path
from typing import Any

from maml_dist.loggers.logger import Logger
from maml_dist.runtime.private_ray import is_own


class Prometheus(Logger):
    """`ray_maml_dist_NAME{run="…"}` at the driver's node of a cluster."""

    def __init__(self, folder: Path, config: dict[str, Any], *, start: int) -> None:
        import ray

        if not ray.is_initialized() or is_own():
            raise ValueError(
                "its numbers go through a cluster's Ray (--address); one that is started for a "
                "run, or none, shows them to nobody"
            )
        self._tags = {"run": folder.name, "recipe": str(config["name"])}
        self._gauges: dict[str, Any] = {}

    def log(self, row: dict[str, Any]) -> None:
        """The numbers of a row."""
        from ray.util.metrics import Gauge

        for key, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            name = "maml_dist_" + re.sub(r"\W+", "_", key)
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, f"{key} of a run", tag_keys=tuple(self._tags))
            self._gauges[name].set(float(value), tags=self._tags)

    def close(self) -> None:
        """They stay as they are until the driver ends."""
