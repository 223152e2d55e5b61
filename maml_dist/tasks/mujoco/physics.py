"""Bodies in MuJoCo: one model, simulated once for each episode of each task, stepped in one call.

Facts that are easily missed: what is derived from the state (positions of bodies, sensors) is one
substep old after a step unless `stage` refreshes it; and the velocity of the centre of mass is
computed for a sensor only, zeros without one.
"""

import warnings
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

try:
    from mujoco.batch import Batch, SimulationError
except ImportError:  # before MuJoCo 4.0, which others of an environment may pin
    Batch = SimulationError = None

from maml_dist.core.data.simulator import EnvironmentFault
from maml_dist.core.process_lock import EXCLUSIVE

MODELS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
STALE = int(mujoco.mjtStage.mjSTAGE_NONE)  # nothing is refreshed
FORCED = int(mujoco.mjtStage.mjSTAGE_ACC)  # all is
# The warnings of a bad position, velocity or acceleration, which stand in a row.
LOST = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)


def check_version() -> None:
    """Raise ValueError where the installed MuJoCo steps no simulations in batches."""
    if Batch is None:
        raise ValueError(
            f"half-cheetahs and ants need mujoco 4.0 or newer, and {mujoco.__version__} is "
            "installed: pip install 'mujoco>=4.0' (Meta-World pins 3.3.0: an environment of its "
            "own)"
        )


def spec(name: str) -> mujoco.MjSpec:
    """Gymnasium's model of this name, to be changed before it is compiled."""
    return mujoco.MjSpec.from_file(str(MODELS / f"{name}.xml"))


def sense(model: mujoco.MjSpec, kind: mujoco.mjtSensor) -> None:
    """Add a sensor of the torso, or of all that hangs on it, behind the others."""
    body = mujoco.mjtObj.mjOBJ_BODY
    model.add_sensor(name=kind.name, type=kind, objtype=body, objname="torso")


def compiled(model: mujoco.MjSpec) -> mujoco.MjModel:
    """The model, without the word that a part of Gymnasium's cheetah is deprecated."""
    with EXCLUSIVE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.compile()


class Physics:
    """Simulations [task, episode]; those whose episode has ended stand still."""

    def __init__(
        self,
        model: mujoco.MjModel,
        count: tuple[int, int],
        *,
        threads: int,
        persistent: bool = False,
    ) -> None:
        """`persistent` keeps all that is derived of every simulation, not of one a thread."""
        self.model, self.count = model, count
        self.batch = Batch(model, count[0] * count[1], threads, persistent)
        self.qpos, self.qvel, self.ctrl = (self.field(name) for name in ("qpos", "qvel", "ctrl"))
        self.ended = np.zeros(count, dtype=bool)

    def field(self, name: str) -> np.ndarray:
        """A live view [task, episode, …] of a field of MuJoCo's data."""
        bound: np.ndarray = self.batch.bind(name)
        return bound.reshape(*self.count, *bound.shape[1:])

    @property
    def running(self) -> np.ndarray | None:
        """The simulations that go on, counted over all tasks; None where all do."""
        return np.flatnonzero(~self.ended) if self.ended.any() else None

    def lost(self) -> np.ndarray | None:
        """Where a state was no longer finite, [task, episode], and MuJoCo has reset it."""
        warned: np.ndarray = self.batch.warning[:, LOST, 1]
        return warned.any(-1).reshape(self.count) if warned.any() else None

    def start(self, qpos: np.ndarray, qvel: np.ndarray, *, stage: int = STALE) -> None:
        """Begin at these positions and velocities [task, episode, …]; refresh up to `stage`."""
        self.qpos[:], self.qvel[:] = qpos, qvel
        if stage != STALE:
            self.batch.forward(stage=stage)

    def step(self, ctrl: np.ndarray, *, substeps: int, stage: int = STALE) -> None:
        """Apply controls [task, episode, act] for so many substeps, then refresh up to `stage`.

        Raises:
            EnvironmentFault: MuJoCo gave up.
        """
        self.ctrl[:] = ctrl
        try:
            self.batch.step(self.running, substeps, stage)
        except SimulationError as error:
            raise EnvironmentFault(int(error.ids[0]) // self.count[1], str(error)) from error
