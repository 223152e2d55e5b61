"""Guards: while a model computes, it draws nothing that nothing seeds, and changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from maml_dist.core.episode import Batch
from maml_dist.core.form import leaves
from maml_dist.core.params import Params


class Seeded(TorchDispatchMode):
    """Inside, drawing from torch's generators raises a ValueError."""

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
