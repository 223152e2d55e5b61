"""What an experiment computes of single tasks, to be tried before it starts.

What the engine traces is compared with the same computed eagerly: traced with one task, replayed
with another of another iteration, where possible in float64. The trace is replayed as it is,
operation by operation, so that nothing but a value that it keeps of the first task can differ: not
a ReLU that rounding flips, on which a meta-gradient jumps.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from maml_dist.config.experiment import Experiment
from maml_dist.core.data.episode import Batch, Episode, map_tensors, thinned
from maml_dist.core.data.task_source import Adapt, TaskKey, keys_of
from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.engine.policy_terms import PolicyTerms
from maml_dist.core.model.objective import Objective, modes
from maml_dist.core.outer.trust_region import TrustRegion
from maml_dist.core.params import Params, flatten, layout, real_of, unflatten
from maml_dist.core.tables import NO_ID
from maml_dist.preflight.error_messages import FAILURES, in_words
from maml_dist.preflight.reduced import Reduced
from maml_dist.runtime.rollout_worker import RolloutWorker

ITERATIONS = (0, 1000)  # of the two tasks; apart, so that a schedule that is baked in shows
SAME = 1e-5  # relative; one operation after the other rounds alike, a baked-in number is far off

Found = dict[str, Tensor]  # name -> what is computed of one task


class Probe(NamedTuple):
    """An experiment, and two of its tasks."""

    experiment: Experiment
    meta: Params
    engine: Engine  # decided, for single tasks
    episodes: tuple[Episode, ...]  # each of one stacked task
    named: bool = False  # whether a row that no episode names raises

    @property
    def objective(self) -> Objective:
        """The experiment's losses."""
        return objective_of(self.experiment, self.engine, named=self.named)

    def tasks(self) -> Iterator[tuple[Episode, Tensor]]:
        """Each task, in the engine's precision, and its iteration."""
        for episode, it in zip(self.episodes, ITERATIONS, strict=True):
            yield map_tensors(self._cast, episode), torch.tensor(float(it))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.engine.dtype) if tensor.is_floating_point() else tensor

    def run_as(self, running: str) -> "Probe":
        """The same, run in another way."""
        if running == "eager":
            return self._replace(engine=replace(self.engine, running="eager"))
        engine = asdict(self.engine) | {"running": "traced"}
        return self._replace(engine=_Unarranged(**engine))


Terms = Callable[[Probe], Iterable[Found]]  # -> what is computed of each of the two tasks


class _Unarranged(Engine):
    """Traces are replayed as they are."""

    arranges: ClassVar[bool] = False


def probe_of(experiment: Experiment, meta: Params, device: str) -> Probe:
    """Two tasks of training, and the engine as it is to run on `device`."""
    learner, on_policy = experiment.learner, experiment.task.on_policy
    engine = experiment.engine.resolve(experiment.model, learner, device, on_policy=on_policy)
    engine = replace(engine, chunk=None, budget=Engine.budget)  # of single tasks
    steps = learner.steps
    episodes = tuple(
        one_task(experiment, steps, number, it=it) for number, it in enumerate(ITERATIONS)
    )
    return Probe(experiment, meta, engine, episodes)


def validated(probe: Probe) -> Probe:
    """The same with two tasks of the validation."""
    experiment = probe.experiment
    steps = min(experiment.test_steps, experiment.learner.steps + 1)  # beyond those that it holds
    episodes = tuple(
        one_task(experiment, max(1, steps), number, split="val")
        for number in range(len(ITERATIONS))
    )
    return probe._replace(episodes=episodes)


def gradients(probe: Probe) -> Iterator[Found]:
    """The meta-gradient, and the losses before and after adapting."""
    learner, into = probe.experiment.learner, layout(probe.meta)
    gradient = MetaGradient(probe.engine, learner, probe.objective, into=into)
    for episode, it in probe.tasks():
        found = gradient(flatten(probe.meta), episode, it)
        yield {"meta-gradient": found.gradient, **found.metrics}


def scores(probe: Probe) -> Iterator[Found]:
    """The scores of every mode after each step, as a validation takes them."""
    experiment, into = probe.experiment, layout(probe.meta)
    paths = PathScores(probe.engine, experiment.learner, probe.objective, into=into)
    for episode, it in probe.tasks():
        yield {
            f"{name} ({mode})": values
            for mode in modes(experiment.model) or ("transductive",)
            for name, values in paths(flatten(probe.meta), episode, it, mode=mode).items()
        }


def refuse_untouched(probe: Probe) -> None:
    """Raise ValueError where rows that a task does not touch have a gradient of it."""
    experiment, into = probe.experiment, layout(probe.meta)
    if not isinstance(experiment, Reduced):
        return
    rows = probe.episodes[0].query.rows
    assert rows is not None
    empty = {table.name: rows[table.name][0] == NO_ID for table in experiment.tables}
    filled = {
        name: torch.where(at.unsqueeze(-1), 1 + probe.meta[name].abs(), probe.meta[name])
        for name, at in empty.items()  # what is zero may have no gradient there
    }
    probe = probe._replace(meta={**probe.meta, **filled})
    found = unflatten(first_of(probe, gradients)["meta-gradient"], into)
    for table in experiment.tables:
        assert empty[table.name].any()
        if found[table.name][empty[table.name]].any():
            raise ValueError(
                f"sparse={table.name!r}: rows that a task does not touch have a gradient of it, by "
                f"learner={type(experiment.learner).__name__}: leave it out of sparse"
            )


def refuse_unnamed(probe: Probe, terms: Terms) -> None:
    """Raise ValueError where they look rows up that no episode names."""
    if isinstance(probe.experiment, Reduced):
        engine = replace(probe.engine.singly, running="eager")
        list(terms(probe._replace(engine=engine, named=True)))


