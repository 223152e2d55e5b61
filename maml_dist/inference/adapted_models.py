"""AdaptedModels: a model adapted to many tasks, each by its number, or all of them at once.

Legend: task = tasks stacked in front, n = examples of a task.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from maml_dist.core.params import Params, own_form, real_of
from maml_dist.inference.examples import Group, groups, in_order
from maml_dist.inference.inner_loop import Predictor, own_modules
from maml_dist.inference.many_tasks import ManyTasks

Over = Callable[..., ManyTasks]


class AdaptedModels:
    """What `adapt_many` gives: as many models as tasks, of which one is `adapted[i]`.

    Held are the parameters that adapting changes, stacked; what is common to all is held once. It
    can be pickled, as its model can.
    """

    def __init__(self, model: Any, changed: Params, count: int) -> None:
        """Made by `adapt_many`.

        Args:
            model: a copy of the model, with all that the tasks have in common.
            changed: the parameters that adapting has changed, each [task, …].
            count: the tasks.
        """
        self._model = model
        self._changed = changed
        self._count = count

    def __repr__(self) -> str:
        return f"<{self._count} adapted models of {type(self._model).__name__}>"

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, which: int) -> Any: ...

    @overload
    def __getitem__(self, which: slice | Sequence[int] | Tensor) -> "AdaptedModels": ...

    def __getitem__(self, which: int | slice | Sequence[int] | Tensor) -> Any:
        """The model of one task, a module as `adapt` gives; or those of some tasks.

        Raises:
            IndexError: there is no such task.
        """
        rows = torch.arange(len(self))[which]
        if not rows.dim():
            one = {name: value[rows] for name, value in self._changed.items()}
            return self._model._with(one)
        chosen = {name: v[rows.to(v.device)] for name, v in self._changed.items()}
        return AdaptedModels(self._model, chosen, len(rows))

    @property
    def params(self) -> Params:
        """All parameters that are learned, by name: [task, …], complex where the model's are.

        Those that adapting does not change are views of one tensor.
        """
        every = {
            name: self._changed.get(name, value.expand(len(self), *value.shape))
            for name, value in self._common.items()
        }
        return own_form(every, self._model)

    def train(self, mode: bool = True) -> "AdaptedModels":
        """These models in training mode, as they are after `load`, or not; see `eval`."""
        model = copy.deepcopy(self._model).train(mode)
        return AdaptedModels(model, self._changed, len(self))

    def eval(self) -> "AdaptedModels":
        """These models in evaluation mode: batch norm by running statistics, and the like."""
        return self.train(False)

    def predict(self, x: Any, *, chunk: int | None = None) -> Any:
        """Each model's output for its own inputs, at once.

        Args:
            x: inputs [task, n, …], or a list with an array [n, …] for each task, of any lengths.
            chunk: tasks at once at the most; as many as fit 1 GiB if None.

        Returns:
            The outputs [task, n, …]; of a list a list. Nothing is dropped out; batch norm is as of
            the models' mode.

        Raises:
            ValueError: x is no array of finite numbers, is of other tasks, or the models do not
                take it; or an output is not finite.
        """
        common = self._common
        like = next(iter(common.values()))
        found = groups({"x": x}, None, like=like)
        tasks = sum(len(group.places) for group in found)
        if tasks != len(self):
            raise ValueError(f"x of {tasks} tasks: must be of {len(self)}, those adapted to")
        predictor = Predictor(own_modules(self._model, {}), self._model._source)
        over = ManyTasks(self._model, self._model._learner, device=like.device, chunk=chunk)

        def one(changed: Params, x: Any) -> Any:
            return predictor({**common, **changed}, x)

        outputs = []
        for group in found:
            changed = self._changed
            if len(found) > 1:
                rows = torch.tensor(group.places, device=like.device)
                changed = {name: value[rows] for name, value in changed.items()}
            both = Group(group.places, ("", "x"), (changed, *group.trees))
            outputs.append(over.over(one, both, said="cannot predict at", what="predict"))
        return in_order(found, outputs, listed=isinstance(x, list))

    @property
    def _common(self) -> Params:
        """The model's own parameters, as they are learned."""
        named = self._model.named_parameters()
        return {name: real_of(p.detach()) for name, p in named if p.requires_grad}
