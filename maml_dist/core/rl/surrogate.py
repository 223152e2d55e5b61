"""Losses whose gradients are policy gradients; N = the unmasked steps of one task.

    log_likelihood   -1/N sum log pi_t A_t                       (REINFORCE; the paper's inner loss)
    low_variance     -1/N sum box(log pi_t) A_t                   (ProMP, arXiv 1810.06784)
    dice             -1/N sum (box(c_t) - box(c_{t-1})) A_t       (arXiv 1802.05098, 1909.10549)
    ratio            -1/N sum pi_t / before_t A_t                 (TRPO, arXiv 1502.05477)
    clipped          the same, with ratios beyond 1 ± eps worth no more      (PPO, arXiv 1707.06347)

box(x) = exp(x - stopgrad(x)) is 1; c_t = log pi_0 + … + log pi_t of an episode. The first three
have one gradient. They differ in the second, which the meta-gradient takes: the credit that early
actions have in what was sampled is lost to the first, kept step by step in the second, kept whole
(unbiased, but of larger variance) in the third. At the policy that acted `ratio` is low_variance
with all its derivatives; elsewhere (TRPO's line search, ProMP's later epochs) it alone still weighs
what was sampled, where the boxes are 1 and the inner gradient is the first's.
Each takes one task: output [episode, time, out].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from maml_dist.core.data.trajectories import PolicyTargets
from maml_dist.core.rl.distribution import Distribution

Surrogate = Callable[[Distribution, Tensor, PolicyTargets], Tensor]  # a scalar to be made small


def log_likelihood(distribution: Distribution, output: Tensor, acted: PolicyTargets) -> Tensor:
    """The policy gradient's plain loss."""
    return -_mean(distribution.log_prob(output, acted.action) * acted.advantage, acted.mask)


def low_variance(distribution: Distribution, output: Tensor, acted: PolicyTargets) -> Tensor:
    """The low-variance curvature estimator; its value is -mean(A)."""
    log_prob = distribution.log_prob(output, acted.action)
    return -_mean(_box(log_prob) * acted.advantage, acted.mask)


def dice(distribution: Distribution, output: Tensor, acted: PolicyTargets) -> Tensor:
    """Loaded DiCE with lambda 1; its value is 0."""
    log_prob = distribution.log_prob(output, acted.action) * acted.mask
    until = log_prob.cumsum(-1)
    step = _box(until) - _box(until - log_prob)
    return -_mean(step * acted.advantage, acted.mask)


def ratio(distribution: Distribution, output: Tensor, acted: PolicyTargets) -> Tensor:
    """The advantages that the new policy would meet, by importance sampling."""
    return -_mean(_ratio(distribution, output, acted) * acted.advantage, acted.mask)


def clipped(
    distribution: Distribution, output: Tensor, acted: PolicyTargets, *, eps: float = 0.3
) -> Tensor:
    """PPO's pessimistic bound on `ratio`: nothing is gained beyond 1 ± eps (ProMP's: 0.3)."""
    free = _ratio(distribution, output, acted)
    least = torch.minimum(free * acted.advantage, free.clamp(1 - eps, 1 + eps) * acted.advantage)
    return -_mean(least, acted.mask)


def _ratio(distribution: Distribution, output: Tensor, acted: PolicyTargets) -> Tensor:
    """pi / before of each action."""
    before = distribution.log_prob(acted.old_output, acted.action)
    return (distribution.log_prob(output, acted.action) - before).exp()


def _box(x: Tensor) -> Tensor:
    """1, with the derivatives of exp."""
    return (x - x.detach()).exp()


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum()
