"""maml_dist: its engine alone, and the whole of it over Ray with a shard a core."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from ray import cloudpickle
from torch import Tensor
from torch.nn import functional

from benchmarks.peer_cases import BETA, Case, module
from benchmarks.peer_process import Contender, descendants
from maml_dist.config.experiment import Experiment
from maml_dist.core.data.episode import Batch, Episode, map_tensors, supervised
from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient
from maml_dist.core.model.objective import Objective
from maml_dist.core.outer.optimizers import Adam
from maml_dist.core.params import Params, flatten, layout
from maml_dist.core.random import keys
from maml_dist.learners.maml import MAML
from maml_dist.preflight.check import resolve_engine
from maml_dist.runtime.allocator import keep_freed
from maml_dist.runtime.backend import ResourceRequest
from maml_dist.runtime.messages import ShardSpec, Start
from maml_dist.runtime.ray_backend import RayBackend
from maml_dist.runtime.server import Saved
from maml_dist.training.loop import in_blocks
from maml_dist.training.recorder import IterationRefs

NEVER = 10**9  # meta-iterations


class Given(TaskSource):
    """The case's episodes as a task source: task `index` of meta-batch `it`."""

    def __init__(self, case: Case) -> None:
        self._data = [torch.from_numpy(values) for values in (*case.support, *case.query)]
        self._classifies = bool(case.workload.ways)

    def sample(self, key: TaskKey) -> tuple[int, int]:
        return key.it % len(self._data[0]), key.index

    def collect(
        self, tasks: Sequence[tuple[int, int]], *, steps: int, adapt: Adapt | None = None
    ) -> Episode:
        batch, task = torch.tensor(tasks).unbind(1)
        sx, sy, qx, qy = (values[batch, task] for values in self._data)
        return supervised(Batch(sx, sy), Batch(qx, qy), steps=steps)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        judge = functional.cross_entropy if self._classifies else functional.mse_loss
        return judge(output, batch.y)


def experiment(case: Case) -> Experiment:
    """The case as a recipe would give it, its initial weights in the model."""
    workload = case.workload
    model = module(workload)
    model.load_state_dict({name: torch.tensor(value) for name, value in case.meta.items()})
    learner = MAML(alpha=workload.alpha, steps=workload.steps, first_order=workload.first_order)
    return Experiment(
        Given(case),
        model,
        learner,
        Adam(beta=BETA),
        meta_batch=workload.tasks,
    )


class Ours(Contender):
    """The engine that `auto` chooses, and the outer update: nothing else.

    What it compiles is too small for more than one thread: the default of training with --local.
    """

    def __init__(self, case: Case, threads: int) -> None:
        super().__init__(case, threads)
        self._experiment = experiment(case)
        small = _engine(self._experiment).running == "compiled"
        torch.set_num_threads(1 if small else threads)
        self._model_meta = _meta(self._experiment)
        self._meta = flatten(self._model_meta)
        self._state = self._experiment.outer.init(self._meta)
        self._tasks = case.workload.tasks
        source, everyone = self._experiment.task, range(self._tasks)
        self._episodes = []
        for it in range(case.workload.batches):
            named = [source.sample(TaskKey(0, "train", it, index)) for index in everyone]
            episodes = source.collect(named, steps=case.workload.steps)
            self._episodes.append(episodes._replace(key=keys(0, "train", it, everyone)))
        self._gradient: MetaGradient | None = None
        self._it = 0

    def iterate(self, count: int) -> list[float]:
        return [self._iteration() for _ in range(count)]

    def moment(self) -> np.ndarray:
        return self._state["first"].numpy()

    def _iteration(self) -> float:
        if not self._it:
            keep_freed()  # as a shard does; not where memory is measured
        gradient, losses = self.summed(self._episodes[self.next_batch()])
        self._meta, self._state = self._experiment.outer.update(
            self._meta, gradient / self._tasks, self._state
        )
        self._it += 1
        return losses.mean().item()

    def summed(self, episodes: Episode) -> tuple[Tensor, Tensor]:
        """The engine's part: the summed meta-gradient [size], the query losses [task]."""
        if self._gradient is None:
            engine = resolve_engine(self._experiment, self._model_meta, "cpu")
            objective = Objective(self._experiment.model, self._experiment.task)
            self._gradient = MetaGradient(
                engine, self._experiment.learner, objective, into=layout(self._model_meta)
            )
        result = self._gradient(self._meta, episodes, torch.tensor(float(self._it)))
        return result.gradient, result.metrics["loss/after"]

    def one_task(self) -> None:
        """The meta-gradient of one task alone."""
        one = map_tensors(lambda values: values[:1], self._episodes[0])
        self.summed(one)


class OursOnRay(Contender):
    """Actors on a Ray of its own: one shard with one thread a core, driven as in training."""

    def __init__(self, case: Case, threads: int) -> None:
        super().__init__(case, threads)
        self._experiment = experiment(case)
        meta = _meta(self._experiment)
        self._place = RayBackend("local")
        self._place.__enter__()
        resources = self._place.resources(threads, ResourceRequest(1, 0), most=case.workload.tasks)
        engine = resolve_engine(self._experiment, meta, "cpu")
        work = ShardSpec(
            self._experiment.task,
            self._experiment.model,
            self._experiment.learner,
            engine,
            layout(meta),
            seed=0,
            meta_batch=case.workload.tasks,
            learned=len(flatten(meta)),
            slices=resources.shards,
        )
        cloudpickle.register_pickle_by_value(sys.modules[Given.__module__])  # not installed
        given = Start(work, flatten(meta).numpy(), self._experiment.outer)
        self._crew = self._place.start(given, resources)
        self._it = 0

    def iterate(self, count: int) -> list[float]:
        rows = self._crew.get(self._crew.block(count, keep=False).rows)
        self._it += count
        return [row["loss/after"] for row in rows]

    def pace(self, seconds: float) -> list[float]:
        """The training's own loop, never drained: the time from one reading to the next."""
        endless = replace(self._experiment, iterations=NEVER, checkpoint_every=NEVER)
        times: list[float] = []
        unread: list[IterationRefs] = []
        end, clock = time.perf_counter() + seconds, 0.0
        for count in in_blocks(endless, self._crew, unread, start=self._it, stop=lambda: False):
            reports, self._it = unread[:count], unread[-1].end
            self._crew.get([report.metrics for report in reports])
            del unread[:count]
            before, clock = clock, time.perf_counter()
            if before:  # not the first
                times.append((clock - before) / sum(each.end - each.start for each in reports))
            if times and clock > end:
                break
        self._state()  # comes after all that was submitted
        return times

    def moment(self) -> np.ndarray:
        return np.array(self._state()[2]["first"])

    def _state(self) -> Saved:
        return self._crew.get(self._crew.block(0, keep=True).saved)

    def processes(self) -> list[int]:
        return descendants("ray::")

    def close(self) -> None:
        self._crew.close()
        self._place.__exit__(None, None, None)


def _engine(experiment: Experiment) -> Engine:
    """The engine with all decided but the size of a chunk."""
    return experiment.engine.resolve(experiment.model, experiment.learner, "cpu")


def _meta(experiment: Experiment) -> Params:
    return {name: p.detach().clone() for name, p in experiment.model.named_parameters()}
