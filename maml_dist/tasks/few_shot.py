"""N-way K-shot classification (arXiv 1703.03400, section 5.2) over any data indexed by class.

A task draws `ways` classes, in a random order that gives their labels, and from each of them
`shots` examples to adapt on and `query` others to be evaluated on. The loss is the mean cross
entropy.

Legend: task = tasks stacked in front, n = ways * shots (support) or ways * query.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from maml_dist.core.data.episode import Batch, Episode, supervised
from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource
from maml_dist.core.validation import check_minimum

SPLITS = ("train", "val", "test")


class ClassData(ABC):
    """Examples by class. Its fields travel to every process; the examples are opened there."""

    @abstractmethod
    def classes(self, split: str) -> Sequence[np.ndarray]:
        """One array [examples, …] for each class of "train", "val" or "test", in a fixed order.

        uint8 (0 to 255, seen by the model as 0 to 1) or float32. Called once a process and split.

        Raises:
            ValueError, OSError: the data cannot be read.
        """


@dataclass(frozen=True)
class Arrays(ClassData):
    """Examples in memory; they are copied to every process."""

    by_split: Mapping[str, Sequence[np.ndarray]]  # split -> one array [examples, …] a class

    def classes(self, split: str) -> Sequence[np.ndarray]:
        """The arrays as given."""
        return self.by_split.get(split, ())


class Draw(NamedTuple):
    """One task: which examples of which classes."""

    split: str
    classes: np.ndarray  # [ways]; a class's place here is its label
    examples: np.ndarray  # [ways, shots + query], within each class


@dataclass(frozen=True)
class FewShot(TaskSource):
    """N-way K-shot classification: x [task, n, …] float32 -> y [task, n] int64."""

    metric = "accuracy"
    maximize = True
    classifies = True
    data_fields = ("data",)

    data: ClassData
    ways: int = 5  # classes a task
    shots: int = 1  # support examples a class
    query: int = 15  # query examples a class

    def __post_init__(self) -> None:
        check_minimum(self, "task", ways=2, shots=1, query=1)

    def sample(self, key: TaskKey) -> Draw:
        """Draw classes, their order, and examples of each, all without replacement."""
        classes = self._classes(key.split)
        rng = key.rng()
        drawn = rng.choice(len(classes), self.ways, replace=False)
        each = self.shots + self.query
        examples = [rng.choice(len(classes[c]), each, replace=False) for c in drawn]
        return Draw(key.split, drawn.astype(np.int32), np.stack(examples).astype(np.int32))

    def collect(self, tasks: Sequence[Draw], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """The examples of each task, class by class."""
        x = np.stack([self._examples(task) for task in tasks])
        cut = self.shots
        return supervised(_batch(x[:, :, :cut]), _batch(x[:, :, cut:]), steps=steps)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy of logits [n, ways]."""
        return cross_entropy(output, batch.y)

    def score(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The share of right answers, and the loss."""
        right = (output.argmax(-1) == batch.y).to(output.dtype)
        return {"accuracy": right.mean(), "loss": self.loss(output, batch)}

    def _examples(self, task: Draw) -> np.ndarray:
        """[ways, shots + query, …], as stored."""
        classes = self._classes(task.split)
        return np.stack(
            [classes[c][picked] for c, picked in zip(task.classes, task.examples, strict=True)]
        )

    @cached_property
    def _opened(self) -> dict[str, Sequence[np.ndarray]]:
        """The classes of each split, opened when first needed: in each process its own."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def _classes(self, split: str) -> Sequence[np.ndarray]:
        if split not in self._opened:
            if split not in SPLITS:
                raise ValueError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
            classes = self.data.classes(split)
            self._check(classes, split)
            self._opened[split] = classes
        return self._opened[split]

    def _check(self, classes: Sequence[np.ndarray], split: str) -> None:
        if self.ways > len(classes):
            raise ValueError(
                f"task.ways={self.ways}: there are only {len(classes)} classes in split {split!r}"
            )
        smallest, each = min(map(len, classes)), self.shots + self.query
        if each > smallest:
            raise ValueError(
                f"task.shots={self.shots} and task.query={self.query} need {each} examples a "
                f"class; the smallest class in split {split!r} has {smallest}"
            )
        kinds = {(str(c.dtype), c.shape[1:]) for c in classes}
        if len(kinds) > 1 or next(iter(kinds))[0] not in ("uint8", "float32"):
            raise ValueError(
                "examples must all have one shape and be uint8 or float32; "
                f"split {split!r} has {sorted(kinds)[:3]}"
            )


def _batch(x: np.ndarray) -> Batch:
    """x [task, ways, examples, …] of a class as stored -> x [task, n, …] float32, y [task, n]."""
    tasks, ways, examples = x.shape[:3]
    flat = torch.from_numpy(x).flatten(1, 2).contiguous()
    labels = torch.arange(ways).repeat_interleave(examples).repeat(tasks, 1)
    return Batch(flat.float().div_(255) if flat.dtype == torch.uint8 else flat, labels)
