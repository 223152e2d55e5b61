"""Carry: what a task takes from one inner step to the next, and the meta-parameters, as vectors.

A carry is phi and the inner optimizer's state, one flat tensor: what is differentiated step by step
needs one thing to pull back through.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.params import Layout, Params, flatten, unflatten


class Carry:
    """Turns the flat meta-parameters of a learner, and the carries of its tasks, into what they are
    of, and back.
    """

    def __init__(self, learner: Learner, into: Layout, *, kept: tuple[str, ...]) -> None:
        """`kept` names what the meta-vector holds that is not differentiated."""
        self._learner = learner
        self._into = into
        self._kept = kept
        self._spec: Any = None  # how the tree of a carry is built
        self._layout: Layout

    def split(self, vector: Tensor) -> tuple[Params, Params]:
        """What is meta-learned, and what is kept (running statistics) but not differentiated."""
        params = unflatten(vector, self._into)
        kept = {name: params.pop(name).detach() for name in self._kept}
        return params, kept

    def join(self, gradient: Params, kept: Params) -> Tensor:
        """A gradient, and new values of what is kept, as one vector [size]; zeros for the rest."""
        zero = {
            name: shape for name, shape in zip(*self._into, strict=True) if name not in gradient
        }
        like = next(iter(gradient.values()))
        rest = {name: kept.get(name, like.new_zeros(shape)) for name, shape in zero.items()}
        both = {**gradient, **rest}
        return flatten({name: both[name] for name in self._into.names})

    def start(self, vector: Tensor) -> Tensor:
        """The carry before the first step."""
        return self.flat(*self._learner.start(self.split(vector)[0]))

    def learn(self, vector: Tensor) -> None:
        """See how a carry of this learner is built; before anything is traced."""
        if self._spec is None:
            tree = self._learner.start(self.split(vector)[0])
            leaves, self._spec = pytree.tree_flatten(tree)
            names = tuple(str(number) for number in range(len(leaves)))
            self._layout = Layout(names, tuple(tuple(leaf.shape) for leaf in leaves))

    def flat(self, phi: Params, state: Any) -> Tensor:
        """Phi and the inner optimizer's state as a carry."""
        leaves, spec = pytree.tree_flatten((phi, state))
        if spec != self._spec:
            raise ValueError("the learner's step changes the form of phi or of its state")
        return torch.cat([leaf.reshape(-1) for leaf in leaves])

    def tree(self, carry: Tensor) -> tuple[Params, Any]:
        """A carry as phi and the inner optimizer's state."""
        leaves = list(unflatten(carry, self._layout).values())
        phi, state = pytree.tree_unflatten(leaves, self._spec)
        return phi, state
