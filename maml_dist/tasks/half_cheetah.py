"""Half-cheetahs that run forward or backward, or at a given speed: MuJoCo, in two dimensions.

    paper: reward = progress - 0.05 |a|^2 at the velocity of the centre of mass
    gymnasium: reward = progress - 0.1 |a|^2 at the mean velocity of the torso during the step

Actions are clipped to [-1, 1] first. No episode ends before the horizon.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mujoco
import numpy as np

from maml_dist.core.simulator import Fault, Simulator, Stepped
from maml_dist.core.source import TaskKey
from maml_dist.tasks import physics
from maml_dist.tasks.locomotion import Kind, Profile, check, draw, progress
from maml_dist.tasks.physics import Physics
from maml_dist.tasks.rollout import Goal, Rollouts


@dataclass(frozen=True)
class HalfCheetah(Rollouts):
    """Goals for a half-cheetah: six joints, 20 observations (`paper`) or 17 (`gymnasium`)."""

    horizon: int = 200  # control steps
    goal: Kind = "direction"  # or velocity
    profile: Profile = "paper"  # of the simulation, or gymnasium
    threads: int = 1  # that step the physics

    goals = 1
    actions = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.goal, self.profile, self.threads)

    @property
    def sensed(self) -> int:
        """Positions but x, velocities; in `paper` the centre of mass too."""
        return 20 if self.profile == "paper" else 17

    def sample(self, key: TaskKey) -> Goal:
        """Forward or backward; or a velocity up to 2."""
        return draw(self.goal, key, fast=2.0)

    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """Half-cheetahs near their rest, each as drawn."""
        model = _model(self.profile)
        starts = [_start(rng, self) for rng in self.resets(tasks, stage)]
        qpos, qvel = (np.stack(drawn) for drawn in zip(*starts, strict=True))
        return HalfCheetahs(self, model, [task.value for task in tasks], model.qpos0 + qpos, qvel)


class HalfCheetahs(Simulator):
    """Half-cheetahs, their goals [task, 1], and where they start."""

    def __init__(
        self,
        source: HalfCheetah,
        model: mujoco.MjModel,
        goals: Sequence[Sequence[float]],
        qpos: np.ndarray,  # [task, episode, 9]
        qvel: np.ndarray,  # [task, episode, 9]
    ) -> None:
        self.source, self.goals, self.start = source, np.array(goals), (qpos, qvel)
        self.paper = source.profile == "paper"
        self.physics = Physics(model, qpos.shape[:2], threads=source.threads, persistent=self.paper)
        self.mass = self.physics.field("sensordata") if self.paper else None

    def reset(self) -> np.ndarray:
        """The observations at the start."""
        self.physics.start(*self.start, physics.MOVED if self.paper else physics.FORCED)
        return self._observations()

    def step(self, actions: np.ndarray) -> Stepped:
        """Act for one physics step (`paper`) or five."""
        ctrl = np.clip(actions, -1, 1, dtype=np.float64)
        effort = np.square(ctrl).sum(-1)
        if self.mass is not None:
            self.physics.step(ctrl, substeps=1, stage=physics.MOVED)
            velocity, cost = self.mass[..., 3], 0.05 * effort
        else:
            before = self.physics.qpos[..., 0].copy()
            self.physics.step(ctrl, substeps=5, stage=physics.STALE)
            elapsed = 5 * self.physics.model.opt.timestep
            velocity, cost = (self.physics.qpos[..., 0] - before) / elapsed, 0.1 * effort
        lost = self.physics.lost
        if lost.any():
            raise Fault(int(lost.any(-1).argmax()), "the simulation is unstable")
        rewards = progress(self.source.goal, self.goals, velocity) - cost
        return Stepped(self._observations(), rewards, self.physics.ended)

    def _observations(self) -> np.ndarray:
        qpos, qvel = self.physics.qpos, self.physics.qvel
        mass = [] if self.mass is None else [self.mass[..., :3]]
        return np.concatenate([qpos[..., 1:], qvel, *mass], -1)


def _start(rng: np.random.Generator, source: HalfCheetah) -> tuple[np.ndarray, np.ndarray]:
    """By how much positions and velocities [episode, 9] differ from rest."""
    size = (source.episodes, 9)
    paper = source.profile == "paper"
    moved = rng.normal(0, 0.01, size) if paper else rng.uniform(-0.1, 0.1, size)
    return moved, rng.normal(0, 0.1, size)


@lru_cache
def _model(profile: Profile) -> mujoco.MjModel:
    """Gymnasium's; in `paper` with sensors of the centre of mass and of its velocity."""
    model = physics.spec("half_cheetah")
    if profile == "paper":
        physics.sense(model, mujoco.mjtSensor.mjSENS_SUBTREECOM)
        physics.sense(model, mujoco.mjtSensor.mjSENS_SUBTREELINVEL)
        model.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND  # a tenth of the time
    return physics.compiled(model)
