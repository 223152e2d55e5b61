"""The meta-gradient as one writes it with torch.func: over all tasks at once, compiled, in a loop.

It is also the independent answer, in float64 on the CPU, that all others are held against. The
gradient is vmapped, and not the loss that is differentiated: torch (2.13) differentiates a vmap
over the gradient of a batch or layer norm with weights wrongly, by up to 4% at small shapes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from benchmarks.peer_cases import Case, Workload, module
from maml_dist.core.params import flatten

CHECKED = 2  # tasks whose summed meta-gradient is compared
Contender = tuple[str, Callable[[], Callable[[], Any]]]  # a name, and what prepares a call


class ByHand:
    """A case on a device, in a precision."""

    def __init__(self, case: Case, device: str, dtype: torch.dtype = torch.float32) -> None:
        self._workload = case.workload
        self._net = module(case.workload).to(device, dtype)
        for part in self._net.modules():  # normalise with the batch, keep nothing
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = part.running_var = part.num_batches_tracked = None
        self.meta = {
            name: torch.tensor(value, device=device, dtype=dtype)
            for name, value in case.meta.items()
        }
        given = (torch.from_numpy(values[0]) for values in (*case.support, *case.query))
        self.data = [
            t.to(device, dtype if t.is_floating_point() else t.dtype, copy=True) for t in given
        ]

    def query_loss(self, meta: dict[str, Tensor], *task: Tensor) -> Tensor:
        """The query loss of one task after its inner steps."""
        return _query_loss(self._net, self._workload, meta, task)

    def gradient(self, tasks: int) -> Tensor:
        """The summed meta-gradient [size] of the first few tasks."""
        return flatten(self.stacked(self.meta, *(values[:tasks] for values in self.data)))

    def stacked(self, meta: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
        """The summed meta-gradient of stacked tasks."""
        each = vmap(grad(self.query_loss), (None, 0, 0, 0, 0))(meta, *data)
        return {name: value.sum(0) for name, value in each.items()}


def exact(case: Case) -> Tensor:
    """The summed meta-gradient [size] of `CHECKED` tasks, in float64 on the CPU."""
    return ByHand(case, "cpu", torch.float64).gradient(CHECKED)


def apart(found: Tensor, expected: Tensor) -> float:
    """How far a gradient is from the exact one, relative to that."""
    return float((found.double().cpu() - expected).norm() / expected.norm())


def contenders(case: Case, device: str, *, small: bool) -> list[Contender]:
    """The ways to write it; `small`: what torch.compile traces is not made into other code."""
    own = ByHand(case, device)
    compiled = torch.compile(own.stacked, backend="eager" if small else "inductor")

    def loop() -> Tensor:
        tasks = zip(*own.data, strict=True)
        total: Tensor = sum(flatten(grad(own.query_loss)(own.meta, *task)) for task in tasks)
        return total

    return [
        ("torch.func vmap", lambda: lambda: own.stacked(own.meta, *own.data)),
        ("torch.func, a loop over tasks", lambda: loop),
        ("torch.func vmap, torch.compile", lambda: lambda: compiled(own.meta, *own.data)),
    ]


def _query_loss(
    net: nn.Module, workload: Workload, meta: dict[str, Tensor], task: tuple[Tensor, ...]
) -> Tensor:
    loss = functional.cross_entropy if workload.ways else functional.mse_loss
    sx, sy, qx, qy = task
    phi = meta
    for _ in range(workload.steps):
        slope = grad(lambda phi: loss(functional_call(net, phi, (sx,)), sy))(phi)
        if workload.first_order:
            slope = {name: value.detach() for name, value in slope.items()}
        phi = {name: phi[name] - workload.alpha * slope[name] for name in phi}
    return loss(functional_call(net, phi, (qx,)), qy)
