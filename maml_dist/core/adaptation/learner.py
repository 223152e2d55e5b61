"""Learner: a meta-learning algorithm, and the only inner loop.

    phi_0 = start(meta),   phi_{k+1} = step(phi_k, support_k),   phi = phi_K
    meta-gradient of one task = d sum_k w_k query_loss(phi_k) / d meta     (w: 1 for K, else 0;
                                                            arXiv 1703.03400, equation 1)

A learner's fields are its hyperparameters. It sees one task: no function here has a task axis.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value

from maml_dist.core.adaptation.inner_optimizers import Loss, State
from maml_dist.core.data.episode import Batch, Episode, all_keyed, keyed
from maml_dist.core.params import Params
from maml_dist.core.validation import STEPS, check_range

# On-policy: candidates of stacked tasks, each value [task, …, *its shape], and the stage (steps
# made before) -> their losses [task, …], minus the mean returns.
Score = Callable[[Params, int], Tensor]


@dataclass(frozen=True)
class Learner(ABC):
    """A meta-learning algorithm: how parameters adapt, and how adapting is differentiated."""

    steps: int = 1  # inner steps while meta-training

    def __post_init__(self) -> None:
        check_range(self, "learner", steps=(0, STEPS))

    def init(self, params: Params) -> Params:
        """The meta-parameters at the start: the model's parameters, and what else is learned.

        Raises:
            ValueError: the hyperparameters do not fit these parameters.
        """
        return params

    def start(self, meta: Params) -> tuple[Params, State]:
        """phi_0 and the inner optimizer's state before the first step."""
        return meta, ()

    @abstractmethod
    def step(
        self,
        loss: Loss,
        meta: Params,
        phi: Params,
        state: State,
        batch: Batch,
        k: Tensor,
        it: Tensor,
    ) -> tuple[Params, State]:
        """One inner update on `batch`: the rule in which algorithms differ.

        Args:
            loss: the inner loss of this task.
            meta: the meta-parameters.
            phi: the parameters after `k` steps.
            state: the inner optimizer's state after `k` steps.
            batch: the support set of this step.
            k: steps made so far, an integer tensor: one trace serves all steps.
            it: the meta-iteration, a scalar tensor (a number would be baked into a trace).
        """

    def weights(self, meta: Params, phi: Params, k: Tensor) -> Params:
        """The model's parameters after `k` steps: phi itself unless overridden."""
        return phi

    def step_loss_weights(self, it: Tensor) -> Tensor | None:
        """The weights [steps + 1] of the query losses after 0 … K steps; None: the last alone."""
        return None

    def gradient_from_adapted(
        self,
        loss: Loss,
        query_loss: Loss,
        meta: Params,
        phi: Params,
        episode: Episode,
        it: Tensor,
    ) -> tuple[Params, Tensor] | None:
        """The meta-gradient from the adapted parameters alone, and the query loss there.

        The batches of `episode` have their random keys.
        None, unless overridden: the meta-gradient is taken exactly, through all inner steps.
        """
        return None

    @property
    def per_step_statistics(self) -> bool:
        """Whether running statistics are kept for each step, as rows 0 … K; else those of K."""
        return False

    @property
    def backprops_through_steps(self) -> bool:
        """Whether the meta-gradient goes through the inner steps."""
        return type(self).gradient_from_adapted is Learner.gradient_from_adapted

    @property
    def second_order(self) -> bool:
        """Whether second derivatives of the loss are taken."""
        own = type(self).gradient is not Learner.gradient
        return self.backprops_through_steps and not own and self.steps > 0

    @property
    def zeroth_order(self) -> bool:
        """Whether on-policy tasks are learned from the losses of candidates, not from episodes."""
        return type(self).es_gradient is not Learner.es_gradient

    def zeroth_order_path(
        self, score: Score, phi: Params, key: Tensor, *, steps: int, done: int = 0
    ) -> Iterator[Params]:
        """The inner loop of many candidates: phi_0 … phi_K, each value [task, candidate, …].

        Args:
            score: gives the losses of candidates.
            phi: where each candidate starts.
            key: the random key of each task [task]; its candidates share what is drawn.
            steps: inner steps K to make.
            done: how many were made before.
        """
        raise NotImplementedError

    def es_gradient(self, score: Score, meta: Params, key: Tensor) -> tuple[Params, list[Params]]:
        """The meta-gradient of each of stacked tasks, each value [task, …], from losses alone.

        Returns:
            The gradients, and what meta itself adapts to: phi_0 … phi_K, each value [task, …].
        """
        raise NotImplementedError

    def path(
        self,
        loss: Loss,
        meta: Params,
        support: tuple[Batch, ...],
        it: Tensor,
        key: Tensor | None = None,
    ) -> Iterator[Params]:
        """The inner loop: phi_0, phi_1, … phi_K, one step for each support batch."""
        phi, state = self.start(meta)
        yield phi
        for number, batch in enumerate(support):
            k = torch.full((), number, dtype=torch.int64, device=it.device)
            phi, state = self.step(loss, meta, phi, state, keyed(batch, key, k), k, it)
            yield phi

    def adapt(
        self,
        loss: Loss,
        meta: Params,
        support: tuple[Batch, ...],
        it: Tensor,
        key: Tensor | None = None,
    ) -> Params:
        """The model's parameters after the last inner step."""
        for phi in self.path(loss, meta, support, it, key):
            adapted = phi
        return self.weights(meta, adapted, torch.full((), len(support), device=it.device))

    def gradient(
        self, loss: Loss, query_loss: Loss, meta: Params, episode: Episode, it: Tensor
    ) -> tuple[Params, dict[str, Tensor]]:
        """The meta-gradient of one task, all of it in one graph.

        Returns:
            The gradient, named and shaped as `meta`, and scalars: `loss/before` at phi_0 (on the
            support set, which phi_0 has not seen either) and `loss/after`, on the query set.
        """
        counts = torch.arange(len(episode.support) + 1, device=it.device).unbind()
        queries = [keyed(episode.query, episode.key, k, query=True) for k in counts]

        def objective(meta: Params) -> tuple[Tensor, Tensor]:
            path = self.path(loss, meta, episode.support, it, episode.key)
            shares = self.step_loss_weights(it)
            if shares is None:
                *_, phi = path
                after = query_loss(self.weights(meta, phi, counts[-1]), queries[-1])
                return after, after
            losses = [
                query_loss(self.weights(meta, phi, k), query)
                for phi, k, query in zip(path, counts, queries, strict=True)
            ]
            return (torch.stack(losses) * shares).sum(), losses[-1]

        if self.backprops_through_steps:
            gradient, (_, after) = grad_and_value(objective, has_aux=True)(meta)
        else:
            *_, phi = self.path(loss, meta, episode.support, it, episode.key)
            ended = self.gradient_from_adapted(
                loss, query_loss, meta, phi, all_keyed(episode, counts), it
            )
            assert ended is not None
            gradient, after = ended
        unseen = (
            keyed(episode.support[0], episode.key, counts[0]) if episode.support else queries[0]
        )
        before = loss(self.weights(meta, self.start(meta)[0], counts[0]), unseen)
        return gradient, {"loss/before": before, "loss/after": after}
