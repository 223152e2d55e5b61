"""Half-cheetahs that run forward or backward, or at a given speed: MuJoCo, in two dimensions.

    paper: reward = progress - 0.05 |a|^2 at the velocity of the centre of mass
    gymnasium: reward = progress - 0.1 |a|^2 at the mean velocity of the torso during the step

Actions are clipped to [-1, 1] first. An episode ends before the horizon only where the simulation
is unstable; that step is paid as one without progress.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mujoco
import numpy as np

from maml_dist.core.data.simulator import Simulator, StepResult
from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.mujoco import physics
from maml_dist.tasks.mujoco.locomotion import Kind, Profile, check, draw, progress
from maml_dist.tasks.mujoco.planar import Planar
from maml_dist.tasks.rollout import Goal, Rollouts


@dataclass(frozen=True)
class HalfCheetah(Rollouts):
    """Goals for a half-cheetah: six joints, 20 observations (`paper`) or 17 (`gymnasium`)."""

    horizon: int = 200  # control steps
    goal: Kind = "direction"  # or velocity
    profile: Profile = "paper"  # of the simulation, or gymnasium
    threads: int = 1  # that step the physics

    goal_dim = 1
    action_dim = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    @property
    def state_dim(self) -> int:
        """Positions but x, velocities; in `paper` the centre of mass too."""
        return 20 if self.profile == "paper" else 17

    def sample(self, key: TaskKey) -> Goal:
        """Forward or backward; or a velocity up to 2."""
        return draw(self.goal, key, fast=2.0)

    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """Half-cheetahs near their rest, each as drawn."""
        starts = [self._start(rng) for rng in self.resets(tasks, stage)]
        qpos, qvel = (np.stack(drawn) for drawn in zip(*starts, strict=True))
        return HalfCheetahs(self, np.array([task.value for task in tasks]), qpos, qvel)

    def _start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities [episode, 9]: rest is zero."""
        size = (self.episodes, 9)
        paper = self.profile == "paper"
        qpos = rng.normal(0, 0.01, size) if paper else rng.uniform(-0.1, 0.1, size)
        return qpos, rng.normal(0, 0.1, size)


class HalfCheetahs(Simulator):
    """Half-cheetahs, their goals [task, 1], and where they start."""

    def __init__(
        self,
        source: HalfCheetah,
        goals: np.ndarray,
        qpos: np.ndarray,  # [task, episode, 9]
        qvel: np.ndarray,  # [task, episode, 9]
    ) -> None:
        self.source, self.goals, self.start = source, goals, (qpos, qvel)
        self.physics = physics.Physics(_model(), qpos.shape[:2], threads=source.threads)
        self.centre = Planar(_model()) if source.profile == "paper" else None

    def reset(self) -> np.ndarray:
        """The observations at the start."""
        self.physics.start(*self.start)
        return self._observe()[0]

    def step(self, actions: np.ndarray) -> StepResult:
        """Act for one physics step (`paper`) or five."""
        ctrl = np.clip(actions, -1, 1, dtype=np.float64)
        effort, before = np.square(ctrl).sum(-1), self.physics.qpos[..., 0].copy()
        self.physics.step(ctrl, substeps=5 if self.centre is None else 1)
        observations, velocity = self._observe()
        if velocity is None:
            velocity = (self.physics.qpos[..., 0] - before) / (5 * _model().opt.timestep)
        lost = self.physics.lost()
        if lost is not None:  # its state is no longer that of the episode
            velocity = np.where(lost, 0.0, velocity)
            self.physics.ended = self.physics.ended | lost
        cost = (0.1 if self.centre is None else 0.05) * effort
        rewards = progress(self.source.goal, self.goals, velocity) - cost
        return StepResult(observations, rewards, self.physics.ended)

    def _observe(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Observations [task, episode, obs], and the velocity of the centre of mass."""
        qpos, qvel = self.physics.qpos, self.physics.qvel
        if self.centre is None:
            return np.concatenate([qpos[..., 1:], qvel], -1), None
        centre = self.centre(qpos, qvel)
        return np.concatenate([qpos[..., 1:], qvel, centre.position], -1), centre.forward


@lru_cache
def _model() -> mujoco.MjModel:
    """Gymnasium's."""
    model = physics.spec("half_cheetah")
    model.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND  # a tenth of the time
    return physics.compiled(model)
