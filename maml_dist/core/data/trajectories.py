"""Trajectories: what policies saw, did and earned; and the data of a policy gradient made of them.

Legend: task = stacked tasks, episode, time = control steps, obs, act, out = of the policy's output.
Code that sees one task sees no task axis.
"""

from typing import NamedTuple

from torch import Tensor


class Trajectories(NamedTuple):
    """Episodes of a fixed horizon; after an episode's end all is masked and counts nowhere."""

    observations: Tensor  # [task, episode, time, obs] float32, before the action
    actions: Tensor  # [task, episode, time, act] float32; discrete: [task, episode, time] int64
    rewards: Tensor  # [task, episode, time] float32
    mask: Tensor  # [task, episode, time] float32: 1 up to the episode's last step, then 0
    outputs: Tensor  # [task, episode, time, out] float32, of the policy that acted


class PolicyTargets(NamedTuple):
    """The targets of a policy's loss: a `Batch` has observations for x and this for y."""

    action: Tensor  # [episode, time, act]; discrete: [episode, time]
    advantage: Tensor  # [episode, time], normalised
    mask: Tensor  # [episode, time]: 1 where the episode still runs
    old_output: Tensor  # [episode, time, out]: the output of the policy that acted
