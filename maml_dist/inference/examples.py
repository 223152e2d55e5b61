"""Examples: what a caller gives for x and y, as tensors that a model takes; else it is refused.

The one place that they pass, of one task or of many stacked ones, before anything is computed.

Legend: n = examples of a task, task = tasks stacked in front.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from maml_dist.core.data.episode import Batch
from maml_dist.core.data.task_source import TaskSource
from maml_dist.preflight.error_messages import in_words


class GivenLoss(TaskSource):
    """A task source of which there is but a loss: the caller's, of (output, y)."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        """Raises ValueError where it is no function."""
        if not callable(loss):
            raise ValueError(f"loss={loss!r}: must be a function of (output, y)")
        self._loss = loss

    def sample(self, key: Any) -> Any:
        """There are no tasks."""
        raise NotImplementedError

    def collect(self, tasks: Any, *, steps: int, adapt: Any = None) -> Any:
        """There are no tasks."""
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """What the caller's function gives."""
        found = self._loss(output, batch.y)
        if not isinstance(found, Tensor) or found.dim():
            kind = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"loss must give a scalar tensor, not {kind}")
        return found


def as_numbers(value: Any, name: str, *, like: Tensor) -> Tensor:
    """A value as a tensor on the device of `like`, and of its type unless it is whole numbers.

    Raises:
        ValueError: it is no array of finite numbers.
    """
    tensor = _tensor(value, name, like=like)
    _refuse_infinite(tensor, name)
    return tensor


def support_set(x: Any, y: Any, source: TaskSource, *, like: Tensor) -> Batch:
    """The support set of one task: x [n, …], y [n, …].

    Raises:
        ValueError: x or y is no array of finite numbers, they differ in length, or y holds no
            classes where there are some.
    """
    batch = Batch(as_numbers(x, "x", like=like), as_numbers(y, "y", like=like))
    _check(batch, source, tasks=None)
    return batch


class Group(NamedTuple):
    """Tasks whose data are of equal shapes, stacked."""

    places: list[int]  # of its tasks in what was given
    names: tuple[str, ...]  # of what was given: x and y, say
    trees: tuple[Any, ...]  # for each name a tree of tensors [task, …]


def groups(given: dict[str, Any], source: TaskSource | None, *, like: Tensor) -> list[Group]:
    """Many tasks' data by equal shapes: one group where they are stacked, [task, n, …] each.

    Args:
        given: by name what a caller gave: stacked arrays, or a list with an array for each task.
        source: whose classes y is to hold; without it there is no y.
        like: a tensor of the device and type wanted.

    Raises:
        ValueError: one is no array of finite numbers, they are of different numbers of tasks or of
            none, or those of a task do not fit each other.
    """
    counts = {name: _tasks(value, name) for name, value in given.items()}
    if len({*counts.values()}) > 1 or not all(counts.values()):
        said = ", ".join(f"{name} of {count}" for name, count in counts.items())
        raise ValueError(f"{said} tasks: must be of equally many, at least one")
    (count,) = {*counts.values()}
    listed = {name for name, value in given.items() if isinstance(value, list)}
    if not listed:
        trees = tuple(_tensor(value, name, like=like) for name, value in given.items())
        found = [Group([*range(count)], tuple(given), trees)]
    else:
        found = _by_shape(given, count, like=like)
    for group in found:
        for name, tree in zip(given, group.trees, strict=True):
            for tensor in pytree.tree_leaves(tree):
                _refuse_infinite(tensor, name, places=group.places if listed else None)
        if source is not None:
            _check(Batch(*group.trees[:2]), source, tasks=group.places)
    return found


def _by_shape(given: dict[str, Any], count: int, *, like: Tensor) -> list[Group]:
    rows = [
        tuple(_tensor(value[place], f"{name}[{place}]", like=like) for name, value in given.items())
        for place in range(count)
    ]
    alike: dict[Any, list[int]] = {}
    for place, trees in enumerate(rows):
        leaves, spec = pytree.tree_flatten(trees)
        key = (spec, *((leaf.shape, leaf.dtype) for leaf in leaves))
        alike.setdefault(key, []).append(place)
    return [
        Group(places, tuple(given), stack([rows[place] for place in places]))
        for places in alike.values()
    ]


