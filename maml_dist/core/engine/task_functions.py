"""The meta-gradient of one task as functions of tensors, in one graph or step by step.

Step by step (the adjoint recurrence), with phi_{k+1} = Phi_k(phi_k):

    lambda_K = grad L_query(phi_K),     lambda_k = (d Phi_k / d phi_k)^T lambda_{k+1}

only carries (phi and the inner optimizer's state) are stored, of many steps a few
(`step_checkpoints`), one step at a time is computed again, and one trace serves all steps. It is
the same gradient to rounding.

Legend: task = stacked tasks, size = elements of the flat meta-parameters, carry = of phi and state;
a part is what the engine differentiates at once: stacked tasks, or a single one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils import _pytree as pytree

from maml_dist.core.adaptation.inner_optimizers import at_step
from maml_dist.core.adaptation.learner import Learner, StepContext
from maml_dist.core.data.episode import Batch, all_keyed
from maml_dist.core.engine.carry import Carry
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.episode_spec import EpisodeSpec, leaves, unflatten_episode
from maml_dist.core.engine.gradient_sum import GradientSum, sum_gradients
from maml_dist.core.engine.score_tracing import ScoreFunction
from maml_dist.core.engine.step_checkpoints import StepCheckpoints
from maml_dist.core.model.objective import Mode, Objective
from maml_dist.core.params import Layout, Params


class TaskFunctions:
    """The functions of one task, made functions of a part: stacked tasks, or a single one."""

    def __init__(
        self, engine: Engine, learner: Learner, objective: Objective, into: Layout
    ) -> None:
        self._engine = engine
        self._learner = learner
        self._objective = objective
        self._carry = Carry(learner, into, kept=tuple(objective.kept))

    def in_one_graph(self, spec: EpisodeSpec) -> Callable[..., GradientSum]:
        """(meta, it, *tensors of a part) -> its sum, all in one function."""
        learner, objective = self._learner, self._objective
        steps = spec.steps

        def one(vector: Tensor, it: Tensor, *tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            episode = unflatten_episode(spec, tensors)
            meta, kept = self._carry.split(vector)
            gradient, metrics = learner.gradient(
                objective.loss, objective.query_loss, meta, episode, it
            )
            if not kept:
                return self._carry.join(gradient, {}), metrics
            path = [*learner.path(objective.loss, meta, episode.support, it, episode.key)]
            counts = torch.arange(steps + 1, device=it.device).unbind()
            queries = (*leaves(episode.query), tensors[-1])
            rows = [
                self._statistics(
                    meta, kept, path[k], spec.keyed(queries, counts[k], query=True), counts[k]
                )
                for k in self._kept_steps(steps)
            ]
            return self._carry.join(gradient, self._rows(rows, axis=0)), metrics

        over = self._engine.over(one, shared=2)

        def part(vector: Tensor, it: Tensor, *tensors: Tensor) -> GradientSum:
            return sum_gradients(*self._stacked(over(vector, it, *tensors)))

        return part

    def by_steps(self, spec: EpisodeSpec) -> Callable[..., Callable[..., GradientSum]]:
        """(meta, it) -> (tensors of a part) -> its sum, step by step.

        What depends on `it` alone is made once for all parts: numbers for the loop over the steps
        are read from the device there, and nothing is waited for from part to part.
        """
        learner, objective, engine = self._learner, self._objective, self._engine
        steps, step = spec.steps, self.step(spec)
        through = learner.differentiation == "backprop"

        def start(vector: Tensor, it: Tensor, k: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
            meta, _ = self._carry.split(vector)
            seen = spec.keyed(batch, k, query=not steps)
            before = objective.loss(learner.start_weights(meta, k), seen)
            return self._carry.start(vector), before

        def pull(
            vector: Tensor, it: Tensor, k: Tensor, carry: Tensor, along: Tensor, *batch: Tensor
        ) -> tuple[Tensor, Tensor]:
            back = vjp(lambda v, c: step(v, it, k, c, *batch), vector, carry)[1]
            of_meta, of_carry = back(along)
            return of_meta, of_carry

        def query(
            vector: Tensor, it: Tensor, k: Tensor, carry: Tensor, *batch: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            def loss(vector: Tensor, carry: Tensor) -> Tensor:
                meta, _ = self._carry.split(vector)
                phi, seen = self._carry.tree(carry)[0], spec.keyed(batch, k, query=True)
                return learner.loss_at(objective.query_loss, meta, phi, seen, k)

            value, back, *_ = vjp(loss, vector, carry)
            of_meta, of_carry = back(torch.ones_like(value))
            return of_meta, of_carry, value

        def end(
            vector: Tensor, it: Tensor, k: Tensor, carry: Tensor, *tensors: Tensor
        ) -> tuple[Tensor, Tensor]:
            meta, _ = self._carry.split(vector)
            episode = unflatten_episode(spec, tensors)
            phi = self._carry.tree(carry)[0]
            counts = torch.arange(steps + 1, device=it.device).unbind()
            gradient, after = learner.gradient_from_adapted(
                objective.loss, objective.query_loss, meta, phi, all_keyed(episode, counts), it
            )
            return self._carry.join(gradient, {}), after

        def first(vector: Tensor, it: Tensor, along: Tensor) -> Tensor:
            of_meta: Tensor = vjp(self._carry.start, vector)[1](along)[0]
            return of_meta

        def statistics(
            vector: Tensor, it: Tensor, k: Tensor, carry: Tensor, *batch: Tensor
        ) -> Params:
            meta, kept = self._carry.split(vector)
            query = spec.keyed(batch, k, query=True)
            return self._statistics(meta, kept, self._carry.tree(carry)[0], query, k)

        of_k = (start, step, pull, query, end, statistics)
        over = {
            function.__name__: engine.run(engine.over(function, shared=shared))
            for function, shared in (*((function, 3) for function in of_k), (first, 2))
        }

        def part(
            vector: Tensor,
            it: Tensor,
            counts: tuple[Tensor, ...],
            shares: list[float],
            *tensors: Tensor,
        ) -> GradientSum:
            episode = unflatten_episode(spec, tensors)
            batches = [(*leaves(batch), tensors[-1]) for batch in episode.support]
            queries = (*leaves(episode.query), tensors[-1])
            carry, before = over["start"](vector, it, counts[0], *(batches or [queries])[0])
            checkpoints = StepCheckpoints(
                lambda k, carry: over["step"](vector, it, counts[k], carry, *batches[k]),
                carry,
                steps,
                back=through,
                kept=self._kept_steps(steps) if self._objective.kept else (),
            )
            del carry
            if not through:
                gradient, after = over["end"](vector, it, counts[-1], checkpoints[steps], *tensors)
            else:
                ended = checkpoints[steps]
                gradient, along, after = over["query"](vector, it, counts[-1], ended, *queries)
                gradient, along = shares[-1] * gradient, shares[-1] * along
                for number, batch in reversed([*enumerate(batches)]):
                    at = (vector, it, counts[number], checkpoints.pop(number))
                    of_meta, along = over["pull"](*at, along, *batch)
                    gradient = gradient + of_meta
                    if shares[number]:
                        of_meta, of_carry, _ = over["query"](*at, *queries)
                        gradient = gradient + shares[number] * of_meta
                        along = along + shares[number] * of_carry
                gradient = gradient + over["first"](vector, it, along)
            if self._objective.kept:
                axis = int(engine.batching == "vmap")
                rows = self._rows(
                    [
                        over["statistics"](vector, it, counts[k], checkpoints[k], *queries)
                        for k in self._kept_steps(steps)
                    ],
                    axis=axis,
                )
                new = torch.cat([row.reshape(*row.shape[:axis], -1) for row in rows.values()], -1)
                gradient = torch.cat([gradient[..., : -new.shape[-1]], new], -1)
            return sum_gradients(
                *self._stacked((gradient, {"loss/before": before, "loss/after": after}))
            )

        def at(vector: Tensor, it: Tensor) -> Callable[..., GradientSum]:
            self._carry.learn(vector)
            counts = torch.arange(steps + 1, device=it.device).unbind()
            shares = _shares(learner.step_loss_weights(it), steps) if through else []
            return partial(part, vector, it, counts, shares)

        return at

    def scores(self, spec: EpisodeSpec) -> Callable[..., dict[str, Tensor]]:
        """(meta, it, *tensors of a part, mode=) -> each score [task, step]."""
        learner, objective, engine = self._learner, self._objective, self._engine
        steps = spec.steps

        def start(vector: Tensor, it: Tensor, like: Tensor) -> Tensor:
            return self._carry.start(vector)

        def answer(
            mode: Mode, vector: Tensor, it: Tensor, k: Tensor, carry: Tensor, *tensors: Tensor
        ) -> Tensor:
            meta, kept = self._carry.split(vector)
            weights = learner.weights(meta, self._carry.tree(carry)[0], k)
            kept = self.kept_at(kept, k)
            return objective.answer(weights, unflatten_episode(spec, tensors), mode=mode, kept=kept)

        def score(output: Tensor, *tensors: Tensor) -> dict[str, Tensor]:
            return objective.score(output, unflatten_episode(spec, tensors).query)

        # Not compiled: an evaluation is rare, and bound by arithmetic.
        start_, step_ = (
            engine.run(engine.over(function, shared=shared), compiled=False)
            for function, shared in ((start, 2), (self.step(spec), 3))
        )
        answers: dict[Mode, Callable[..., Tensor]] = {
            mode: engine.run(engine.over(partial(answer, mode), shared=3), compiled=False)
            for mode in get_args(Mode)
        }
        score_ = ScoreFunction(engine, score)

        def part(vector: Tensor, it: Tensor, *tensors: Tensor, mode: Mode) -> dict[str, Tensor]:
            self._carry.learn(vector)
            episode = unflatten_episode(spec, tensors)
            carry = start_(vector, it, episode.key)
            results = []
            for k, count in enumerate(torch.arange(steps + 1, device=it.device).unbind()):
                output = answers[mode](vector, it, count, carry, *tensors)
                results.append(self._stacked((score_(output, *tensors),))[0])
                if k < steps:
                    batch = (*leaves(episode.support[k]), tensors[-1])
                    carry = step_(vector, it, count, carry, *batch)
            return {
                name: torch.stack([scores[name] for scores in results], -1) for name in results[0]
            }

        return part

    def step(self, spec: EpisodeSpec) -> Callable[..., Tensor]:
        """(meta, it, k, carry, *a support batch) -> the carry after one more step of a task."""

        def step(vector: Tensor, it: Tensor, k: Tensor, carry: Tensor, *batch: Tensor) -> Tensor:
            meta, _ = self._carry.split(vector)
            context = StepContext(self._objective.loss, meta, spec.keyed(batch, k), k, it)
            return self._carry.flat(*self._learner.step(*self._carry.tree(carry), context))

        return step

    def _statistics(
        self, meta: Params, kept: Params, phi: Params, query: Batch, k: Tensor
    ) -> Params:
        """The running statistics after `k` steps and the query set, which they follow."""
        weights = self._learner.weights(meta, phi, k)
        return self._objective.statistics(weights, self.kept_at(kept, k), query)

    def kept_at(self, kept: Params, k: Tensor) -> Params:
        """What is kept, after `k` steps."""
        if not self._learner.per_step_statistics:
            return kept
        return {name: at_step(rows, k) for name, rows in kept.items()}

    def _kept_steps(self, steps: int) -> range:
        return range(0 if self._learner.per_step_statistics else steps, steps + 1)

    def _rows(self, rows: list[Params], *, axis: int) -> Params:
        if not self._learner.per_step_statistics:
            return rows[-1]
        return {name: torch.stack([row[name] for row in rows], axis) for name in rows[0]}

    def _stacked(self, tree: Any) -> Any:
        """Results of a part with their task axis: a single task's get one."""
        if self._engine.batching == "vmap":
            return tree
        return pytree.tree_map(lambda value: value.unsqueeze(0), tree)


def _shares(weights: Tensor | None, steps: int) -> list[float]:
    return [0.0] * steps + [1.0] if weights is None else weights.tolist()
