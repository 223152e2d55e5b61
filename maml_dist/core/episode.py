"""Episodes: what one task gives the learner, as tensors.

Legend: task = tasks stacked in front, n = examples. Code that sees one task sees no task axis.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

from torch import Tensor
from torch.utils import _pytree as pytree

Tree = TypeVar("Tree")


class Batch(NamedTuple):
    """Labelled examples of a task: x [n, …], y [n, …]; stacked: x [task, n, …], y [task, n, …]."""

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """The data of one task, or of many stacked along a leading task axis.

    `support` holds one batch for each inner step (in supervised learning the same one again),
    `query` the batch on which the adapted parameters are judged.
    """

    support: tuple[Batch, ...]
    query: Batch


def supervised(support: Batch, query: Batch, *, steps: int) -> Episode:
    """An episode in which every inner step sees the whole support set."""
    return Episode(support=(support,) * steps, query=query)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply `function` to every tensor of a nested tuple, list or dict."""
    return cast(Tree, pytree.tree_map_only(Tensor, function, tree))
