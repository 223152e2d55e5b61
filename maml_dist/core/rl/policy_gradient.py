"""Policy gradient: what trajectories become as the data of a loss, and that loss.

    loss        the inner surrogate on the batch that the policy itself collected
    query loss  the outer surrogate at the adapted policy
    kl          the mean KL divergence from the policy that acted

Legend: task, episode, time, obs, out.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from maml_dist.core.data.episode import Batch
from maml_dist.core.data.trajectories import PolicyTargets, Trajectories
from maml_dist.core.rl import surrogate
from maml_dist.core.rl.advantage import advantages
from maml_dist.core.rl.baseline import Baseline, Linear
from maml_dist.core.rl.distribution import Distribution
from maml_dist.core.validation import check_minimum, check_range, check_share

INNER: dict[str, surrogate.Surrogate] = {
    "log-likelihood": surrogate.log_likelihood,
    "low-variance": surrogate.low_variance,
    "dice": surrogate.dice,
    "ratio": surrogate.ratio,
}


@dataclass(frozen=True)
class PolicyGradient:
    """How trajectories are credited and what is made of it."""

    gamma: float = 0.99  # discount a control step
    gae_lambda: float = 1.0  # lambda of generalised advantages; 1: returns minus the baseline
    baseline: Baseline = field(default_factory=Linear)  # fitted to each task and stage
    inner_surrogate: Literal["log-likelihood", "low-variance", "dice", "ratio"] = (
        "log-likelihood"  # of the inner steps
    )
    outer_surrogate: Literal["ratio", "clipped"] = "ratio"  # of the meta-gradient
    clip: float = 0.3  # of the clipped surrogate: the ratio stays within 1 ± this
    penalty: float = 0.0  # weight of the unadapted policy's KL (ProMP: 0.0005)

    def __post_init__(self) -> None:
        check_range(self, "task.policy_gradient", gamma=(0, 1), gae_lambda=(0, 1))
        check_share(self, "task.policy_gradient", "clip")
        check_minimum(self, "task.policy_gradient", penalty=0)

    def compute_advantages(
        self, rolled: Trajectories, distribution: Distribution
    ) -> tuple[Batch, dict[str, Tensor]]:
        """The batch of each task's policy gradient, and scores [task] to report.

        Returns:
            x [task, episode, time, obs] and y `PolicyTargets`; the mean undiscounted `return` of
            an episode, the `steps` lived, the mean `entropy`, the `explained` share of variance;
            and the means of the episodes' own scores.
        """
        advantage, explained = advantages(
            rolled, baseline=self.baseline, gamma=self.gamma, lam=self.gae_lambda
        )
        y = PolicyTargets(rolled.actions, advantage, rolled.mask, rolled.outputs)
        entropy = distribution.entropy(rolled.outputs)
        lived = rolled.mask.sum((1, 2))
        scores = {
            "return": rolled.rewards.sum(2).mean(1),
            "steps": lived,
            "entropy": (entropy * rolled.mask).sum((1, 2)) / lived,
            "explained": explained,
        }
        scores |= {name: each.mean(1) for name, each in (rolled.scores or {}).items()}
        return Batch(rolled.observations, y), scores

    def loss(self, distribution: Distribution, output: Tensor, acted: PolicyTargets) -> Tensor:
        """The inner loss of one task, from outputs [episode, time, out]."""
        return INNER[self.inner_surrogate](distribution, output, acted)

    def query_loss(
        self, distribution: Distribution, output: Tensor, acted: PolicyTargets
    ) -> Tensor:
        """The outer loss of one task."""
        if self.outer_surrogate == "clipped":
            return surrogate.clipped(distribution, output, acted, eps=self.clip)
        return surrogate.ratio(distribution, output, acted)

    def kl(self, distribution: Distribution, output: Tensor, acted: PolicyTargets) -> Tensor:
        """The mean KL divergence of one task's policy from the one that acted."""
        apart = distribution.kl(acted.old_output, output)
        return (apart * acted.mask).sum() / acted.mask.sum()


def stacked(scores: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The scores of all stages, [task, stage]; `steps` are counted from the first on."""
    found = {name: torch.stack([stage[name] for stage in scores], -1) for name in scores[0]}
    return found | {"steps": found["steps"].cumsum(-1)}
