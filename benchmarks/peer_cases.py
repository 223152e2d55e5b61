"""What every library of `benchmarks.peers` is given: workloads, initial weights and episodes.

Legend: batch = meta-batches that follow each other, task = tasks of one, n = examples of a task.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BETA = 0.001  # outer rate: Adam, as in the paper


class Workload(NamedTuple):
    """Model, episodes and inner loop of one comparison."""

    title: str
    tasks: int  # a meta-iteration
    steps: int
    alpha: float
    shots: int  # a class; of a regression, in all
    query: int  # the same
    ways: int = 0  # 0: sinusoid regression with the MLP; else images with conv4
    channels: int = 1
    filters: int = 64  # of a transformer: its width
    size: int = 28  # pixels a side
    pooled: bool = False  # max-pooled and flattened; else strided and the mean over space
    first_order: bool = False
    layers: int = 0  # of a transformer instead of conv4
    batches: int = 2  # different meta-batches, taken in turn


_OMNIGLOT = Workload(
    "Omniglot 5-way 1-shot, 32 tasks, 1 step",
    tasks=32, steps=1, alpha=0.4, shots=1, query=15, ways=5,
)  # fmt: skip
WORKLOADS = {
    "A": Workload(
        "sinusoid 10-shot, 25 tasks, 1 step",
        tasks=25, steps=1, alpha=0.01, shots=10, query=10, batches=16,
    ),
    "B": _OMNIGLOT,
    "B1": _OMNIGLOT._replace(title=f"{_OMNIGLOT.title}, first order", first_order=True),
    "C": Workload(
        "Omniglot 20-way 1-shot, 16 tasks, 5 steps",
        tasks=16, steps=5, alpha=0.1, shots=1, query=15, ways=20,
    ),
    "D": Workload(
        "84x84x3 5-way 5-shot, 32 filters, 2 tasks, 5 steps",
        tasks=2, steps=5, alpha=0.01, shots=5, query=15, ways=5,
        channels=3, filters=32, size=84, pooled=True,
    ),
}  # fmt: skip


class Case(NamedTuple):
    """A workload with its numbers."""

    workload: Workload
    meta: dict[str, np.ndarray]  # initial weights, named and ordered as the module's
    support: tuple[np.ndarray, np.ndarray]  # x [batch, task, n, …], y [batch, task, n, …]
    query: tuple[np.ndarray, np.ndarray]


def module(workload: Workload) -> Any:
    """The model as a torch module."""
    from maml_dist.models.conv4 import Conv4
    from maml_dist.models.mlp import MLP

    if not workload.ways:
        return MLP(1, 1, hidden=(40, 40))
    if workload.layers:
        from benchmarks.transformer import Transformer

        return Transformer(
            workload.ways,
            channels=workload.channels,
            size=workload.size,
            width=workload.filters,
            layers=workload.layers,
        )
    return Conv4(
        workload.ways,
        channels=workload.channels,
        filters=workload.filters,
        size=workload.size,
        downsample="pool" if workload.pooled else "stride",
    )


def make(workload: Workload) -> Case:
    """The case of a workload: always the same."""
    import torch

    torch.manual_seed(0)
    meta = {name: p.detach().numpy() for name, p in module(workload).named_parameters()}
    draw = _images if workload.ways else _waves
    return Case(workload, meta, *draw(workload, np.random.default_rng(0)))


def write(workload: Workload, path: Path) -> None:
    """Make a case in a process that has torch, for one that may not have it."""
    case = make(workload)
    data = dict(zip(("sx", "sy", "qx", "qy"), (*case.support, *case.query), strict=True))
    np.savez(path, **{f"data/{name}": v for name, v in data.items()}, **case.meta)


def read(workload: Workload, path: Path) -> Case:
    """The case that was written."""
    with np.load(path) as file:
        sx, sy, qx, qy = (file[f"data/{name}"] for name in ("sx", "sy", "qx", "qy"))
        meta = {name: file[name] for name in file.files if not name.startswith("data/")}
    return Case(workload, meta, (sx, sy), (qx, qy))


def _waves(workload: Workload, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    each = (workload.batches, workload.tasks, workload.shots + workload.query, 1)
    x = rng.uniform(-5, 5, each).astype(np.float32)
    drawn = rng.uniform([[0.1], [0]], [[5], [np.pi]], (*each[:2], 2, 1))
    amplitude, phase = np.split(drawn, 2, axis=2)
    y = (amplitude * np.sin(x - phase)).astype(np.float32)
    return [
        tuple(np.ascontiguousarray(values[:, :, part]) for values in (x, y))
        for part in _parts(workload)
    ]


def _images(workload: Workload, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each class a picture of noise, each example more noise on it: x [batch, task, n, c, h, w]."""
    drawn = (workload.batches, workload.tasks, workload.ways)
    image = (workload.channels, workload.size, workload.size)
    classes = rng.random((*drawn, 1, *image), np.float32)
    each = rng.random((*drawn, workload.shots + workload.query, *image), np.float32)
    x = (classes + each) / 2
    y = np.broadcast_to(np.arange(workload.ways)[:, None], x.shape[:4])
    return [
        tuple(
            np.ascontiguousarray(values[:, :, :, part].reshape(*drawn[:2], -1, *values.shape[4:]))
            for values in (x, y)
        )
        for part in _parts(workload)
    ]


def _parts(workload: Workload) -> tuple[slice, slice]:
    return slice(workload.shots), slice(workload.shots, None)