def in_order(groups: list[Group], found: list[Any], *, listed: bool) -> Any:
    """What was found of groups, in the order of the tasks: stacked, or as a list.

    Not `listed`, what was found is of equal shapes.
    """
    if not listed and len(groups) == 1:
        return found[0]
    if listed:
        rows: list[Any] = [None] * sum(len(group.places) for group in groups)
        for group, stacked in zip(groups, found, strict=True):
            leaves, spec = pytree.tree_flatten(stacked)
            for place, *own in zip(group.places, *(leaf.unbind() for leaf in leaves), strict=True):
                rows[place] = pytree.tree_unflatten(own, spec)
        return rows
    order = torch.tensor([place for group in groups for place in group.places]).argsort()
    return pytree.tree_map(lambda *parts: torch.cat(parts)[order.to(parts[0].device)], *found)


def kinds(names: Sequence[str], trees: Sequence[Any]) -> str:
    """The shapes and types of trees of tensors, for what is said; not of what has no name."""
    said = []
    for name, tree in zip(names, trees, strict=True):
        if not name:
            continue
        leaves = pytree.tree_leaves(tree)
        shown = [f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in leaves]
        said.append(f"{name} {', '.join(shown)}")
    return ", ".join(said)


def stack(trees: Sequence[Any]) -> Any:
    """Trees of tensors of equal shapes as one, with an axis in front."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def _tasks(value: Any, name: str) -> int:
    try:
        return len(value)
    except TypeError:
        kind = type(value).__name__
        raise ValueError(
            f"{name} must hold the data of many tasks, an array [task, n, …] or a list of an array "
            f"for each, not {kind}"
        ) from None


def _tensor(value: Any, name: str, *, like: Tensor) -> Tensor:
    try:
        tensor = torch.as_tensor(value, device=like.device)
        if tensor.is_floating_point() and not isinstance(value, Tensor | np.ndarray):
            tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)  # no digit lost
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        kind = type(value).__name__
        raise ValueError(
            f"{name} must be an array of numbers, not {kind}: {in_words(error)}"
        ) from None
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} is {tensor.layout}: must be dense")
    if tensor.is_floating_point():
        tensor = tensor.to(like.dtype)
    return tensor.detach()


def _refuse_infinite(tensor: Tensor, name: str, *, places: Sequence[int] | None = None) -> None:
    finite = torch.isfinite(tensor)
    if finite.all():
        return
    if places is not None:
        name = f"{name}[{places[int(finite.flatten(1).all(1).long().argmin())]}]"
    raise ValueError(f"{name} holds what is not finite (NaN, or too large for {tensor.dtype})")


def _check(batch: Batch, source: TaskSource, *, tasks: Sequence[int] | None) -> None:
    """Raise ValueError where a task's x and y, or those of stacked tasks, do not fit each other."""
    x, y, *_ = batch
    axis = 0 if tasks is None else 1  # of the examples
    lengths = {each.shape[axis] if each.dim() > axis else None for each in (x, y)}
    if len(lengths) > 1 or not all(lengths):
        shapes = [list(each.shape[axis:]) for each in (x, y)]
        raise ValueError(
            f"{_whose(tasks, 0)}adapt(x {shapes[0]}, y {shapes[1]}): x and y must hold equally "
            "many examples, at least one"
        )
    if source.classifies and (y.is_floating_point() or y.dim() != axis + 1 or y.min() < 0):
        first = int((y.flatten(1).amin(1) < 0).long().argmax()) if axis else 0
        raise ValueError(
            f"{_whose(tasks, first)}adapt(y {list(y.shape[axis:])} of "
            f"{str(y.dtype).removeprefix('torch.')}, from {y.min():g}): must be the class of each "
            "example, a whole number from 0"
        )


def _whose(tasks: Sequence[int] | None, row: int) -> str:
    return "" if tasks is None else f"task {tasks[row]}: "
