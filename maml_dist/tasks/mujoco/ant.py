"""Ants that run forward or backward, or at a given speed: MuJoCo, four legs of two joints.

    paper: reward = progress + 0.05 - 0.005 |a|^2 - contacts, at the velocity of the centre of mass
    gymnasium: reward = progress + healthy - 0.5 |a|^2 - contacts, at the torso's mean velocity

contacts = 0.0005 |forces clipped to [-1, 1]|^2; progress to a velocity is 1 - |v - goal|. Actions
are clipped to [-1, 1] first. An episode ends when the torso is not between 0.2 and 1 high.
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
from maml_dist.tasks.rollout import Goal, Rollouts

FORCE = 150.0  # of a full action
REST = (0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1)  # in `paper`: place, turn, joints


@dataclass(frozen=True)
class Ant(Rollouts):
    """Goals for an ant: eight joints, 125 observations (`paper`) or 105 (`gymnasium`)."""

    horizon: int = 200  # control steps
    goal: Kind = "direction"  # or velocity
    profile: Profile = "paper"  # of the simulation, or gymnasium
    threads: int = 1  # that step the physics

    goal_dim = 1
    action_dim = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    @property
    def state_dim(self) -> int:
        """Positions, velocities, contact forces; in `paper` the torso's turn and the centre too."""
        return 125 if self.profile == "paper" else 105

    def sample(self, key: TaskKey) -> Goal:
        """Forward or backward; or a velocity up to 3."""
        return draw(self.goal, key, fast=3.0)

    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """Ants near their rest, each as drawn."""
        starts = [self._start(rng) for rng in self.resets(tasks, stage)]
        qpos, qvel = (np.stack(drawn) for drawn in zip(*starts, strict=True))
        ants = PaperAnts if self.profile == "paper" else GymnasiumAnts
        return ants(self, np.array([task.value for task in tasks]), qpos, qvel)

    def _start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions [episode, 15] and velocities [episode, 14]."""
        size = (self.episodes, len(REST))
        if self.profile == "paper":
            qpos = REST + rng.normal(0, 0.01, size)
        else:
            qpos = _gymnasium().qpos0 + rng.uniform(-0.1, 0.1, size)
        return qpos, rng.normal(0, 0.1, (self.episodes, len(REST) - 1))


class PaperAnts(Simulator):
    """Ants of the released code: one physics step a control step, then all is refreshed."""

    def __init__(
        self,
        source: Ant,
        goals: np.ndarray,  # [task, 1]
        qpos: np.ndarray,  # [task, episode, 15]
        qvel: np.ndarray,  # [task, episode, 14]
    ) -> None:
        self.source, self.goals, self.start = source, goals, (qpos, qvel)
        self.physics = physics.Physics(_paper(), qpos.shape[:2], threads=source.threads)
        names = ("cfrc_ext", "xmat", "sensordata")
        self.forces, self.turn, self.mass = (self.physics.field(name) for name in names)

    def reset(self) -> np.ndarray:
        """The observations at the start."""
        self.physics.start(*self.start, stage=physics.FORCED)
        return self._observe(_clipped(self.forces))

    def step(self, actions: np.ndarray) -> StepResult:
        """Act for one physics step."""
        action = np.clip(actions, -1, 1, dtype=np.float64)
        self.physics.step(FORCE * action, substeps=1, stage=physics.FORCED)
        forces, velocity = _clipped(self.forces), self.mass[..., 3]
        gain = progress(self.source.goal, self.goals, velocity, top=1.0)
        effort, contacts = np.square(action).sum(-1), np.square(forces).sum(-1)
        rewards = gain + 0.05 - 0.005 * effort - 0.0005 * contacts
        ended = _fallen(self.physics)
        return StepResult(self._observe(forces), rewards, ended)

    def _observe(self, forces: np.ndarray) -> np.ndarray:
        parts = self.physics.qpos, self.physics.qvel, forces, self.turn[..., 1, :]
        return np.concatenate([*parts, self.mass[..., :3]], -1)


class GymnasiumAnts(Simulator):
    """Ants of Gymnasium's v5: five physics steps; what is derived is a substep older than these."""

    def __init__(
        self,
        source: Ant,
        goals: np.ndarray,  # [task, 1]
        qpos: np.ndarray,  # [task, episode, 15]
        qvel: np.ndarray,  # [task, episode, 14]
    ) -> None:
        self.source, self.goals, self.start = source, goals, (qpos, qvel)
        self.physics = physics.Physics(
            _gymnasium(), qpos.shape[:2], threads=source.threads, persistent=True
        )
        self.place = self.physics.field("xpos")
        self.forces = np.zeros((*qpos.shape[:2], 14, 6))
        self.one = mujoco.MjData(_gymnasium())

    def reset(self) -> np.ndarray:
        """The observations at the start, where no force is known yet."""
        self.physics.start(*self.start, stage=physics.FORCED)
        return self._observe(_clipped(self.forces))

    def step(self, actions: np.ndarray) -> StepResult:
        """Act for five physics steps."""
        action, before = np.clip(actions, -1, 1, dtype=np.float64), self.place[..., 1, 0].copy()
        self.physics.step(action, substeps=5)
        self._feel()
        forces = _clipped(self.forces)
        velocity = (self.place[..., 1, 0] - before) / (5 * _gymnasium().opt.timestep)
        lost = self.physics.lost()
        if lost is not None:  # its place is no longer that of the episode
            velocity = np.where(lost, 0.0, velocity)
        ended = _fallen(self.physics)
        gain = progress(self.source.goal, self.goals, velocity, top=1.0) + ~ended
        effort, contacts = np.square(action).sum(-1), np.square(forces).sum(-1)
        rewards = gain - (0.5 * effort + 5e-4 * contacts)
        return StepResult(self._observe(forces), rewards, ended)

    def _feel(self) -> None:
        """The forces, simulation by simulation: a batch has none, a sensor those of earlier."""
        batch, forces = self.physics.batch, self.forces.reshape(-1, 14, 6)
        for index in np.flatnonzero(~self.physics.ended):
            batch.get_data(index, self.one)
            mujoco.mj_rnePostConstraint(batch.model, self.one)
            forces[index] = self.one.cfrc_ext

    def _observe(self, forces: np.ndarray) -> np.ndarray:
        parts = self.physics.qpos[..., 2:], self.physics.qvel, forces[..., 6:]
        return np.concatenate(parts, -1)


