"""ES-MAML (arXiv 1910.01215): losses are compared, never differentiated.

    phi_{k+1} = phi_k - alpha * ES(L_support, phi_k)
    meta      = meta - beta * ES(L_query(phi_K), meta)
    ES(F, w)  = 1 / (2 n sigma) * sum_i [F(w + sigma g_i) - F(w - sigma g_i)] g_i,   g_i ~ N(0, I)

ES estimates, unbiased, the gradient of E F(w + sigma g), which exists where that of F does not.
Hill climbing instead keeps the best of phi_k and phi_k ± sigma g_i.
On policies the losses are minus returns: every candidate lives its own episodes. Candidates of a
task share their random numbers, so that chance cancels in differences.
Legend: pair = antithetic pairs of candidates, size = elements of the flat centre, task.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import vmap

from maml_dist.core.adaptation.inner_optimizers import (
    SGD,
    InnerOptimizer,
    Loss,
    State,
    adapting,
    check_patterns,
)
from maml_dist.core.adaptation.learner import Learner, Score, StepContext
from maml_dist.core.data.episode import Batch, Episode, keyed
from maml_dist.core.params import Layout, Params, flatten, layout, unflatten
from maml_dist.core.random import fold, normal
from maml_dist.core.validation import check_choice, check_minimum, check_positive

_STREAM = 1 << 30  # of a key: apart from those of the batches and of dropout, which count from 0


@dataclass(frozen=True)
class ESMAML(Learner):
    """Evolution strategies, inside and outside.

    A task's perturbations come from its key: a shard draws those of its own tasks. All candidates
    of a meta-gradient adapt with the same inner perturbations, so that these cancel in differences.
    """

    differentiation = "zeroth_order"
    own_gradient = True

    alpha: float = 0.05  # inner rate; hill climbing has none
    sigma: float = 0.1  # of the meta-gradient's perturbations
    num_perturbations: int = 32  # pairs of candidates for the meta-gradient of a task
    adaptation: Literal["es", "hill-climb"] = "es"  # how a task is adapted to
    inner_sigma: float = 0.1  # of the adaptation's perturbations
    num_inner_perturbations: int = 8  # pairs of candidates an inner step
    inner: InnerOptimizer = SGD()  # how the inner estimate becomes a direction
    adapted: tuple[str, ...] = ("*",)  # patterns of the parameters that adapt; the rest stay
    chunk: int | None = None  # stored examples: candidates at once; null: all; 1: no vmap

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "learner", "alpha", "sigma", "inner_sigma")
        check_minimum(self, "learner", num_perturbations=1, num_inner_perturbations=1, chunk=1)
        check_choice(self, "learner", "adaptation")

    def init(self, params: Params) -> Params:
        """The parameters themselves, where each pattern of `adapted` matches one or more."""
        return check_patterns(self.adapted, params)

    def start(self, meta: Params) -> tuple[Params, State]:
        """The meta-parameters, and the inner optimizer's state for those that adapt."""
        climbs = self.adaptation == "hill-climb"
        return meta, () if climbs else self.inner.init(adapting(meta, self.adapted))

    def step(self, phi: Params, state: State, context: StepContext) -> tuple[Params, State]:
        """One step on the adapted parameters, by the losses of candidates around phi.

        Raises:
            ValueError: the batch has no random key.
        """
        loss, _, batch, k, _ = context

        def objective(inner: Params, batch: Batch) -> Tensor:
            return loss({**phi, **inner}, batch)

        centre = adapting(phi, self.adapted)
        offsets = _offsets(centre, batch.key, self.num_inner_perturbations, self.inner_sigma)
        losses = _losses(objective, centre, offsets, batch, chunk=self.chunk)
        if self.adaptation == "hill-climb":
            losses = torch.cat([losses, objective(centre, batch).unsqueeze(0)])
        return self._moved(phi, state, losses, offsets, k)

    def gradient(
        self, loss: Loss, query_loss: Loss, meta: Params, episode: Episode, it: Tensor
    ) -> tuple[Params, dict[str, Tensor]]:
        """The estimate of one task's meta-gradient.

        Returns:
            The estimate, named and shaped as `meta`, and scalars: `loss/before` at meta, on the
            support set, and `loss/after` at what meta itself adapts to, on the query set.

        Raises:
            ValueError: the episode has no random key.
        """
        support, key = episode.support, episode.key
        start, end = (torch.full((), k, device=it.device) for k in (0, len(support)))
        query = keyed(episode.query, key, end, query=True)

        def after(meta: Params, *batches: Batch) -> Tensor:
            *support, query = batches
            return query_loss(self.adapt(loss, meta, tuple(support), it, key), query)

        offsets = _offsets(meta, key, self.num_perturbations, self.sigma)
        losses = _losses(after, meta, offsets, *support, query, chunk=self.chunk)
        unseen = keyed(support[0], key, start) if support else query
        metrics = {"loss/before": loss(meta, unseen), "loss/after": after(meta, *support, query)}
        return _slope(losses, offsets, self.sigma, into=layout(meta)), metrics

    def zeroth_order_path(
        self, score: Score, phi: Params, key: Tensor, *, steps: int, done: int = 0
    ) -> Iterator[Params]:
        """As `path`, of many candidates: those of a task move by the same perturbations."""
        _, state = vmap(vmap(self.start))(phi)
        yield phi
        draw = partial(_offsets, pairs=self.num_inner_perturbations, sigma=self.inner_sigma)
        for number in range(done, done + steps):
            k = torch.full((), number, device=key.device)
            centre = adapting(phi, self.adapted)
            one = {name: value[0, 0] for name, value in centre.items()}
            offsets = vmap(draw, in_dims=(None, 0))(one, fold(key, 2 * number))  # as `keyed` does
            tried = [offsets, -offsets]
            if self.adaptation == "hill-climb":
                tried.append(torch.zeros_like(offsets[:, :1]))  # the centre
            around = torch.cat(tried, 1)
            same = {
                name: value.unsqueeze(2).expand(-1, -1, around.shape[1], *value.shape[2:])
                for name, value in phi.items()
            }
            moved = vmap(vmap(_around, in_dims=(0, None)))(centre, around)
            losses = score({**same, **moved}, number)
            move = vmap(vmap(partial(self._moved, k=k), in_dims=(0, 0, 0, None)))
            phi, state = move(phi, state, losses, offsets)
            yield phi

    def es_gradient(self, score: Score, meta: Params, key: Tensor) -> tuple[Params, list[Params]]:
        """As `gradient`, of stacked tasks; meta itself is the last of a task's candidates."""
        draw = partial(_offsets, meta, pairs=self.num_perturbations, sigma=self.sigma)
        offsets = vmap(draw)(key)
        around = torch.cat([offsets, -offsets, torch.zeros_like(offsets[:, :1])], 1)
        start = vmap(partial(_around, meta))(around)
        path = []
        for phi in self.zeroth_order_path(score, start, key, steps=self.steps):
            path.append({name: value[:, -1] for name, value in phi.items()})
        losses = score({name: value[:, :-1] for name, value in phi.items()}, self.steps)
        slope = partial(_slope, sigma=self.sigma, into=layout(meta))
        return vmap(slope)(losses, offsets), path

    def _moved(
        self, phi: Params, state: State, losses: Tensor, offsets: Tensor, k: Tensor
    ) -> tuple[Params, State]:
        """After one step by the losses [2 pair], and climbing by that of the centre, the last."""
        centre = adapting(phi, self.adapted)
        if self.adaptation == "hill-climb":
            return {**phi, **_best(losses[:-1], losses[-1], centre, offsets)}, state
        slope = _slope(losses, offsets, self.inner_sigma, into=layout(centre))
        direction, state = self.inner.direction(slope, state, k)
        moved = {name: phi[name] - self.alpha * along for name, along in direction.items()}
        return {**phi, **moved}, state


