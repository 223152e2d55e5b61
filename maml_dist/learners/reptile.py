"""Reptile (Nichol, Achiam, Schulman, arXiv 1803.02999), the batched version (algorithm 2).

    phi_{k+1} = phi_k - alpha * direction(grad L_{batch k}(phi_k)),     phi_0 = meta
    meta      = meta + beta * mean over tasks of (phi_K - meta)

So meta - phi_K takes the place of the meta-gradient: nothing is differentiated through the steps.
The outer optimizer is SGD, its beta the paper's epsilon, most often falling linearly to zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maml_dist.core.adaptation.inner_optimizers import (
    SGD,
    InnerOptimizer,
    Loss,
    State,
    at_step,
    support_gradient,
)
from maml_dist.core.adaptation.learner import Learner, StepContext
from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.params import Params
from maml_dist.core.random import choice
from maml_dist.core.validation import check_minimum, check_positive

_SEEDS = 1 << 24  # whole numbers below this are exact in float32


@dataclass(frozen=True)
class Reptile(Learner):
    """Inner steps on mini-batches; the initialisation moves towards where they end."""

    differentiation = "from_adapted"
    own_gradient = True

    steps: int = 5  # inner steps while meta-training
    alpha: float = 0.02  # inner rate
    inner: InnerOptimizer = SGD()  # how the inner gradient becomes a direction
    minibatch: int | None = None  # examples of an inner step; null, or more than there are: all
    pooled: bool = False  # while meta-training, learn from the query set as from the support set

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, "learner", steps=1, minibatch=1)
        check_positive(self, "learner", "alpha")

    def start(self, meta: Params) -> tuple[Params, State]:
        """The meta-parameters; the inner optimizer's state, and the seed [] of a pass over data."""
        seed = next(iter(meta.values())).new_zeros(())
        return meta, (self.inner.init(meta), seed)

    def step(self, phi: Params, state: State, context: StepContext) -> tuple[Params, State]:
        """One step with rate alpha, on the next mini-batch."""
        inner, seed = state
        batch, seed = self._next(context.batch, seed, context.k)
        gradient = support_gradient(context.loss, phi, batch, adapted=("*",))
        direction, inner = self.inner.direction(gradient, inner, context.k)
        moved = {name: phi[name] - self.alpha * along for name, along in direction.items()}
        return moved, (inner, seed)

    def gradient_from_adapted(
        self,
        loss: Loss,
        query_loss: Loss,
        meta: Params,
        phi: Params,
        episode: Episode,
        it: Tensor,
    ) -> tuple[Params, Tensor]:
        """meta - phi_K, and the query loss at phi_K (which has seen the queries if pooled)."""
        return {name: meta[name] - phi[name] for name in meta}, query_loss(phi, episode.query)

    def gradient(
        self, loss: Loss, query_loss: Loss, meta: Params, episode: Episode, it: Tensor
    ) -> tuple[Params, dict[str, Tensor]]:
        """As of any learner; if pooled, the support set is joined by the query set.

        Running statistics are not of here: they follow queries that were not learned from, which
        is what a prediction meets.
        """
        if self.pooled:
            both = zip(episode.support[0][:2], episode.query[:2], strict=True)
            x, y = (torch.cat(parts) for parts in both)
            joined = episode.query._replace(x=x, y=y)
            episode = episode._replace(support=(joined,) * len(episode.support))
        return super().gradient(loss, query_loss, meta, episode, it)

    def _next(self, batch: Batch, seed: Tensor, k: Tensor) -> tuple[Batch, Tensor]:
        """Mini-batch `k`: passes over the examples, each in an order of its own (a rest is left).

        A pass lasts for several steps, which have different keys: its seed, of the key of its
        first step, is carried on.
        """
        examples, size = len(batch.x), self.minibatch
        if size is None or size >= examples:
            return batch, seed
        if batch.key is None:
            raise ValueError(f"learner.minibatch={size}: the batch has no key to draw one with")
        count = examples // size
        place = k % count
        seed = torch.where(place == 0, (batch.key % _SEEDS).to(seed.dtype), seed)
        order = choice(seed.to(batch.key.dtype), examples, count * size)
        rows = at_step(order.reshape(count, size), place)
        x, y = (tensor.index_select(0, rows) for tensor in (batch.x, batch.y))
        return batch._replace(x=x, y=y), seed
