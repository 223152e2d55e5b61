"""Surrogates: losses whose gradients are policy gradients. Means over the steps that were lived.

Inner (their first gradients are equal, their second are not):
    log-likelihood   - mean log π(a|o) A                           (arXiv 1703.03400, equation 5)
    low-variance     - mean exp(log π - const) A                   (ProMP, arXiv 1810.06784)
    dice             - mean Σ_t (box(≤ t) - box(< t)) A_t           (Loaded DiCE, arXiv 1909.10549)
                       box(S) = exp(Σ_S log π - const)
Outer, with r = π(a|o) / π_before(a|o):
    ratio            - mean r A                                    (TRPO, arXiv 1502.05477)
    clipped          - mean min(r A, clip(r, 1 ± eps) A)           (PPO, arXiv 1707.06347)
Legend: episode, time.
"""

from typing import Literal

from torch import Tensor

from maml_dist.core.distribution import Distribution, detached_ratio, log_ratio, masked_mean
from maml_dist.core.trajectories import Acted

Inner = Literal["log-likelihood", "low-variance", "dice"]
Outer = Literal["ratio", "clipped"]


def inner(kind: Inner, distribution: Distribution, output: Tensor, acted: Acted) -> Tensor:
    """The inner loss of one task, a scalar, from outputs [episode, time, out]."""
    log_prob = distribution.log_prob(output, acted.action)
    if kind == "log-likelihood":
        return -masked_mean(log_prob * acted.advantage, acted.mask)
    if kind == "low-variance":
        return -masked_mean(detached_ratio(log_prob) * acted.advantage, acted.mask)
    so_far = (log_prob * acted.mask).cumsum(-1)
    box, box_before = detached_ratio(so_far), detached_ratio(so_far - log_prob * acted.mask)
    return -masked_mean((box - box_before) * acted.advantage, acted.mask)


def outer(
    kind: Outer, distribution: Distribution, output: Tensor, acted: Acted, *, eps: float
) -> Tensor:
    """The outer loss of one task, a scalar, from outputs [episode, time, out]."""
    # Where an episode has ended nothing was done: a ratio of one, so that nothing overflows.
    ratio = (log_ratio(distribution, output, acted.before, acted.action) * acted.mask).exp()
    gain = ratio * acted.advantage
    if kind == "clipped":
        gain = gain.minimum(ratio.clamp(1 - eps, 1 + eps) * acted.advantage)
    return -masked_mean(gain, acted.mask)
