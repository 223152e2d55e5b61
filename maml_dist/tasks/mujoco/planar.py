"""The centre of mass of a body that moves in the plane, and its velocity.

    centre = root + sum_b R(phi_b) c_b,    c_b = (m_b own_b + sum_{k hangs on b} M_k joint_k) / M
    R(phi_b) c_b = r_b (sin, cos)(phi_b + delta_b)    along x and z

phi_b is the angle of part b about y against the world; own_b its centre of mass and joint_k where k
hangs on it, both in b's frame; m_b its mass and M_k the mass of k with all that hangs on it.
MuJoCo gives the same after a step only if it refreshes all that it derives, for half a step's time.
"""

from typing import NamedTuple

import mujoco
import numpy as np
import torch


class Centre(NamedTuple):
    """Where the centre of mass is and how fast it moves."""

    position: np.ndarray  # [task, episode, 3]: x, y, z
    forward: np.ndarray  # [task, episode], the velocity along x


class Planar:
    """A tree of hinges about y, whose root slides along x and z."""

    def __init__(self, model: mujoco.MjModel) -> None:
        kinds = [mujoco.mjtJoint.mjJNT_SLIDE] * 2 + [mujoco.mjtJoint.mjJNT_HINGE] * (model.njnt - 2)
        assert model.jnt_type.tolist() == [int(kind) for kind in kinds]
        assert model.nbody == model.nq - 1  # the world, and one part a hinge
        mass, reach = model.body_mass[1:, None], model.body_subtreemass[1:, None]
        parents = (model.body_parentid[1:] - 1).tolist()
        self.hangs = list(enumerate(parents))[1:]  # each part, and the part on which it hangs
        offset = mass * model.body_ipos[1:]
        for part, parent in self.hangs:
            offset[parent] += reach[part] * model.body_pos[part + 1]
        offset /= reach[0]
        x, z = offset[:, 0, None, None], offset[:, 2, None, None]
        self.radius, self.delta = np.hypot(x, z), np.arctan2(x, z)
        self.root = model.body_pos[1] + [0, offset[:, 1].sum(), 0]

    def __call__(self, qpos: np.ndarray, qvel: np.ndarray) -> Centre:
        """Of positions and velocities [task, episode, x and z and the angles]."""
        turned = np.empty((2, len(self.radius), *qpos.shape[:-1]))  # angles and their velocities
        for motion, given in zip(turned, (qpos, qvel), strict=True):
            motion[:] = given.transpose(2, 0, 1)[2:]
        for part, parent in self.hangs:
            turned[:, part] += turned[:, parent]
        angle = torch.from_numpy(turned[0] + self.delta)  # five times as fast as numpy's
        along, up = angle.sin().numpy() * self.radius, angle.cos().numpy() * self.radius
        position = np.empty((*qpos.shape[:-1], 3))
        position[:] = self.root
        position[..., 0] += qpos[..., 0] + along.sum(0)
        position[..., 2] += qpos[..., 1] + up.sum(0)
        return Centre(position, qvel[..., 0] + (turned[1] * up).sum(0))
