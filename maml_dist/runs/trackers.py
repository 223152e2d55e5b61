"""Trackers: the loggers of a run, each told by a thread of its own: training waits for none.

One that fails says so once, and is told nothing more: a run never ends by it.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from maml_dist.config.recipe import Config, nearest
from maml_dist.config.trust import Names
from maml_dist.loggers.lines import say

OWN = ("jsonl", "tensorboard")  # what a run writes itself
SHIPPED = {
    "wandb": "maml_dist.loggers.wandb.WandB",
    "mlflow": "maml_dist.loggers.mlflow.MLflow",
    "prometheus": "maml_dist.runtime.prometheus.Prometheus",
}
LAST = 30.0  # seconds at the end for what one has not been told
METHODS = ("log", "close")


class Trackers:
    """All loggers of a run that are not files of its own."""

    def __init__(self, folder: Path, config: Config, *, start: int) -> None:
        """Rows come from `start` on.

        Raises:
            ValueError: there is no such logger, or it is none.
        """
        kinds = classes(config)
        self._all = [_Told(name, kinds[name], folder, config, start) for name in kinds]

    def log(self, row: dict[str, Any]) -> None:
        """One flat row."""
        for each in self._all:
            each.tell("log", dict(row))

    def pictures(self, paths: Iterable[Path]) -> None:
        """Pictures of the run, for loggers that take them."""
        for path in paths:
            for each in self._all:
                each.tell("picture", path)

    def close(self) -> None:
        """Let them finish, for a while."""
        for each in self._all:
            each.tell("close")
        end = time.monotonic() + LAST
        for each in self._all:
            each.wait(max(0.0, end - time.monotonic()))


def classes(config: Config) -> dict[str, type]:
    """The classes of the loggers that a recipe names; raises ValueError, in one line."""
    names = Names(config["code"])
    found: dict[str, type] = {}
    for name in config["loggers"]:
        if name in OWN:
            continue
        module, _, short = SHIPPED.get(name, name).rpartition(".")
        if not module:
            known = [*OWN, *SHIPPED]
            raise ValueError(
                f"loggers={name}: there is none{nearest(name, known)} "
                f"(there are {', '.join(known)}; one of your own is named module.Class)"
            )
        try:
            owner = import_module(module) if name in SHIPPED else names.module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"loggers={name}: {error}") from None
        kind = getattr(owner, short, None)
        if not isinstance(kind, type) or not all(hasattr(kind, each) for each in METHODS):
            raise ValueError(f"loggers={name}: must be a class with {' and '.join(METHODS)}")
        found[name] = kind
    return found


class _Told:
    """A logger in a thread of its own."""

    def __init__(self, name: str, kind: type, folder: Path, config: Config, start: int) -> None:
        self._name, self._given = name, (kind, folder, config, start)
        self._waiting: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def tell(self, method: str, *given: Any) -> None:
        """Call a method of it, later."""
        if self._thread.is_alive():
            self._waiting.put((method, given))

    def wait(self, seconds: float) -> None:
        """Until it is closed, or so long."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._say(f"does not take what is left within {seconds:.0f} s")

    def _work(self) -> None:
        kind, folder, config, start = self._given
        logger = None
        try:
            logger = kind(folder, config, start=start)
            method = ""
            while method != "close":
                method, given = self._waiting.get()
                if method != "picture" or hasattr(logger, method):
                    getattr(logger, method)(*given)
        except Exception as error:  # whatever it is, training goes on
            line = str(error).strip().splitlines()[:1]
            self._say(f"{type(error).__name__}: {line[0] if line else 'no reason is given'}")
            if logger is not None:
                with suppress(Exception):
                    logger.close()

    def _say(self, what: str) -> None:
        say(f"loggers={self._name}: {what}: it is told nothing more", level="warning")