def policy_terms(probe: Probe) -> Iterator[Found]:
    """On-policy: what is asked of the adapted policies beside the meta-gradient."""
    experiment, meta = probe.experiment, flatten(probe.meta)
    adapted = PolicyTerms(
        probe.engine, experiment.learner, probe.objective, into=layout(probe.meta)
    )
    for whole, it in probe.tasks():
        few = 1.5 / experiment.task.episodes if hasattr(experiment.task, "episodes") else 1.0
        episode = thinned(whole, few, few)
        terms: Found = {}
        assert episode.key is not None
        if episode.support:
            policies = adapted.policies(meta, episode.support, episode.key, it)
            terms["adapted policy"] = flatten(policies)
        if experiment.multi_round:
            terms |= adapted.objective(meta, episode, it)
        if isinstance(experiment.outer, TrustRegion):
            along = torch.linspace(-1, 1, len(meta), dtype=meta.dtype)
            terms["curvature"] = adapted.curvature(meta, episode, it)(along)
        if experiment.task.penalty:
            terms["penalty's gradient"] = adapted.kl_penalty_gradient(meta, episode, it)
        yield terms


def first_of(probe: Probe, terms: Terms) -> Found:
    """What is computed of the first task, eagerly."""
    return next(iter(terms(probe.run_as("eager"))))


def trace_deviation(probe: Probe, terms: Terms) -> tuple[str, float] | None:
    """What the trace of the first task computes of the second otherwise, and how far off it is."""
    if probe.engine.running == "eager":
        list(terms(probe))  # the second too must be there
        return None
    try:
        with _wide(probe) as wide:
            found = [[*terms(wide.run_as(running))][1] for running in ("eager", "traced")]
    except FAILURES:  # what computes in float32 alone
        if probe.engine.precision == "bfloat16":  # whose rounding alone moves a gradient far
            probe = probe._replace(engine=replace(probe.engine, precision="float32"))
        found = [[*terms(probe.run_as(running))][1] for running in ("eager", "traced")]
    return first_apart(*found)


def first_apart(expected: Found, found: Found, *, most: float = SAME) -> tuple[str, float] | None:
    """The first that is further off than `most`, and how far, relative to what is expected."""
    for name, value in expected.items():
        if not value.is_floating_point():  # a count, a truth
            value = value.double()
        other = found[name].to(value.dtype)
        finite = value.isfinite() & other.isfinite()
        alike = (value == other) | (value != value) & (other != other)
        off = torch.where(finite, value - other, 0).norm()
        off = off / torch.where(finite, value, 0).norm().clamp(min=1e-12)
        if off > most or not (finite | alike).all():
            return name, float(off) if (finite | alike).all() else float("inf")
    return None


@contextmanager
def _wide(probe: Probe) -> Iterator[Probe]:
    """Inside, all of it in float64; afterwards the model holds what it held before."""
    model = probe.experiment.model
    params = [(param, param.data) for param in model.parameters()]
    buffers = [
        (part, name, value) for part in model.modules() for name, value in part._buffers.items()
    ]
    meta = {
        name: value.double() if value.is_floating_point() else value
        for name, value in probe.meta.items()
    }
    try:
        model.double()
        yield probe._replace(meta=meta, engine=replace(probe.engine, precision="float64"))
    finally:
        for param, data in params:
            param.data = data
        for part, name, value in buffers:
            part._buffers[name] = value


def objective_of(experiment: Experiment, engine: Engine, *, named: bool = False) -> Objective:
    """The experiment's losses, in the engine's precision; perhaps of `named` rows alone."""
    tables = experiment.tables if isinstance(experiment, Reduced) else ()
    bfloat16 = engine.precision == "bfloat16"
    model, task = experiment.model, experiment.task
    return Objective(model, task, bfloat16=bfloat16, tables=tables, named=named)


def one_task(
    experiment: Experiment, steps: int, task: int, *, it: int = 0, split: str = "train"
) -> Episode:
    """One task, stacked, in the engine's precision; what it raises is the data's."""
    dtype = experiment.engine.dtype
    named = [TaskKey(experiment.seed, split, it, task)]
    episodes = collected(experiment, named, steps=steps)
    episodes = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, episodes)
    return episodes._replace(key=keys_of(named))


def collected(experiment: Experiment, named: list[TaskKey], *, steps: int) -> Episode:
    """The episodes of these tasks, as the source gives them; on-policy of the untrained policy.

    Raises:
        ValueError, OSError: the source's; what else it raises is told with its name.
    """
    source = experiment.task
    try:
        tasks = [source.sample(key) for key in named]
        return source.collect(tasks, steps=steps, adapt=_unadapted(experiment, tasks))
    except ValueError:
        raise
    except FAILURES as error:
        kind = type(source).__name__
        raise ValueError(f"task={kind}: no tasks can be drawn: {in_words(error)}") from error


def _unadapted(experiment: Experiment, tasks: list[Any]) -> Adapt | None:
    """On-policy: what the untrained policy does, at every stage."""
    if not experiment.task.on_policy:
        return None
    worker = RolloutWorker(experiment.task, experiment.model)
    start = {
        name: real_of(p.detach()).expand(len(tasks), *real_of(p).shape)
        for name, p in experiment.model.named_parameters()
    }

    def adapt(support: tuple[Batch, ...]) -> Trajectories:
        try:
            return worker.here(start, tasks, stage=len(support))
        except (RuntimeError, TypeError, IndexError) as error:
            seen = getattr(experiment.task, "obs_dim", "these")
            raise ValueError(
                f"the policy cannot act on observations of {seen} numbers: {in_words(error)}; "
                f"perhaps model.obs_dim={seen}"
            ) from None

    return adapt
