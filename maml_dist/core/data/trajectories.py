"""Trajectories: what policies saw, did and earned; and the data of a policy gradient made of them.

Legend: task = stacked tasks, episode, time = control steps, obs, act, out = of the policy's output.
Code that sees one task sees no task axis.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree


class Trajectories(NamedTuple):
    """Episodes of a fixed horizon; after an episode's end all is masked and counts nowhere."""

    observations: Tensor  # [task, episode, time, obs] float32, before the action
    actions: Tensor  # [task, episode, time, act] float32, of several discrete choices int64; of
    # one [task, episode, time] int64
    rewards: Tensor  # [task, episode, time] float32
    mask: Tensor  # [task, episode, time] float32: 1 up to the episode's last step, then 0
    outputs: Tensor  # [task, episode, time, out] float32, of the policy that acted
    scores: dict[str, Tensor] | None = None  # of each episode, beside its rewards: [task, episode]


def joined(parts: Sequence[Trajectories], concatenate: Callable[[list[Any]], Any]) -> Trajectories:
    """The trajectories of several batches of tasks as those of one."""
    whole: Trajectories = pytree.tree_map(
        lambda *each: None if each[0] is None else concatenate([*each]), *parts
    )
    return whole


class PolicyTargets(NamedTuple):
    """The targets of a policy's loss: a `Batch` has observations for x and this for y."""

    action: Tensor  # [episode, time, act]; one discrete choice: [episode, time]
    advantage: Tensor  # [episode, time], normalised
    mask: Tensor  # [episode, time]: 1 where the episode still runs
    old_output: Tensor  # [episode, time, out]: the output of the policy that acted
