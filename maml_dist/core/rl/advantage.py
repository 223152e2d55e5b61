"""How much better an action was than expected: what a policy gradient weighs its score with.

    R_t = r_t + gamma R_{t+1}                                             returns-to-go
    d_t = r_t + gamma V_{t+1} - V_t,   A_t = d_t + gamma lambda A_{t+1}   GAE, arXiv 1506.02438

After an episode's end all is zero. So is the value after the horizon's last step: an episode that
is cut there is not continued by its estimate, as in the released code. Legend: episode, time.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.rl.baseline import Baseline


def returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Discounted returns-to-go [..., time] of rewards [..., time]; 0 where masked."""
    return _discounted(torch.where(mask > 0, rewards, 0), gamma)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantages [..., time] of rewards and values [..., time]; 0 where masked.

    With `lam` 1, the returns-to-go less the values.
    """
    rewards, values = (torch.where(mask > 0, x, 0) for x in (rewards, values))
    surprise = rewards + gamma * pad(values[..., 1:], (0, 1)) - values
    return _discounted(surprise, gamma * lam)


def normalised(advantages: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over one task's unmasked steps [episode, time]; 0 elsewhere.

    Where all are equal, all become 0: 1e-8 is added to the deviation.
    """
    mean, variance = _moments(advantages, mask)
    return torch.where(mask > 0, (advantages - mean) / (variance.sqrt() + 1e-8), 0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over one task's unmasked steps, a scalar.

    1 is a perfect baseline, 0 one as good as a constant; also 0 where all returns are equal.
    """
    rest, whole = _moments(returns - values, mask)[1], _moments(returns, mask)[1]
    return torch.where(whole > 0, 1 - rest / torch.where(whole > 0, whole, 1), 0)


def advantages(
    trajectories: Trajectories, *, baseline: Baseline, gamma: float, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The normalised advantages [task, episode, time] and the baselines' explained variance [task].

    The baseline is fitted to each task's own returns, which it then predicts (as in the released
    code). Here the task axis is seen: task by task, so that the numbers of a task are the same to
    the bit whatever other tasks it is stacked with.
    """
    made, explained = [], []
    for observations, rewards, mask in zip(
        trajectories.observations, trajectories.rewards, trajectories.mask, strict=True
    ):
        earned = returns(rewards, mask, gamma=gamma)
        values = baseline.values(observations, earned, mask)
        made.append(normalised(gae(rewards, values, mask, gamma=gamma, lam=lam), mask))
        explained.append(explained_variance(values, earned, mask))
    return torch.stack(made), torch.stack(explained)


def _discounted(x: Tensor, rate: float) -> Tensor:
    """The sum over k of rate^k x_{t+k} [..., time], by doubling: log2(time) operations."""
    reach = 1
    while reach < x.shape[-1]:
        x = x + rate**reach * pad(x[..., reach:], (0, reach))
        reach *= 2
    return x


def _moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variance over the unmasked steps, scalars."""
    count = mask.sum()
    mean = torch.where(mask > 0, x, 0).sum() / count
    off = torch.where(mask > 0, x - mean, 0)
    return mean, (off * off).sum() / count
