"""Learner: a meta-learning algorithm, and the only inner loop.

    phi_0 = start(meta),   phi_{k+1} = step(phi_k, support_k),   phi = phi_K
    meta-gradient of one task = d query_loss(phi) / d meta        (arXiv 1703.03400, equation 1)

A learner's fields are its hyperparameters. It sees one task: no function here has a task axis.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.func import grad_and_value

from maml_dist.core.episode import Batch, Episode
from maml_dist.core.params import Params

Loss = Callable[[Params, Batch], Tensor]  # scalar loss of one task
State = Any  # what an inner rule carries from step to step (momentum, moments): a tree of tensors


@dataclass(frozen=True)
class Learner(ABC):
    """A meta-learning algorithm: how parameters adapt, and how adapting is differentiated."""

    steps: int = 1  # inner steps while meta-training

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"learner.steps={self.steps}: must be 0 or more")

    def init(self, params: Params) -> Params:
        """The meta-parameters at the start, from the model's parameters.

        Raises:
            ValueError: the hyperparameters do not fit these parameters.
        """
        return params

    def start(self, meta: Params) -> tuple[Params, State]:
        """phi_0 and the inner rule's state before the first step."""
        return meta, ()

    @abstractmethod
    def step(
        self, loss: Loss, meta: Params, phi: Params, state: State, batch: Batch, k: int, it: Tensor
    ) -> tuple[Params, State]:
        """One inner update on `batch`: the rule in which algorithms differ.

        Args:
            loss: the inner loss of this task.
            meta: the meta-parameters.
            phi: the parameters after `k` steps.
            state: the inner rule's state after `k` steps.
            batch: the support set of this step.
            k: steps made so far.
            it: the meta-iteration, a scalar tensor (a number would be baked into a trace).
        """

    def path(
        self, loss: Loss, meta: Params, support: tuple[Batch, ...], it: Tensor
    ) -> Iterator[Params]:
        """The inner loop: phi_0, phi_1, … phi_K, one step for each support batch."""
        phi, state = self.start(meta)
        yield phi
        for k, batch in enumerate(support):
            phi, state = self.step(loss, meta, phi, state, batch, k, it)
            yield phi

    def adapt(self, loss: Loss, meta: Params, support: tuple[Batch, ...], it: Tensor) -> Params:
        """The parameters after the last inner step."""
        for phi in self.path(loss, meta, support, it):
            adapted = phi
        return adapted

    def gradient(
        self, loss: Loss, query_loss: Loss, meta: Params, episode: Episode, it: Tensor
    ) -> tuple[Params, dict[str, Tensor]]:
        """The meta-gradient of one task, exactly, through all inner steps.

        Returns:
            The gradient, named and shaped as `meta`, and scalars: `loss/before` at phi_0 (on the
            support set, which phi_0 has not seen either) and `loss/after`, on the query set.
        """

        def objective(meta: Params) -> Tensor:
            return query_loss(self.adapt(loss, meta, episode.support, it), episode.query)

        gradient, after = grad_and_value(objective)(meta)
        unseen = episode.support[0] if episode.support else episode.query
        return gradient, {"loss/before": loss(self.start(meta)[0], unseen), "loss/after": after}
