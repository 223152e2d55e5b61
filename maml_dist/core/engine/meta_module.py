"""The imperative form: a module whose clones adapt to losses as one's own loop computes them.

    maml = MetaModule(model, MAML(alpha=0.01))
    clone = maml.clone()
    clone.adapt(mse_loss(clone(x), y))                          # once for each inner step
    mse_loss(clone(x_query), y_query).backward()                # to the gradients of `maml`

A step goes by the loss's gradient g where it was computed: the learner is given the loss
L + <g, params - phi>, which has that gradient, and through g the second derivatives.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maml_dist.core.adaptation.learner import Learner, StepContext
from maml_dist.core.data.episode import Batch
from maml_dist.core.model.functional_call import Stateless
from maml_dist.core.params import Params, own_form, real_of

Forward = Callable[..., Any]


class MetaModule(nn.Module):
    """A model and how it adapts; its parameters are all that is meta-learned.

    They are the model's own, and what the learner adds (Meta-SGD's rates, say).
    """

    def __init__(self, model: nn.Module, learner: Learner) -> None:
        """Raises ValueError where the learner's meta-gradient is not that of its steps."""
        super().__init__()
        if not isinstance(model, nn.Module) or not isinstance(learner, Learner):
            kinds = f"{type(model).__name__}, {type(learner).__name__}"
            raise ValueError(f"MetaModule({kinds}): must be given an nn.Module and a Learner")
        if learner.differentiation != "backprop" or learner.own_gradient:
            raise ValueError(
                f"{type(learner).__name__} has a meta-gradient of its own, which backward() does "
                "not take: use maml_dist.meta_train, or Learner.gradient"
            )
        self.model, self.learner = model, learner
        own = {name: real_of(p.detach()) for name, p in _learned(model).items()}
        if not own:
            raise ValueError("the model has no parameter that requires a gradient")
        added = {n: value for n, value in learner.init(own).items() if n not in own}
        self._added = tuple(added)
        self.added = nn.ParameterList(nn.Parameter(value.clone()) for value in added.values())

    def clone(self, *, it: int = 0, differentiable: bool = True) -> "Clone":
        """A model that adapts, at its start.

        Args:
            it: the meta-iteration, for learners that go by it (MAML++).
            differentiable: whether its losses lead back to the meta-parameters; at test they need
                not.
        """
        meta = {name: real_of(value) for name, value in _learned(self.model).items()}
        meta |= dict(zip(self._added, self.added, strict=True))
        if not differentiable:
            meta = {name: value.detach().requires_grad_() for name, value in meta.items()}
        return Clone(self.model, self.learner, meta, it=it, differentiable=differentiable)

    def forward(self, *args: Any, **named: Any) -> Any:
        """The model's output before it adapts."""
        return self.clone()(*args, **named)


class Clone:
    """A model on its way: called, it computes with the parameters that it has adapted so far."""

    def __init__(
        self, model: nn.Module, learner: Learner, meta: Params, *, it: int, differentiable: bool
    ) -> None:
        self._model, self._stateless, self._learner = model, Stateless(model), learner
        self._meta, self._it = meta, torch.tensor(float(it))
        self._differentiable = differentiable
        self._phi, self._state = learner.start(meta)
        self.steps = 0  # made so far

    def __call__(self, *args: Any, **named: Any) -> Any:
        """The model's output."""
        return self._at(self._phi)(*args, **named)

    @property
    def weights(self) -> Params:
        """The model's adapted parameters, by name."""
        weights = self._learner.weights(self._meta, self._phi, torch.tensor(self.steps))
        return own_form(weights, self._model)

    def adapt(self, loss: Tensor | Callable[[Forward], Tensor]) -> None:
        """One inner step.

        Args:
            loss: the loss of this clone's output, a scalar; or a function of the model that
                computes it, for a learner that asks for the loss elsewhere too.

        Raises:
            ValueError: the loss is no scalar that was computed with this clone as it is now, or
                the learner asks for it elsewhere.
        """
        at = self._given(loss) if isinstance(loss, Tensor) else self._computed(loss)
        k = torch.tensor(self.steps)
        batch: Any = _NoBatch()
        context = StepContext(at, self._meta, batch, k, self._it)
        phi, self._state = self._learner.step(self._phi, self._state, context)
        if not self._differentiable:
            phi = {name: value.detach().requires_grad_() for name, value in phi.items()}
        self._phi, self.steps = phi, self.steps + 1

    def _computed(self, loss: Callable[[Forward], Tensor]) -> Callable[[Params, Batch], Tensor]:
        if not callable(loss):
            raise ValueError(f"adapt({loss!r}): must be a loss, or a function that computes it")
        return lambda params, batch: loss(self._at(params))

    def _given(self, loss: Tensor) -> Callable[[Params, Batch], Tensor]:
        """A loss with the given one's value and gradient at phi."""
        if loss.dim() or not loss.requires_grad:
            raise ValueError(
                f"adapt(a tensor {list(loss.shape)}): must be a scalar that was computed with "
                "this clone, its gradient recorded"
            )
        phi = self._phi
        second = self._differentiable and self._learner.second_order
        found = torch.autograd.grad(
            loss, [*phi.values()], create_graph=second, retain_graph=True, allow_unused=True
        )
        if all(each is None for each in found):
            raise ValueError("adapt: the loss was not computed with this clone as it is now")
        gradient = dict(zip(phi, found, strict=True))

        def at(params: Params, batch: Batch) -> Tensor:
            total = loss if second else loss.detach()
            for name, g in gradient.items():
                if not torch.equal(params[name].detach(), phi[name].detach()):
                    raise ValueError(
                        f"{type(self._learner).__name__} asks for the loss elsewhere than at the "
                        "parameters: give adapt a function, as in adapt(lambda model: …)"
                    )
                if g is not None:
                    total = total + (g * (params[name] - phi[name])).sum()
            return total

        return at

    def _at(self, params: Params) -> Forward:
        """The model's forward pass with these parameters, of as many steps as were made."""
        weights = self._learner.weights(self._meta, params, torch.tensor(self.steps))
        given = own_form(weights, self._model)

        def forward(*args: Any, **named: Any) -> Any:
            with self._stateless.given(given, []) as model:
                return model(*args, **named)

        return forward


class _NoBatch:
    def __getattr__(self, name: str) -> Any:
        raise ValueError("a clone that adapts to a loss has no batch: adapt with Learner.adapt")


def _learned(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
