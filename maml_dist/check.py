"""Try an experiment on a task of each split: what cannot work is said before it starts.

Refused, each in one line: data, model and loss that do not fit together; random numbers that
nothing seeds; a model that changes its buffers or its input; what has no second derivative, a wrong
one, or cannot be traced or vmapped (the line names settings that were tried and compute it).

A second derivative is compared with finite differences for custom autograd.Functions alone, where
the two must agree: of a whole model they need not (stopped gradients, straight-through ones).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from maml_dist.core.double_backward import wrong_second_derivative
from maml_dist.core.engine import Engine
from maml_dist.core.episode import Batch, Episode, keyed, map_tensors
from maml_dist.core.form import leaves
from maml_dist.core.learner import Learner
from maml_dist.core.meta_gradient import MetaGradient, task_bytes
from maml_dist.core.objective import Objective, broadcasting_refused
from maml_dist.core.params import Params, flatten, layout
from maml_dist.core.random import keys
from maml_dist.core.source import Adapt, TaskKey
from maml_dist.core.trajectories import Trajectories
from maml_dist.experiment import Experiment
from maml_dist.runtime.rollout_worker import RolloutWorker

TRACED_LIKE_EAGER = 1e-3  # relative; rounding moves float32 far less, a baked-in number far more
FAILURES = (RuntimeError, AttributeError, TypeError, KeyError, IndexError, ValueError)


def check(experiment: Experiment, meta: Params) -> None:
    """Draw a task of each split; put the training one through model, losses and meta-gradient.

    Raises:
        ValueError, OSError: the data is missing, or the experiment cannot be meta-learned.
    """
    source, model = experiment.task, experiment.model
    if experiment.outer.on_policy and not source.on_policy:
        raise ValueError(
            f"outer={type(experiment.outer).__name__}: needs the policies of rollouts, and "
            f"task={type(source).__name__} has none; use maml_dist.core.outer.Adam"
        )
    scored = source.on_policy and experiment.learner.by_scores
    if scored:
        _refuse_derivatives(experiment)
    if source.on_policy and experiment.engine.precision == "bfloat16":
        raise ValueError(
            "engine.precision=bfloat16: rollouts act in float32, so that the policies judged would "
            "not be those that acted; use float32, or float64"
        )
    for split in ("val", "test"):
        source.sample(TaskKey(experiment.seed, split, 0, 0))
    stacked = _episodes(experiment, max(1, experiment.learner.steps), 0)
    support, query, key = map_tensors(
        lambda tensor: tensor[0], (stacked.support[0], stacked.query, stacked.key)
    )
    _refuse_dropout_between(model)
    objective = _objective(experiment, experiment.engine)
    named = dict(model.named_parameters())
    start = experiment.learner.weights(
        meta, experiment.learner.start(meta)[0], torch.zeros((), dtype=torch.int64)
    )
    params = {name: start[name] for name in named if name in start}
    for name, batch in (("support", support), ("query", query)):
        if not (torch.is_tensor(batch.x) and (source.on_policy or torch.is_tensor(batch.y))):
            raise ValueError(f"x and y of the {name} set must each be one tensor")
        batch = keyed(batch, key, 0, query=name == "query")
        with _unchanged(model, params, batch), _Seeded():
            output = _output(objective, params, batch, name)
            judge = source.loss if name == "support" else source.query_loss
            loss = _loss(judge, output, batch)
        if not torch.is_tensor(loss) or loss.dim():
            raise ValueError(f"the loss of one task must be a scalar tensor, not {loss!r}")
    scores = stacked.scores if source.on_policy else source.score(output, query)
    if source.metric not in (scores or {}):
        raise ValueError(f"the task's score has no {source.metric!r}, which is its metric")
    if experiment.learner.second_order:
        _refuse_wrong_second_derivative(experiment.learner, objective, params, support)
    if not scored:
        _differentiate(experiment, meta)


def decide(experiment: Experiment, meta: Params, device: str) -> Engine:
    """The engine with every `auto` decided, by this experiment's model, learner and tasks."""

    def peak(engine: Engine) -> int:
        objective = Objective(experiment.model, experiment.task)
        episodes = _episodes(experiment, experiment.learner.steps, 0)
        return task_bytes(
            engine, experiment.learner, objective, flatten(meta), episodes, layout(meta)
        )

    return experiment.engine.resolve(
        experiment.model,
        experiment.learner,
        device,
        on_policy=experiment.task.on_policy,
        peak=None if experiment.task.on_policy and experiment.learner.by_scores else peak,
    )


