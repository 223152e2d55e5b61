"""Many tasks at once: a function of one task over stacked ones, in chunks that fit the memory.

    chunk = budget / bytes that one task takes (measured),   on a GPU fewer where less is free

Task by task go models that a vmap would slow down or that have none (convolutions on a CPU,
recurrent layers: `core.engine.engine`), and what turns out to have none: it reads a tensor as a
number, say.

Legend: task = tasks stacked in front.
"""

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.engine.chunks import Chunks
from maml_dist.core.engine.engine import GIB, Engine
from maml_dist.inference.examples import Group, kinds, stack
from maml_dist.inference.live_bytes import live_bytes
from maml_dist.preflight.error_messages import FAILURES, in_words

BUDGET = 1.0  # GiB that the tasks of one vmap may take

_peaks: WeakKeyDictionary[nn.Module, dict[Any, int]] = WeakKeyDictionary()  # by what, of one task
_singly: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # those that turned out so


class ManyTasks:
    """Runs functions of one task for many, by one model."""

    def __init__(
        self,
        model: nn.Module,
        learner: Learner,
        *,
        device: torch.device,
        chunk: int | None,
        remember: bool = True,
    ) -> None:
        """Args:
        model: that the functions compute with.
        learner: how it adapts.
        device: where it is.
        chunk: tasks at once at the most; as many as fit the memory if None.
        remember: whether what has no vmap here has none with this model.
        """
        self._model, self._chunk, self._remember = model, chunk, remember
        convolves_or_recurs = Engine().resolve(model, learner, device.type).batching == "task"
        self._singly = convolves_or_recurs or model in _singly

    def over(self, one: Callable[..., Any], group: Group, *, said: str, what: Any) -> Any:
        """What `one` gives for each task of a group: trees of tensors, as one of [task, …].

        Args:
            one: a function of the trees of one task.
            group: the tasks.
            said: what it does with them, for an error ("cannot adapt to").
            what: it is, beside the shapes: by this the memory that it takes is known the next time.

        Raises:
            ValueError: it cannot be computed, or what it gives is not finite; names a task.
        """
        tensors, spec = pytree.tree_flatten(group.trees)

        def flat(*leaves: Tensor) -> Any:
            return one(*pytree.tree_unflatten(leaves, spec))

        with torch.no_grad():
            if self._singly or len(group.places) == 1:
                found = self._one_by_one(flat, tensors, group, said)
            else:
                found = self._in_chunks(flat, tensors, group, said, what)
        refuse_diverged(found, group.places)
        return found

    def _in_chunks(
        self, flat: Callable[..., Any], tensors: list[Tensor], group: Group, said: str, what: Any
    ) -> Any:
        try:
            chunk = self._chunk or self._fitting(flat, tensors, what)
            engine = Engine(batching="vmap", chunk=chunk)
            parts = Chunks(engine).over(
                tensors, lambda parts: [vmap(flat)(*part) for part in parts]
            )
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            reason = in_words(error)
        else:
            return pytree.tree_map(lambda *own: torch.cat(own) if len(own) > 1 else own[0], *parts)
        found = self._one_by_one(flat, tensors, group, said)  # which may raise, and then better
        if self._remember:
            _singly[self._model] = True
        warnings.warn(
            f"the tasks are computed one by one, for there is no vmap of this: {reason}",
            stacklevel=5,
        )
        return found

    def _one_by_one(
        self, flat: Callable[..., Any], tensors: list[Tensor], group: Group, said: str
    ) -> Any:
        results = []
        for place, *leaves in zip(group.places, *map(Tensor.unbind, tensors), strict=True):
            try:
                results.append(flat(*leaves))
            except torch.OutOfMemoryError:
                raise
            except FAILURES as error:
                trees = pytree.tree_unflatten(leaves, pytree.tree_structure(group.trees))
                shown = kinds(group.names, trees)
                raise ValueError(f"task {place}: {said} {shown}: {in_words(error)}") from None
        return stack(results)

    def _fitting(self, flat: Callable[..., Any], tensors: list[Tensor], what: Any) -> int:
        """How many tasks fit the budget at once."""
        known = _peaks.setdefault(self._model, {})
        key = (what, *((tensor.shape[1:], tensor.dtype) for tensor in tensors))
        if key not in known:
            known[key] = live_bytes(lambda: flat(*(tensor[0] for tensor in tensors)))
        return max(1, int(BUDGET * GIB) // max(1, known[key]))


def refuse_diverged(found: Any, places: list[int] | None = None) -> None:
    """Raise ValueError where what was found, of one task or of stacked ones, is not finite."""
    for leaf in pytree.tree_leaves(found):
        finite = torch.isfinite(leaf)
        if finite.all():
            continue
        whose = ""
        if places is not None:
            wrong = [places[int(row)] for row in (~finite.flatten(1).all(1)).nonzero()]
            whose = f"task {wrong[0]}: " if len(wrong) == 1 else f"tasks {_listed(wrong)}: "
        raise ValueError(
            f"{whose}adapting has diverged, what it gives is not finite: fewer steps, or examples "
            "of the size of those of training"
        )


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown} and {len(numbers) - 8} more"
