"""The PyTorch peers: a loop written by hand, learn2learn, higher and TorchOpt.

Each task's query loss is differentiated on its own, so that no more than one graph is held.
"""

import importlib
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from benchmarks.peer_cases import BETA, Case, Workload, module
from benchmarks.peer_process import Contender


class TorchPeer(Contender):
    """torch.optim.Adam outside; how a task is adapted to, and judged, is the peer's own."""

    def __init__(self, case: Case, threads: int) -> None:
        super().__init__(case, threads)
        torch.set_num_threads(threads)
        self.workload = case.workload
        self.loss = functional.cross_entropy if case.workload.ways else functional.mse_loss
        self.model = module(case.workload)
        self.model.load_state_dict({n: torch.tensor(value) for n, value in case.meta.items()})
        self.params = list(self.model.parameters())
        self._outer = torch.optim.Adam(self.params, lr=BETA)
        self._data = [torch.from_numpy(values) for values in (*case.support, *case.query)]

    @abstractmethod
    def query_loss(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        """The query loss of one task after adaptation, with its graph."""

    def iterate(self, count: int) -> list[float]:
        return [self._iteration() for _ in range(count)]

    def moment(self) -> np.ndarray:
        moments = [self._outer.state[p]["exp_avg"].reshape(-1) for p in self.params]
        return torch.cat(moments).numpy()

    def _iteration(self) -> float:
        self._outer.zero_grad()
        total = self.backward(self.next_batch())
        self._outer.step()
        return total

    def backward(self, batch: int, tasks: int | None = None) -> float:
        """Add the meta-gradient of a meta-batch (or its first tasks) up; the mean query loss."""
        total = 0.0
        for episode in self._episodes(batch, tasks or self.workload.tasks):
            loss = self.query_loss(*episode) / self.workload.tasks
            loss.backward()
            total += loss.item()
        return total

    def _episodes(self, batch: int, tasks: int) -> Iterator[tuple[Tensor, ...]]:
        for task in range(tasks):
            yield tuple(values[batch, task] for values in self._data)


class ByHand(TorchPeer):
    """The loop that one writes: the network as a function of a list of parameters."""

    def __init__(self, case: Case, threads: int) -> None:
        super().__init__(case, threads)
        self._net = _conv4(case.workload) if case.workload.ways else _mlp

    def query_loss(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        phi, first_order = self.params, self.workload.first_order
        for _ in range(self.workload.steps):
            inner = self.loss(self._net(phi, sx), sy)
            gradient = torch.autograd.grad(inner, phi, create_graph=not first_order)
            phi = [p - self.workload.alpha * g for p, g in zip(phi, gradient, strict=True)]
        return self.loss(self._net(phi, qx), qy)

    def flops(self) -> int:
        """The floating-point operations of a meta-iteration's products and convolutions."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.backward(0, tasks=1)
        return counter.get_total_flops() * self.workload.tasks

    def product_speed(self, seconds: float, size: int = 2048) -> float:
        """FLOP/s of a large float32 matrix product, the best of several: the machine's peak."""
        a, b = torch.rand(2, size, size)
        best, end = float("inf"), time.perf_counter() + seconds
        while (clock := time.perf_counter()) < end:
            _ = a @ b
            best = min(best, time.perf_counter() - clock)
        return 2 * size**3 / best

    def one_task(self) -> None:
        self._outer.zero_grad()
        self.backward(0, tasks=1)


class Learn2Learn(TorchPeer):
    """learn2learn.algorithms.MAML."""

    def __init__(self, case: Case, threads: int) -> None:
        super().__init__(case, threads)
        maml = _learn2learn()
        self._maml = maml(self.model, lr=case.workload.alpha, first_order=case.workload.first_order)

    def query_loss(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        learner = self._maml.clone()
        for _ in range(self.workload.steps):
            learner.adapt(self.loss(learner(sx), sy))
        return self.loss(learner(qx), qy)


class Higher(TorchPeer):
    """higher.innerloop_ctx; first order through its grad_callback."""

    def query_loss(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        import higher

        callback = _constant if self.workload.first_order else None
        inner = torch.optim.SGD(self.params, lr=self.workload.alpha)
        with higher.innerloop_ctx(self.model, inner, copy_initial_weights=False) as (phi, step):
            for _ in range(self.workload.steps):
                step.step(self.loss(phi(sx), sy), grad_callback=callback)
            return self.loss(phi(qx), qy)


class TorchOpt(TorchPeer):
    """torchopt.sgd, its functional form: MetaSGD has no first order, and was not faster."""

    def query_loss(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        import torchopt

        def loss(phi: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
            return self.loss(functional_call(self.model, dict(zip(names, phi, strict=True)), x), y)

        names = [name for name, _ in self.model.named_parameters()]
        rule = torchopt.sgd(lr=self.workload.alpha)
        phi = tuple(self.params)
        state = rule.init(phi)
        for _ in range(self.workload.steps):
            second_order = not self.workload.first_order
            gradient = torch.autograd.grad(loss(phi, sx, sy), phi, create_graph=second_order)
            updates, state = rule.update(gradient, state, inplace=False)
            phi = torchopt.apply_updates(phi, updates, inplace=False)
        return loss(phi, qx, qy)


def _mlp(phi: list[Tensor], x: Tensor) -> Tensor:
    for layer in range(0, len(phi) - 2, 2):
        x = functional.linear(x, phi[layer], phi[layer + 1]).relu()
    return functional.linear(x, phi[-2], phi[-1])


def _conv4(workload: Workload) -> Callable[[list[Tensor], Tensor], Tensor]:
    def net(phi: list[Tensor], x: Tensor) -> Tensor:
        for layer in range(4):
            kernel, scale, shift = phi[3 * layer : 3 * layer + 3]
            x = functional.conv2d(x, kernel, stride=1 if workload.pooled else 2, padding=1)
            x = functional.batch_norm(x, None, None, scale, shift, training=True).relu()
            x = functional.max_pool2d(x, 2) if workload.pooled else x
        x = x.flatten(1) if workload.pooled else x.mean((2, 3))
        return functional.linear(x, phi[-2], phi[-1])

    return net


def _constant(gradient: Any) -> Any:
    return [g.detach() for g in gradient]


def _learn2learn() -> Any:
    """Its MAML class, without what its package imports besides (gym, torchvision, data sets)."""
    for name in ("learn2learn", "learn2learn.algorithms"):
        spec = find_spec(name)
        assert spec is not None
        bare = ModuleType(name)
        bare.__spec__ = spec
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[name] = bare
    return importlib.import_module("learn2learn.algorithms.maml").MAML