def _refuse_derivatives(experiment: Experiment) -> None:
    """Of policies that a learner knows by their returns alone."""
    outer, kind = experiment.outer, type(experiment.learner).__name__
    if outer.on_policy:
        raise ValueError(
            f"outer={type(outer).__name__}: needs derivatives of the policies, and learner={kind} "
            "takes none; use maml_dist.core.outer.Adam"
        )
    if outer.epochs > 1:
        raise ValueError(
            f"outer.epochs={outer.epochs}: must be 1 with learner={kind}, which has no episodes to "
            "use again"
        )
    if experiment.task.penalty:
        raise ValueError(
            f"task.policy_gradient.penalty={experiment.task.penalty}: must be 0 with "
            f"learner={kind}, which takes no derivatives of the policies"
        )


def _output(objective: Objective, params: Params, batch: Batch, name: str) -> Tensor:
    try:
        output = objective.output(params, batch.x, key=batch.key)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"the model does not take the {name} set, x {list(batch.x.shape)}: {_line(error)}"
        ) from None
    if not torch.is_tensor(output):
        raise ValueError(f"the model must return one tensor, not {type(output).__name__}")
    return output


def _loss(judge: Any, output: Tensor, batch: Batch) -> Any:
    try:
        with broadcasting_refused():
            return judge(output, batch)
    except (RuntimeError, IndexError, UserWarning) as error:
        y = leaves(batch)[1]
        most = f" up to {int(y.max())}" if not y.is_floating_point() else ""
        raise ValueError(
            f"the loss does not take the model's output {list(output.shape)} with "
            f"y {list(y.shape)}{most}: {_line(error)}"
        ) from None


def _refuse_dropout_between(model: nn.Module) -> None:
    for name, part in model.named_modules():
        if isinstance(part, nn.RNNBase) and part.dropout > 0 and part.num_layers > 1:
            kind = type(part).__name__
            raise ValueError(
                f"{name or 'the model'} is nn.{kind}(dropout={part.dropout:g}), which draws random "
                f"numbers that the task does not seed: use single nn.{kind} layers with nn.Dropout "
                "between them, or dropout=0"
            )


def _refuse_wrong_second_derivative(
    learner: Learner, objective: Objective, params: Params, batch: Batch
) -> None:
    try:
        wrong = wrong_second_derivative(objective.loss, params, batch)
    except FAILURES:
        return  # said with the meta-gradient
    if wrong:
        without = "; first order does without: learner.first_order=true"
        raise ValueError(
            f"the second derivative of {wrong}, an autograd.Function, is not that of its backward: "
            "backward must be differentiable (no once_differentiable, no detach, nothing on ctx "
            f"but by save_for_backward){without if hasattr(learner, 'first_order') else ''}"
        )