def _clipped(forces: np.ndarray) -> np.ndarray:
    """Contact forces [task, episode, 84] of all bodies, the world first."""
    clipped: np.ndarray = np.clip(forces, -1, 1)
    return clipped.reshape(*forces.shape[:2], -1)


def _fallen(simulations: physics.Physics) -> np.ndarray:
    """Mark as ended the episodes [task, episode] that end now, or did before."""
    height = simulations.qpos[..., 2]
    fallen, lost = (height < 0.2) | (height > 1), simulations.lost()
    simulations.ended = simulations.ended | fallen | (False if lost is None else lost)
    return simulations.ended


@lru_cache
def _paper() -> mujoco.MjModel:
    """Gymnasium's, made that of the released code, with sensors that make MuJoCo derive all."""
    model = physics.spec("ant")
    model.option.timestep = 0.02
    model.option.integrator = mujoco.mjtIntegrator.mjINT_RK4
    model.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND  # a tenth of the time
    for motor in model.actuators:
        motor.ctrlrange, motor.gear = (-FORCE, FORCE), (1, 0, 0, 0, 0, 0)
    physics.sense(model, mujoco.mjtSensor.mjSENS_SUBTREECOM)
    physics.sense(model, mujoco.mjtSensor.mjSENS_SUBTREELINVEL)
    physics.sense(model, mujoco.mjtSensor.mjSENS_FRAMELINACC)  # which needs the contact forces
    return physics.compiled(model)


@lru_cache
def _gymnasium() -> mujoco.MjModel:
    """Gymnasium's."""
    return physics.compiled(physics.spec("ant"))
