"""Adaptable: a trained run as an `nn.Module` that can adapt."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from maml_dist.core.adaptation.inner_optimizers import at_step
from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.episode import Batch
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.model.copying import copied, plain_state
from maml_dist.core.params import Params, own_form, real_of
from maml_dist.core.validation import LARGEST, STEPS, check_whole
from maml_dist.inference.adapted_models import AdaptedModels
from maml_dist.inference.examples import GivenLoss, groups, in_order, kinds, support_set
from maml_dist.inference.inner_loop import InnerLoop, Predictor, own_modules
from maml_dist.inference.many_tasks import ManyTasks, refuse_diverged
from maml_dist.preflight.error_messages import FAILURES, in_words
from maml_dist.tasks.absent import AbsentTask

LossFunction = Callable[[Any, Any], torch.Tensor]  # (output, y) -> the inner loss, a scalar


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

    def adapt(
        self, x: Any, y: Any = None, *, steps: int | None = None, loss: LossFunction | None = None
    ) -> "Adaptable":
        """A copy of this module, adapted to a support set; the module itself is unchanged.

        Args:
            x: inputs [shots, …] (a tensor or anything that `torch.as_tensor` takes).
            y: targets, shaped as the task source gives them: [shots, …]; of classes whole numbers
                from 0.
            steps: inner steps; as many as in training if None.
            loss: what to adapt by in place of the task source's loss: a function of the model's
                output and y that gives a scalar. Needed where that source is not there.

        Returns:
            A module of the same class; it can adapt again, from where it stands (what the learner
            holds for each step, rates or norms, begins again at its first).

        Raises:
            ValueError: x or y is no array of finite numbers, they differ in length, y holds no
                classes where there are some, or the model does not take them; there is no loss; or
                adapting has diverged.
        """
        steps, source = self._steps_of(steps), self._source_of(loss)
        batch = support_set(x, y, source, like=self._like)
        return self._adapted((batch,) * steps, source)

    def adapt_many(
        self,
        x: Any,
        y: Any,
        *,
        steps: int | None = None,
        loss: LossFunction | None = None,
        chunk: int | None = None,
    ) -> AdaptedModels:
        """This module adapted to many tasks at once, each as `adapt` does it.

        Args:
            x: inputs [task, shots, …], or a list with an array [shots, …] for each task, of any
                numbers of shots.
            y: targets, likewise.
            steps: as of `adapt`.
            loss: as of `adapt`.
            chunk: tasks at once at the most; as many as fit 1 GiB if None.

        Returns:
            The adapted models: `adapted[i]` is the module of task i, `adapted.predict(x)` all
            tasks' outputs.

        Raises:
            ValueError: as of `adapt`; names a task.
        """
        steps, source = self._steps_of(steps), self._source_of(loss)
        found = groups({"x": x, "y": y}, source, like=self._like)
        inner = self._inner_loop(own_modules(self, {}), source)
        over = self._over(chunk, loss)

        def one(x: Any, y: Any) -> Params:
            return inner.changed((Batch(x, y),) * steps)

        parts = [over.over(one, g, said="cannot adapt to", what=steps) for g in found]
        model = self._with(self._statistics_after(steps))
        count = sum(len(group.places) for group in found)
        return AdaptedModels(model, in_order(found, parts, listed=False), count)

    def predict_many(
        self,
        x: Any,
        y: Any,
        query: Any,
        *,
        steps: int | None = None,
        loss: LossFunction | None = None,
        chunk: int | None = None,
    ) -> Any:
        """The outputs for `query` of this module adapted to x and y, of many tasks at once.

        As `adapt_many(x, y).predict(query)`, but nothing is kept of a task but its outputs.

        Args:
            x: as of `adapt_many`.
            y: as of `adapt_many`.
            query: inputs [task, n, …], or a list with an array [n, …] for each task.
            steps: as of `adapt`.
            loss: as of `adapt`.
            chunk: as of `adapt_many`.

        Returns:
            The outputs [task, n, …]; a list where `query` is one. Nothing is dropped out; batch
            norm is as of this module's mode.

        Raises:
            ValueError: as of `adapt`; names a task.
        """
        steps, source = self._steps_of(steps), self._source_of(loss)
        found = groups({"x": x, "y": y, "query": query}, source, like=self._like)
        modules = own_modules(self, self._statistics_after(steps))
        inner, predictor = self._inner_loop(modules, source), Predictor(modules, source)
        over = self._over(chunk, loss)

        def one(x: Any, y: Any, query: Any) -> Any:
            return predictor(inner.weights((Batch(x, y),) * steps), query)

        parts = [over.over(one, g, said="cannot adapt to", what=("query", steps)) for g in found]
        return in_order(found, parts, listed=isinstance(query, list))

    def plain(self) -> nn.Module:
        """A copy that is of the user's own class alone, without `adapt`: to export, or to keep.

        Raises no error; what torch.export and torch.onnx take of a class is its own business.
        """
        made = copy.deepcopy(self)
        for name in Adaptable.__annotations__:
            delattr(made, name)
        _, made.__class__ = type(self).__bases__
        return made

    @property
    def _like(self) -> torch.Tensor:
        """What the data are to be like: where the model is, and of its precision."""
        return real_of(next(self.parameters()))

    def _steps_of(self, steps: int | None) -> int:
        return check_whole(self._learner.steps if steps is None else steps, "steps", 0, STEPS)

    def _source_of(self, loss: LossFunction | None) -> TaskSource:
        """Whose loss is adapted by. Raises ValueError where there is none."""
        if loss is not None:
            return GivenLoss(loss)
        if isinstance(self._source, AbsentTask):
            self._source.refuse()
        return self._source

    def _inner_loop(self, modules: nn.Module, source: TaskSource) -> InnerLoop:
        like = self._like
        learned = {name: real_of(p.detach()) for name, p in self.named_parameters()}
        meta = {
            name: learned.get(name, value.to(like.device, like.dtype))
            for name, value in self._meta.items()
        }
        return InnerLoop(modules, self._learner, source, meta, self._it.to(like.device))

    def _over(self, chunk: int | None, loss: LossFunction | None) -> ManyTasks:
        chunk = None if chunk is None else check_whole(chunk, "chunk", 1, LARGEST)
        device = self._like.device
        return ManyTasks(self, self._learner, device=device, chunk=chunk, remember=loss is None)

    def _adapted(self, support: tuple[Batch, ...], source: TaskSource | None = None) -> "Adaptable":
        """A copy after a step on each support batch."""
        adapted = copy.deepcopy(self)
        try:
            with torch.no_grad():
                phi = self._inner_loop(adapted, source or self._source).weights(support)
        except FAILURES as error:
            said = kinds(("x", "y"), support[0][:2]) if support else "nothing"
            raise ValueError(f"cannot adapt to {said}: {in_words(error)}") from None
        refuse_diverged(phi)
        return adapted._set({**phi, **self._statistics_after(len(support))})

    def _with(self, phi: Params) -> "Adaptable":
        """A copy with these parameters, as they are learned, and running statistics."""
        return copy.deepcopy(self)._set(phi)

    def _set(self, values: Params) -> "Adaptable":
        self.load_state_dict({**self.state_dict(), **own_form(values, self)})
        return self.train(self.training)

    def _statistics_after(self, steps: int) -> Params:
        """The running statistics after so many steps; none where they are always the same."""
        if not self._learner.per_step_statistics:
            return {}
        return self._statistics(torch.tensor(steps))

    def _statistics(self, k: torch.Tensor) -> Params:
        """The running statistics after k steps."""
        if not self._learner.per_step_statistics:
            return self._kept
        return {name: at_step(rows, k) for name, rows in self._kept.items()}


_classes: dict[tuple[type, type], type[Adaptable]] = {}


def class_of(adds: type[Adaptable], kind: type[nn.Module]) -> type[Adaptable]:
    """The user's own class of module, with what is added; one for each."""
    made = type(kind.__name__, (adds, kind), {"__module__": kind.__module__})
    return _classes.setdefault((adds, kind), made)


def _empty(adds: type[Adaptable], kind: type[nn.Module]) -> Adaptable:
    """An object of the class before its state is set."""
    made = class_of(adds, kind)
    return made.__new__(made)