class _Seeded(TorchDispatchMode):
    """Inside, drawing from torch's generators is an error."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"model or loss draw random numbers ({func}) that the task does not seed: call "
                "dropout as an nn module or as torch.nn.functional.dropout; draw what else there "
                "is with maml_dist.core.random from batch.key"
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def _unchanged(model: nn.Module, params: Params, batch: Batch) -> Iterator[None]:
    """Inside, a model that changes what must stay as it is raises a ValueError."""
    buffers = {f"its buffer {name}": value for name, value in model.named_buffers()}
    own: Params = {f"its parameter {name}": value for name, value in model.named_parameters()}
    given = {f"its parameter {name}": value for name, value in params.items()}
    data = {"its input": batch.x, "the targets": leaves(batch)[1]}
    groups: tuple[Params, ...] = (buffers, own, given, data)
    before = [
        (name, value, value.detach().clone()) for group in groups for name, value in group.items()
    ]
    yield
    after = {f"its buffer {name}": value for name, value in model.named_buffers()}
    for name, value, copy in before:
        same = (value == copy) | (value != value)  # not a number is like itself
        if not same.all() or after.get(name, value) is not value:
            advice = (
                "only the running statistics of batch norm are followed (track_running_stats=False "
                "elsewhere), all else must be computed from the input"
                if name in buffers
                else "work on a copy"
            )
            raise ValueError(f"the model changes {name} while it computes: {advice}")


def _differentiate(experiment: Experiment, meta: Params) -> None:
    """The meta-gradient: it must be there, be the same again, and the trace must follow it."""
    learner = experiment.learner
    on_policy = experiment.task.on_policy
    engine = experiment.engine.resolve(experiment.model, learner, "cpu", on_policy=on_policy)
    engine = replace(engine, chunk=None, budget=Engine.budget)  # of single tasks
    eager, traced = (replace(engine, running=running) for running in ("eager", "traced"))
    if on_policy:  # what an environment does wrong is said as it is
        _episodes(experiment, learner.steps, 1)
    # Traced at one task, replayed at another: what was baked in of the first shows.
    try:
        first, second = _gradients(experiment, meta, learner, eager, [0, 1])
        (again,) = _gradients(experiment, meta, learner, eager, [0])
        replayed = second
        if engine.running != "eager":
            _, replayed = _gradients(experiment, meta, learner, traced, [0, 1])
    except FAILURES as error:
        raise ValueError(
            "the meta-gradient of one task cannot be computed: "
            f"{_line(error)}{_way_out(experiment, meta, engine)}"
        ) from None
    if not torch.equal(first, again) and first.isfinite().all():
        raise ValueError(
            "the meta-gradient of one task differs when computed again: the model, the loss or the "
            "learner draws random numbers, which nothing seeds, or remembers what it computed"
        )
    off = (replayed - second).norm() / second.norm().clamp(min=1e-12)
    if off > TRACED_LIKE_EAGER:
        raise ValueError(
            f"the traced meta-gradient of a task differs from the eager one (by {off:.1%}): "
            "something is read as a Python number; engine.running=eager computes without a trace"
        )


def _way_out(experiment: Experiment, meta: Params, engine: Engine) -> str:
    """The settings with which it can be computed: they are tried."""
    task: dict[str, Any] = {"batching": "task"}
    eager: dict[str, Any] = {"running": "eager"}
    learners: list[dict[str, Any]] = [{}]
    if getattr(experiment.learner, "first_order", None) is False:
        learners.append({"first_order": True})
    base = engine if engine.running == "eager" else replace(engine, running="traced")
    for learned, run in product(learners, ({}, eager, task, task | eager)):
        said = [f"learner.{name}=true" for name in learned]
        said += [f"engine.{name}={value}" for name, value in run.items()]
        try:
            learner = replace(experiment.learner, **learned)
            _gradients(experiment, meta, learner, replace(base, **run), [0, 1])
        except FAILURES:
            continue
        return f"; {' '.join(said)} computes it"
    return ""


def _gradients(
    experiment: Experiment, meta: Params, learner: Learner, engine: Engine, tasks: list[int]
) -> list[Tensor]:
    """The meta-gradients of some tasks, one after the other, each at an iteration of its own."""
    gradient = MetaGradient(engine, learner, _objective(experiment, engine), into=layout(meta))
    return [
        gradient(
            flatten(meta), _episodes(experiment, learner.steps, task), torch.tensor(float(task))
        ).gradient
        for task in tasks
    ]


def _objective(experiment: Experiment, engine: Engine) -> Objective:
    return Objective(experiment.model, experiment.task, bfloat16=engine.precision == "bfloat16")


def _episodes(experiment: Experiment, steps: int, task: int) -> Episode:
    """One training task, stacked, in the engine's precision."""
    source, seed, dtype = experiment.task, experiment.seed, experiment.engine.dtype
    sampled = [source.sample(TaskKey(seed, "train", 0, task))]
    episodes = source.collect(sampled, steps=steps, adapt=_unadapted(experiment, sampled))
    episodes = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, episodes)
    return episodes._replace(key=keys(seed, "train", 0, [task]))


def _unadapted(experiment: Experiment, tasks: list[Any]) -> Adapt | None:
    """On-policy: what the untrained policy does, at every stage."""
    if not experiment.task.on_policy:
        return None
    worker = RolloutWorker(experiment.task, experiment.model)
    start = {name: p.detach()[None] for name, p in experiment.model.named_parameters()}

    def adapt(support: tuple[Batch, ...]) -> Trajectories:
        try:
            return worker.here(start, tasks, stage=len(support))
        except (RuntimeError, TypeError, IndexError) as error:
            seen = getattr(experiment.task, "observations", "these")
            raise ValueError(
                f"the policy cannot act on observations of {seen} numbers: {_line(error)}; "
                f"perhaps model.observations={seen}"
            ) from None

    return adapt


SAID = {  # what torch says, in words for this place
    "access data pointer": "model or loss hand a tensor to numpy, or to an operation of torch that "
    "reads its memory: compute with other operations of torch",
    "calling .item()": "model, loss or learner read a tensor as a number or decide by it, which "
    "vmap cannot follow: use torch.where",
    "custom_function_call": "a custom autograd.Function cannot be traced",
    "support saved tensor hooks": "torch.utils.checkpoint cannot be used; engine.memory=steps "
    "saves memory too",
}


def _line(error: Exception) -> str:
    """What an error says, in one line, not without end."""
    for part, words in SAID.items():
        if part in str(error):
            return words
    lines = (line.strip() for line in str(error).splitlines())
    line = next((line for line in lines if line), repr(error))
    return line if len(line) <= 200 else f"{line[:200]} …"
