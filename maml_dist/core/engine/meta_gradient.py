"""The summed meta-gradient and the scores of a batch of stacked tasks.

Legend: task = stacked tasks, size = elements of the flat meta-parameters.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.compile.tracing import peak_bytes, trace
from maml_dist.core.data.episode import Episode
from maml_dist.core.engine.chunks import Chunks
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.episode_spec import EpisodeSpec, flatten_episode
from maml_dist.core.engine.gradient_sum import GradientSum, add_sums
from maml_dist.core.engine.step_checkpoints import most_held
from maml_dist.core.engine.task_functions import TaskFunctions
from maml_dist.core.model.objective import Mode, Objective
from maml_dist.core.params import Layout


class MetaGradient:
    """The summed meta-gradient of a batch of tasks: what one shard computes."""

    def __init__(
        self, engine: Engine, learner: Learner, objective: Objective, *, into: Layout
    ) -> None:
        self._engine = engine
        self._chunks = Chunks(engine)
        self._tasks = TaskFunctions(engine, learner, objective, into)
        self._functions: dict[EpisodeSpec, Callable[..., Callable[..., GradientSum]]] = {}

    def __call__(self, meta: Tensor, episodes: Episode, it: Tensor) -> GradientSum:
        """The sum over the stacked tasks of `episodes`, at meta [size]."""
        spec, tensors = flatten_episode(episodes)
        if spec not in self._functions:
            self._functions[spec] = self._function(spec)
        run = self._functions[spec](meta, it)
        return self._chunks.over(tensors, lambda parts: add_sums(run(*part) for part in parts))

    def _function(self, spec: EpisodeSpec) -> Callable[..., Callable[..., GradientSum]]:
        """(meta, it) -> (tensors of a part) -> its sum."""
        if self._engine.memory == "steps":
            return self._tasks.by_steps(spec)
        whole = self._engine.run(self._tasks.in_one_graph(spec))
        return lambda meta, it: partial(whole, meta, it)


class PathScores:
    """The scores of a batch of tasks after 0, 1, … adaptation steps: an evaluation."""

    def __init__(
        self,
        engine: Engine,
        learner: Learner,
        objective: Objective,
        *,
        into: Layout,
    ) -> None:
        self._chunks = Chunks(engine)
        self._tasks = TaskFunctions(engine, learner, objective, into)
        self._functions: dict[EpisodeSpec, Callable[..., dict[str, Tensor]]] = {}

    def __call__(
        self, meta: Tensor, episodes: Episode, it: Tensor, *, mode: Mode = "transductive"
    ) -> dict[str, Tensor]:
        """Each score of each task after each step [task, step]."""
        spec, tensors = flatten_episode(episodes)
        if spec not in self._functions:
            self._functions[spec] = self._tasks.scores(spec)
        scores = partial(self._functions[spec], meta, it, mode=mode)
        with torch.no_grad():
            parts = self._chunks.over(tensors, lambda parts: [scores(*part) for part in parts])
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def task_bytes(
    engine: Engine,
    learner: Learner,
    objective: Objective,
    meta: Tensor,
    episodes: Episode,
    into: Layout,
) -> int:
    """The most bytes that one task's meta-gradient holds at once, by its trace.

    Step by step, it is the trace of a single step, and the carries that are held.
    """
    carries = 0
    if engine.memory == "steps":
        steps = len(episodes.support)  # the statistics of every step are taken at its carry
        carries = (steps + 1 if learner.per_step_statistics else most_held(steps)) * meta.nbytes
        episodes = episodes._replace(support=episodes.support[:1])
        learner = replace(learner, steps=min(1, learner.steps))
    spec, tensors = flatten_episode(episodes)
    tasks = TaskFunctions(engine.singly, learner, objective, into)
    function = tasks.in_one_graph(spec)
    single = [tensor[0] for tensor in tensors]
    graph, _ = trace(function, [meta, torch.zeros((), device=meta.device), *single])
    return peak_bytes(graph.graph) + carries
