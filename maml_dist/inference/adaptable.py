"""Adaptable: a trained run as an `nn.Module` that can adapt."""

import copy
from typing import Any

import torch
from torch import nn

from maml_dist.core.adaptation.inner_optimizers import at_step
from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.episode import Batch
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.engine.episode_spec import leaves
from maml_dist.core.model.copying import copied, plain_state
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import Params, own_form, real_of
from maml_dist.core.validation import STEPS, check_whole
from maml_dist.preflight.error_messages import FAILURES, in_words


class Adaptable(nn.Module):
    """What `load` adds to the user's own class of module."""

    _meta: Params
    _kept: Params  # running statistics
    _learner: Learner
    _source: TaskSource
    _it: torch.Tensor  # the meta-iteration of the checkpoint

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made again of the user's own, by which alone it can be found."""
        adds, kind = type(self).__bases__
        return _empty, (adds, kind), plain_state(self, self._fixed)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adaptable":
        memo.update(self._fixed)
        return copied(self, memo)

    @property
    def _fixed(self) -> dict[int, Any]:
        """By id, what nothing changes: copies have the same."""
        fixed = (self._meta, self._kept, self._learner, self._source, self._it)
        return {id(each): each for each in fixed}

    def adapt(self, x: Any, y: Any = None, *, steps: int | None = None) -> "Adaptable":
        """A copy of this module, adapted to a support set; the module itself is unchanged.

        Args:
            x: inputs [shots, …] (a tensor or anything that `torch.as_tensor` takes).
            y: targets, shaped as the task source gives them: [shots, …]; of classes whole numbers
                from 0.
            steps: inner steps; as many as in training if None.

        Returns:
            A module of the same class; it can adapt again, from where it stands (what the learner
            holds for each step, rates or norms, begins again at its first).

        Raises:
            ValueError: x or y is no array of finite numbers, they differ in length, y holds no
                classes where there are some, or the model does not take them.
        """
        steps = self._learner.steps if steps is None else steps
        steps = check_whole(steps, "steps", 0, STEPS)
        like = real_of(next(self.parameters()))
        x, y = as_numbers(x, "x", like=like), as_numbers(y, "y", like=like)
        if not x.dim() or not y.dim() or not len(x) or len(x) != len(y):
            raise ValueError(
                f"adapt(x {list(x.shape)}, y {list(y.shape)}, steps={steps}): "
                "x and y must hold equally many examples, at least one"
            )
        if self._source.classifies and (y.is_floating_point() or y.dim() != 1 or y.min() < 0):
            raise ValueError(
                f"adapt(y {list(y.shape)} of {str(y.dtype).removeprefix('torch.')}, from "
                f"{y.min():g}): must be the class of each example, a whole number from 0"
            )
        return self._adapted((Batch(x, y),) * steps)

    def _adapted(self, support: tuple[Batch, ...]) -> "Adaptable":
        """A copy after a step on each support batch."""
        like = real_of(next(self.parameters()))
        adapted = copy.deepcopy(self)
        learned = {name: real_of(p.detach()) for name, p in self.named_parameters()}
        meta = {
            name: learned.get(name, value.to(like.device, like.dtype))
            for name, value in self._meta.items()
        }
        try:
            with torch.no_grad():
                loss = Objective(adapted, self._source, strict=True).loss
                key = torch.zeros((), dtype=torch.int64, device=like.device)
                it = self._it.to(like.device)
                phi = self._learner.adapt(loss, meta, support, it, key)
        except FAILURES as error:
            x, y = leaves(support[0])[:2] if support else (None, None)
            raise ValueError(
                f"cannot adapt to x {_kind(x)}, y {_kind(y)}: {in_words(error)}"
            ) from None
        kept = (
            self._statistics(torch.tensor(len(support)))
            if self._learner.per_step_statistics
            else {}
        )
        adapted.load_state_dict({**adapted.state_dict(), **own_form(phi, adapted), **kept})
        return adapted.train(self.training)

    def _statistics(self, k: torch.Tensor) -> Params:
        """The running statistics after k steps."""
        if not self._learner.per_step_statistics:
            return self._kept
        return {name: at_step(rows, k) for name, rows in self._kept.items()}


def as_numbers(value: Any, name: str, *, like: torch.Tensor) -> torch.Tensor:
    """A value as a tensor on the device of `like`, and of its type unless it is whole numbers.

    Raises:
        ValueError: it is no array of finite numbers.
    """
    try:
        tensor = torch.as_tensor(value, device=like.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        kind = type(value).__name__
        raise ValueError(
            f"{name} must be an array of numbers, not {kind}: {in_words(error)}"
        ) from None
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} is {tensor.layout}: must be dense")
    if tensor.is_floating_point():
        tensor = tensor.to(like.dtype)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds what is not finite (NaN, or too large for {like.dtype})")
    return tensor.detach()


def _kind(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "none"
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


_classes: dict[tuple[type, type], type[Adaptable]] = {}


def class_of(adds: type[Adaptable], kind: type[nn.Module]) -> type[Adaptable]:
    """The user's own class of module, with what is added; one for each."""
    made = type(kind.__name__, (adds, kind), {"__module__": kind.__module__})
    return _classes.setdefault((adds, kind), made)


def _empty(adds: type[Adaptable], kind: type[nn.Module]) -> Adaptable:
    """An object of the class before its state is set."""
    made = class_of(adds, kind)
    return made.__new__(made)
