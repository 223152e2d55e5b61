"""Running where it is asked (arXiv 1703.03400, section 5.3): the goals that all bodies share.

    direction: progress = goal v,             goal +1 or -1
    velocity:  progress = top - |v - goal|,   goal U[0, fast]

v is the velocity along x. Profiles: `paper`, the released code's simulation, one physics step a
control step; `gymnasium`, that of Gymnasium's v5 environments, five. Returns compare within one.
"""

from typing import Any, Literal

import numpy as np

from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.validation import check_choice, check_range
from maml_dist.tasks.mujoco.physics import check_version
from maml_dist.tasks.rollout import Goal

Kind = Literal["direction", "velocity"]
Profile = Literal["paper", "gymnasium"]


def check(body: Any) -> None:
    """The settings of a body, its fields `goal`, `profile` and `threads`.

    Raises:
        ValueError: a setting is not one of those allowed, or MuJoCo is too old.
    """
    check_version()
    check_choice(body, "task", "goal", "profile")
    check_range(body, "task", threads=(1, 1024))


def draw(kind: Kind, key: TaskKey, *, fast: float) -> Goal:
    """A direction, or a velocity up to `fast` (per second)."""
    rng = key.rng()
    value = rng.choice([-1.0, 1.0]) if kind == "direction" else rng.uniform(0, fast)
    return Goal(key, (float(value),))


def progress(
    kind: Kind, goals: np.ndarray, velocity: np.ndarray, *, top: float = 0.0
) -> np.ndarray:
    """The reward [task, episode] of going at `velocity` [task, episode]; goals [task, 1]."""
    rewards: np.ndarray = (
        goals * velocity if kind == "direction" else top - np.abs(velocity - goals)
    )
    return rewards
