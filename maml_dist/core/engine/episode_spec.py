"""How stacked episodes are flat lists of tensors, which is what traces and vmap take.

    [leaves of each support batch shown, leaves of the query batch, key]

Where one support set serves all inner steps it is shown once.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from maml_dist.core.data.episode import Batch, Episode, keyed

_PAIR = pytree.tree_structure((0, 0))  # of x and a y that is a single tensor


class EpisodeSpec(NamedTuple):
    """What the tensors alone do not say."""

    steps: int  # inner steps: support batches
    same: bool  # whether one support set serves them all
    batch: Any  # the tree of (x, y) of a batch, or of (x, y, rows)

    def keyed(self, tensors: tuple[Tensor, ...], k: Tensor, *, query: bool = False) -> Batch:
        """The batch of (leaves, the task's key), with a random key of its own."""
        *leaves, key = tensors
        return keyed(_batch(leaves, self.batch), key, k, query=query)


def leaves(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, without its key."""
    if isinstance(batch.y, Tensor) and batch.rows is None:  # as nearly always
        return [batch.x, batch.y]
    flat: list[Tensor] = pytree.tree_leaves(_tree(batch))
    return flat


def _tree(batch: Batch) -> Any:
    return (batch.x, batch.y) if batch.rows is None else (batch.x, batch.y, batch.rows)


def _batch(leaves: list[Tensor], spec: Any) -> Batch:
    x, y, *rows = pytree.tree_unflatten(leaves, spec)
    return Batch(x, y, rows=rows[0] if rows else None)


def flatten_episode(episodes: Episode) -> tuple[EpisodeSpec, list[Tensor]]:
    """Stacked episodes as their form and their tensors."""
    support, query = episodes.support, episodes.query
    same = all(batch.x is support[0].x and batch.y is support[0].y for batch in support)
    key = episodes.key
    if key is None:
        key = torch.zeros(len(query.x), dtype=torch.int64, device=query.x.device)
    shown = support[:1] if same else support
    tensors = [tensor for batch in (*shown, query) for tensor in leaves(batch)]
    plain = isinstance(query.y, Tensor) and query.rows is None
    tree = _PAIR if plain else pytree.tree_structure(_tree(query))
    return EpisodeSpec(len(support), same, tree), [*tensors, key]


def unflatten_episode(spec: EpisodeSpec, tensors: tuple[Tensor, ...] | list[Tensor]) -> Episode:
    """The episode of these tensors."""
    *data, key = tensors
    each = spec.batch.num_leaves
    *support, query = (
        _batch(data[start : start + each], spec.batch) for start in range(0, len(data), each)
    )
    return Episode(tuple(support) * (spec.steps if spec.same else 1), query, key)
