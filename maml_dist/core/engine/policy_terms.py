"""What is asked of the adapted policies of a batch of tasks, beside the meta-gradient.

    policies     phi_K of each task, to act with
    objective    the outer loss and the KL divergence, at other meta-parameters than acted
    curvature    (d phi_K / d meta)^T F (d phi_K / d meta) v, F the Hessian of the KL
    kl_penalty_gradient  of the KL divergence of phi_0 from the policy that acted first

Legend: task = stacked tasks, size = elements of the flat meta-parameters.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import grad

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.compile.partial_eval import PartialEvaluator
from maml_dist.core.data.episode import Batch, Episode, all_keyed, keyed
from maml_dist.core.engine.chunks import Chunks
from maml_dist.core.engine.engine import GIB, Engine
from maml_dist.core.engine.episode_spec import EpisodeSpec, flatten_episode, unflatten_episode
from maml_dist.core.engine.kl_hvp import curvature
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import Layout, Params, flatten, unflatten

HELD = 2 * GIB  # that the products with the curvature may hold; the half-cheetah's take a tenth


class PolicyTerms:
    """The functions of one task, made functions of stacked tasks."""

    def __init__(
        self, engine: Engine, learner: Learner, objective: Objective, *, into: Layout
    ) -> None:
        self._engine = engine
        self._chunks = Chunks(engine)
        self._learner = learner
        self._objective = objective
        self._into = into
        self._functions: dict[tuple[str, EpisodeSpec], Callable[..., Params]] = {}
        self._products: dict[EpisodeSpec, PartialEvaluator] = {}

    def policies(self, meta: Tensor, support: tuple[Batch, ...], key: Tensor, it: Tensor) -> Params:
        """The model's parameters [task, …] after a step on each support batch."""
        if not support:
            params = unflatten(meta, self._into)
            zero = torch.zeros((), dtype=torch.int64, device=meta.device)
            start = self._learner.start_weights(params, zero)
            return {name: value.expand(len(key), *value.shape) for name, value in start.items()}

        def one(spec: EpisodeSpec, meta: Params, it: Tensor, *tensors: Tensor) -> Params:
            seen = unflatten_episode(spec, tensors)
            return self._learner.adapt(self._objective.loss, meta, seen.support, it, seen.key)

        return self._over(one, Episode(support, support[-1], key), meta, it)

    def objective(self, meta: Tensor, episodes: Episode, it: Tensor) -> Params:
        """`loss/after` and `kl` of each task [task], at meta [size]."""

        def one(spec: EpisodeSpec, meta: Params, it: Tensor, *tensors: Tensor) -> Params:
            phi, query = self._adapt(spec, meta, it, tensors)
            objective = self._objective
            loss, kl = objective.query_loss(phi, query), objective.kl(phi, query)
            return {"loss/after": loss, "kl": kl}

        return self._over(one, episodes, meta, it)

    def curvature(self, meta: Tensor, episodes: Episode, it: Tensor) -> Callable[[Tensor], Tensor]:
        """A vector [size] -> its product [size] with the curvature, summed over the tasks.

        What depends on no vector is computed here, and held up to `HELD` bytes.
        """
        spec, tensors = flatten_episode(episodes)

        def one(vector: Tensor, meta: Tensor, it: Tensor, *tensors: Tensor) -> Tensor:
            start = unflatten(meta, self._into)
            query = self._adapt(spec, start, it, tensors)[1]
            image = curvature(
                lambda meta: self._adapt(spec, meta, it, tensors)[0],
                lambda phi: self._objective.output(phi, query.x, key=query.key),
                lambda old, new: self._objective.kl_between(old, new, query),
                start,
                unflatten(vector, self._into),
            )
            return flatten({name: image[name] for name in self._into.names})

        if spec not in self._products:
            self._products[spec] = self._engine.partial_eval(self._engine.over(one, shared=3))

        def prepared(parts: list[list[Tensor]]) -> list[Callable[[Tensor], Tensor]]:
            products, room = [], HELD
            for part in parts:
                product, held = self._products[spec](meta, it, *part, like=meta, room=room)
                products.append(product)
                room -= held
            return products

        partials = self._chunks.over(tensors, prepared)

        def summed(vector: Tensor) -> Tensor:
            parts = [product(vector) for product in partials]
            if self._engine.batching == "vmap":
                return torch.cat(parts).sum(0)
            return torch.stack(parts).sum(0)

        return summed

    def kl_penalty_gradient(self, meta: Tensor, episodes: Episode, it: Tensor) -> Tensor:
        """The gradient [size] of the KL on what phi_0 lived through, summed over tasks."""

        def one(spec: EpisodeSpec, meta: Params, it: Tensor, *tensors: Tensor) -> Params:
            episode = unflatten_episode(spec, tensors)
            zero = torch.zeros((), dtype=torch.int64, device=it.device)
            first = episode.support[0] if episode.support else episode.query
            seen = keyed(first, episode.key, zero)

            def kl(meta: Params) -> Tensor:
                return self._objective.kl(self._learner.start_weights(meta, zero), seen)

            gradient = grad(kl)(meta)
            return {"gradient": flatten({name: gradient[name] for name in self._into.names})}

        return self._over(one, episodes, meta, it)["gradient"].sum(0)

    def _adapt(
        self, spec: EpisodeSpec, meta: Params, it: Tensor, tensors: tuple[Tensor, ...]
    ) -> tuple[Params, Batch]:
        episode = unflatten_episode(spec, tensors)
        phi = self._learner.adapt(self._objective.loss, meta, episode.support, it, episode.key)
        counts = torch.arange(spec.steps + 1, device=it.device).unbind()
        return phi, all_keyed(episode, counts).query

    def _over(
        self, one: Callable[..., Params], episodes: Episode, meta: Tensor, it: Tensor
    ) -> Params:
        """`one` over all tasks, at meta [size]."""
        spec, tensors = flatten_episode(episodes)
        name = one.__qualname__

        def flat(meta: Tensor, it: Tensor, *tensors: Tensor) -> Params:
            return one(spec, unflatten(meta, self._into), it, *tensors)

        if (name, spec) not in self._functions:
            function = self._engine.over(flat, shared=2)
            self._functions[name, spec] = self._engine.run(function)
        run = partial(self._functions[name, spec], meta, it)
        parts = self._chunks.over(tensors, lambda parts: [run(*part) for part in parts])
        join = torch.cat if self._engine.batching == "vmap" else torch.stack
        return {name: join([part[name] for part in parts]) for name in parts[0]}
