"""Purity: while a model computes, it draws nothing that nothing seeds, and changes nothing.

A task source gives the same task for the same key, whatever the global generators hold.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from maml_dist.config.experiment import Experiment
from maml_dist.core.data.episode import Batch, Episode, map_tensors
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.engine.episode_spec import leaves
from maml_dist.core.params import Params
from maml_dist.core.process_lock import EXCLUSIVE
from maml_dist.preflight.gradient_check import collected

Result = TypeVar("Result")


class Unseeded(ValueError):
    """Random numbers are drawn that nothing seeds."""


class Seeded(TorchDispatchMode):
    """Inside, drawing from torch's generators raises Unseeded."""

    def __init__(
        self,
        drawing: str = "model or loss draw random numbers",
        advice: str = "call dropout as an nn module or as torch.nn.functional.dropout; draw what "
        "else there is with maml_dist.core.random from batch.key",
    ) -> None:
        """`drawing`: who draws; `advice`: what to do instead."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._drawing = drawing
        self._advice = advice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unseeded(f"{self._drawing} ({func}) that the task does not seed: {self._advice}")
        return func(*args, **(kwargs or {}))


@contextmanager
def unchanged(model: nn.Module, params: Params, batch: Batch) -> Iterator[None]:
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
    for name, value, copy in before:
        same = (value == copy) | (value != value)  # not a number is like itself
        if not same.all():
            advice = (
                "only the running statistics of batch norm are followed (track_running_stats=False "
                "elsewhere), all else must be computed from the input, or its part "
                "be held in evaluation by the model's own train()"
                if name in buffers
                else "work on a copy"
            )
            raise ValueError(f"the model changes {name} while it computes: {advice}")


def twice(compute: Callable[[], Result]) -> tuple[Result, Result]:
    """What it gives, with the global generators in two states; afterwards they are as before."""
    with EXCLUSIVE:
        before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
        results = []
        try:
            for seed in (1, 2):
                random.seed(seed)
                np.random.seed(seed)
                torch.default_generator.manual_seed(seed)
                results.append(compute())
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.random.set_rng_state(before[2])
    return results[0], results[1]


def refuse_impure(experiment: Experiment) -> None:
    """Draw some tasks of every split, twice: they must be a pure function of their keys.

    Raises:
        ValueError, OSError: they are not, or the data is missing.
    """
    source, seed, steps = experiment.task, experiment.seed, max(1, experiment.learner.steps)
    kind = type(source).__name__
    held_out = {split: [TaskKey(seed, split, 0, 0)] for split in ("val", "test")}
    training = [TaskKey(seed, "train", 0, 0), TaskKey(seed, "train", 0, 1)]
    for named in (training, [TaskKey(seed, "train", 1, 0)], *held_out.values()):
        if source.on_policy and named is not training:  # lived through once is enough
            source.sample(named[0])
            continue
        one, two = twice(partial(collected, experiment, named, steps=steps))
        if not _alike(one, two):
            raise ValueError(
                f"task={kind} gives another task for the same key (split {named[0].split}): it "
                "draws from a global generator or remembers what it gave; draw all of it from "
                "key.rng(), or with maml_dist.core.random from keys_of([key])"
            )
    if not source.on_policy:  # whose policies round otherwise in another batch
        many, single = (
            collected(experiment, some, steps=steps) for some in (training, training[1:])
        )
        if not _alike(map_tensors(lambda tensor: tensor[1:], many), single, most=1e-4):
            raise ValueError(
                f"task={kind}.collect gives another task where it is collected with others: each "
                "must be a function of its own key alone"
            )


def _alike(one: Episode, two: Episode, *, most: float = 0.0) -> bool:
    """Whether all tensors are equal, or nearly."""
    tensors = (
        [leaf for leaf in pytree.tree_leaves(each) if isinstance(leaf, Tensor)]
        for each in (one, two)
    )
    return all(
        a.shape == b.shape
        and torch.allclose(a.double(), b.double(), rtol=most, atol=most, equal_nan=True)
        for a, b in zip(*tensors, strict=True)
    )
