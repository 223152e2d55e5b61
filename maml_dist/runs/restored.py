"""Restored: a run's objects, their model with what was fixed of it in training.

A constructor may have drawn that, or read it from a file, so the file beside the checkpoints is the
truth; a run that starts from another takes that one's.
"""

from collections.abc import Callable

from maml_dist.config.compose import build
from maml_dist.config.experiment import Experiment
from maml_dist.config.recipe import Config
from maml_dist.core.model.frozen_state import FrozenState, frozen_state, restore, saveable
from maml_dist.runs.checkpoint_header import kinds_of
from maml_dist.runs.checkpoints import Checkpoints


def started(config: Config, init: FrozenState | None) -> tuple[Experiment, FrozenState]:
    """The objects of a run without checkpoints, and what is fixed of its model, or of `init`'s.

    Raises:
        ValueError: they cannot be made, or the model is not that of `init`.
    """
    experiment = build(config)
    held = frozen_state(experiment.model)
    if init is not None:
        try:
            restore(held, saveable(init))
        except ValueError as error:
            raise ValueError(f"init={config['init']}: {error}") from None
    return experiment, held


def restored(
    config: Config, checkpoints: Checkpoints, *, make: Callable[[Config], Experiment] = build
) -> tuple[Experiment, FrozenState]:
    """The objects of a run that has checkpoints, as `make` makes them, and what is fixed.

    Raises:
        ValueError: they cannot be made, or what was fixed is missing, damaged or of another model.
    """
    experiment = make(config)
    held = frozen_state(experiment.model)
    place = checkpoints.folder.path
    if checkpoints.fixed:
        kinds = kinds_of(saveable(held))
        restore(held, checkpoints.load_fixed(lambda header: header.expect(kinds, "the model")))
    elif saveable(held) and checkpoints.by_this_version:
        raise ValueError(
            f"the checkpoints in {place} are of a model without {next(iter(saveable(held)))}: give "
            "the run the model that it was trained with"
        )
    return experiment, held