def _around(centre: Params, offsets: Tensor) -> Params:
    """The candidates at centre + offsets [candidate, size]: each value [candidate, …]."""
    candidates: Params = vmap(partial(unflatten, into=layout(centre)))(flatten(centre) + offsets)
    return candidates


def _offsets(centre: Params, key: Tensor | None, pairs: int, sigma: float) -> Tensor:
    """sigma * g_i [pair, size]."""
    if key is None:
        raise ValueError("ESMAML draws perturbations from a batch's key, and this one has none")
    flat = flatten(centre)
    return sigma * normal(fold(key, _STREAM), (pairs, len(flat)), dtype=flat.dtype)


def _losses(
    objective: Callable[..., Tensor],
    centre: Params,
    offsets: Tensor,
    *batches: Batch,
    chunk: int | None = None,
) -> Tensor:
    """The objective on `batches` at centre + offsets, then at centre - offsets: [2 pair]."""
    flat, into = flatten(centre), layout(centre)

    def at(offset: Tensor, *labels: Tensor) -> Tensor:
        labelled = (batch._replace(y=y) for batch, y in zip(batches, labels, strict=True))
        return objective(unflatten(flat + offset, into), *labelled)

    both = torch.cat([offsets, -offsets])
    # Labels of each candidate's own: torch 2.13 cannot vmap mse_loss twice over outputs alone.
    labels = [batch.y.expand(len(both), *batch.y.shape) for batch in batches]
    if chunk == 1:
        return torch.stack([at(*one) for one in zip(both, *labels, strict=True)])
    losses: Tensor = vmap(at, chunk_size=chunk)(both, *labels)
    return losses


def _slope(losses: Tensor, offsets: Tensor, sigma: float, *, into: Layout) -> Params:
    """ES: the estimate of the smoothed objective's gradient."""
    up, down = losses.chunk(2)
    return unflatten((up - down) @ offsets / (2 * len(offsets) * sigma**2), into)


def _best(losses: Tensor, at_centre: Tensor, centre: Params, offsets: Tensor) -> Params:
    """The candidate of the least loss; the centre, where none is better than it."""
    losses, at_centre = _diverged_last(losses), _diverged_last(at_centre)
    place = torch.arange(len(losses), device=losses.device)
    up, down = (place == losses.argmin()).to(offsets.dtype).chunk(2)
    offset = torch.where(losses.min() < at_centre, (up - down) @ offsets, 0)
    return unflatten(flatten(centre) + offset, layout(centre))


def _diverged_last(losses: Tensor) -> Tensor:
    """The losses, with infinity for what is not a number: no comparison finds that better."""
    return torch.where(losses.isnan(), torch.inf, losses)
