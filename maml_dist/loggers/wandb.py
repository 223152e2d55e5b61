"""Weights & Biases. Its own variables say where: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, …"""

import os
from pathlib import Path
from typing import Any

from maml_dist.loggers.identity import identity
from maml_dist.loggers.logger import Logger


class WandB(Logger):
    """A run there, gone on with where it is resumed; x is the meta-iteration."""

    def __init__(self, folder: Path, config: dict[str, Any], *, start: int) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "maml_dist"),
            name=folder.name,
            id=identity(folder),
            resume="allow",
            dir=folder,
            config=config,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def log(self, row: dict[str, Any]) -> None:
        """A row."""
        self._run.log(row)

    def picture(self, path: Path) -> None:
        """A picture, by the name of its file."""
        self._run.log({path.stem: self._wandb.Image(str(path))})

    def close(self) -> None:
        """End it; what was not sent is in the folder, for `wandb sync`."""
        self._run.finish()
