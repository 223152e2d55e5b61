"""Learner: a meta-learning algorithm, and the only inner loop.

    phi_0 = start(meta),   phi_{k+1} = step(phi_k, support_k),   phi = phi_K
    meta-gradient of one task = d sum_k w_k query_loss(phi_k) / d meta     (w: 1 for K, else 0;
                                                            arXiv 1703.03400, equation 1)

A learner's fields are its hyperparameters. It sees one task: no function here has a task axis.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import isfunction, signature
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from maml_dist.core.adaptation.inner_optimizers import Loss, State
from maml_dist.core.data.episode import Batch, Episode, all_keyed, keyed
from maml_dist.core.params import Params
from maml_dist.core.renamed import refuse_renamed
from maml_dist.core.validation import STEPS, check_range

# On-policy: candidates of stacked tasks, each value [task, …, *its shape], and the stage (steps
# made before) -> their losses [task, …], minus the mean returns.
Score = Callable[[Params, int], Tensor]


# How a learner's meta-gradient comes about: exactly, through the inner steps; from the adapted
# parameters alone; or from losses alone, without a derivative. With the methods that each needs.
Differentiation = Literal["backprop", "from_adapted", "zeroth_order"]
_NEEDS: dict[Differentiation, frozenset[str]] = {
    "backprop": frozenset(),
    "from_adapted": frozenset({"gradient_from_adapted"}),
    "zeroth_order": frozenset({"es_gradient", "zeroth_order_path"}),
}
_RENAMED = {
    "judged": "step_loss_weights",
    "at_end": "gradient_from_adapted",
    "keeps_steps": "per_step_statistics",
    "differentiates": "differentiation",
    "by_scores": "zeroth_order",
    "path_by_scores": "zeroth_order_path",
    "gradient_by_scores": "es_gradient",
}


class StepContext(NamedTuple):
    """What an inner step goes by, beside the parameters that it moves."""

    loss: Loss  # the inner loss of this task: (parameters, batch) -> a scalar
    meta: Params  # the meta-parameters
    batch: Batch  # the support set of this step
    k: Tensor  # steps made so far, an integer tensor: one trace serves all steps
    it: Tensor  # the meta-iteration, a scalar tensor (a number would be baked into a trace)


@dataclass(frozen=True)
class Learner(ABC):
    """A meta-learning algorithm: how parameters adapt, and how adapting is differentiated."""

    differentiation: ClassVar[Differentiation] = "backprop"  # how the meta-gradient comes about
    own_gradient: ClassVar[bool] = False  # whether `gradient` is overridden: taken in one graph

    steps: int = 1  # inner steps while meta-training

    def __init_subclass__(cls) -> None:
        """Refuse a class that overrides what it does not declare, or declares what it lacks.

        So is one that was written for 0.1.0.

        Raises:
            ValueError: in one line.
        """
        super().__init_subclass__()
        refuse_renamed(cls, _RENAMED)
        _check_step(cls)
        how = cls.differentiation
        if how not in _NEEDS:
            raise ValueError(
                f"{cls.__name__}.differentiation={how!r}: must be {' or '.join(_NEEDS)}"
            )
        for needing, names in _NEEDS.items():
            for name in sorted(names):
                own = getattr(cls, name) is not getattr(Learner, name)
                if own and how != needing:
                    raise ValueError(
                        f"{cls.__name__} overrides {name}: it must declare "
                        f"differentiation = {needing!r}"
                    )
                if how == needing and not own:
                    raise ValueError(f"{cls.__name__}.differentiation={how!r}: needs {name}")
        if cls.own_gradient != (cls.gradient is not Learner.gradient):
            raise ValueError(
                f"{cls.__name__}.own_gradient={cls.own_gradient}: must say whether the class "
                "overrides gradient"
            )

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
    def step(self, phi: Params, state: State, context: StepContext) -> tuple[Params, State]:
        """One inner update on `context.batch`: the rule in which algorithms differ.

        Args:
            phi: the parameters after `context.k` steps.
            state: the inner optimizer's state after `context.k` steps.
            context: what else the update goes by.
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
    ) -> tuple[Params, Tensor]:
        """Where `differentiation` is "from_adapted": the meta-gradient, and the query loss at phi.

        phi are the adapted parameters; the batches of `episode` have their random keys.
        """
        raise NotImplementedError

    @property
    def per_step_statistics(self) -> bool:
        """Whether running statistics are kept for each step, as rows 0 … K; else those of K."""
        return False

    @property
    def second_order(self) -> bool:
        """Whether second derivatives of the loss are taken."""
        return self.differentiation == "backprop" and not self.own_gradient and self.steps > 0

    @property
    def zeroth_order(self) -> bool:
        """Whether on-policy tasks are learned from the losses of candidates, not from episodes."""
        return self.differentiation == "zeroth_order"

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
            context = StepContext(loss, meta, keyed(batch, key, k), k, it)
            phi, state = self.step(phi, state, context)
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

    def start_weights(self, meta: Params, zero: Tensor) -> Params:
        """The model's parameters before the first step; `zero` is k, an integer tensor."""
        return self.weights(meta, self.start(meta)[0], zero)

    def loss_at(self, loss: Loss, meta: Params, phi: Params, batch: Batch, k: Tensor) -> Tensor:
        """A loss of the model after `k` steps, on a batch."""
        return loss(self.weights(meta, phi, k), batch)

    def gradient(
        self, loss: Loss, query_loss: Loss, meta: Params, episode: Episode, it: Tensor
    ) -> tuple[Params, dict[str, Tensor]]:
        """The meta-gradient of one task, all of it in one graph.

        Returns:
            The gradient, named and shaped as `meta`, and scalars: `loss/before` at phi_0 (on the
            support set, which phi_0 has not seen either) and `loss/after`, on the query set.
        """
        key, counts = episode.key, torch.arange(len(episode.support) + 1, device=it.device).unbind()
        # Here and not in the objective, where all that is computed passes through its transform.
        queries = [keyed(episode.query, key, k, query=True) for k in counts]

        def objective(meta: Params) -> tuple[Tensor, Tensor]:
            path = self.path(loss, meta, episode.support, it, key)
            shares = self.step_loss_weights(it)
            if shares is None:
                *_, phi = path
                after = self.loss_at(query_loss, meta, phi, queries[-1], counts[-1])
                return after, after
            losses = [
                self.loss_at(query_loss, meta, phi, query, k)
                for phi, query, k in zip(path, queries, counts, strict=True)
            ]
            return (torch.stack(losses) * shares).sum(), losses[-1]

        if self.differentiation == "from_adapted":
            *_, phi = self.path(loss, meta, episode.support, it, key)
            batches = all_keyed(episode, counts)
            gradient, after = self.gradient_from_adapted(loss, query_loss, meta, phi, batches, it)
        else:
            gradient, (_, after) = grad_and_value(objective, has_aux=True)(meta)
        unseen = keyed(episode.support[0], key, counts[0]) if episode.support else queries[0]
        before = loss(self.start_weights(meta, counts[0]), unseen)
        return gradient, {"loss/before": before, "loss/after": after}


def _check_step(cls: type[Learner]) -> None:
    """Raise ValueError where a class's `step` cannot be called as it is."""
    if not isfunction(cls.step):
        return
    takes = signature(cls.step)
    try:
        takes.bind("self", "phi", "state", "context")
    except TypeError:
        raise ValueError(
            f"{cls.__name__}.step{takes}: must be step(self, phi, state, context) since 0.2.0, "
            "where context has loss, meta, batch, k and it"
        ) from None
