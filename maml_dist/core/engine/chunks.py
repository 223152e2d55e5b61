"""Chunks: how many stacked tasks are computed at once, by the memory that a device has free.

    at the start     chunk * share * free / budget      where less is free than the budget
    out of memory    half as many, until one is left

A chunk decides rounding, no more: results are sums over tasks, in their order.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from maml_dist.core.engine.engine import GIB, Engine

Result = TypeVar("Result")

SHARE = 0.8  # of what is free: an allocator's blocks do not fit without a gap

_said: set[str] = set()


class Chunks:
    """Takes stacked tasks in the engine's chunks, in smaller ones once they have not fitted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._begun = False

    def over(self, tensors: list[Tensor], work: Callable[[list[list[Tensor]]], Result]) -> Result:
        """What `work` makes of the parts of `tensors` [task, …]; begun again where it must be.

        Raises:
            torch.OutOfMemoryError: a single task does not fit.
        """
        if not self._begun:
            self._engine, self._begun = fitted(self._engine, tensors[0].device), True
        while True:
            parts = list(self._engine.parts(tensors))
            try:
                return work(parts)
            except torch.OutOfMemoryError:
                most = len(parts[0][0]) if self._engine.batching == "vmap" else 1
                if most == 1:
                    raise
            # Outside of the handler, whose exception holds on to all that was computed.
            del parts
            self._engine = replace(self._engine, chunk=most // 2)
            torch.cuda.empty_cache()
            _say(
                f"engine.chunk={most}: more than the GPU's free memory holds; goes on with "
                f"{most // 2}"
            )


def fitted(engine: Engine, device: torch.device) -> Engine:
    """The engine, its chunk smaller where `device` has less free than the budget it was made for.

    `engine` is resolved. On a CPU it stays as it is.
    """
    if device.type != "cuda" or engine.chunk is None:
        return engine
    free, budget = SHARE * free_bytes(device), engine.budget * GIB
    if free >= budget:
        return engine
    chunk = max(1, int(engine.chunk * free / budget))
    if chunk < engine.chunk:
        _say(
            f"engine.chunk={engine.chunk}: the GPU has {free / SHARE / GIB:.1f} GiB free, and "
            f"engine.budget is {engine.budget:g}; goes on with {chunk}"
        )
    return replace(engine, chunk=chunk)


def free_bytes(device: torch.device) -> int:
    """What can still be taken of a GPU's memory: unused by anyone, or held unused by torch here."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=3)
