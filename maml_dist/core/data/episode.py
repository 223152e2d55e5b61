"""Episodes: what one task gives the learner, as tensors.

Legend: task = tasks stacked in front, n = examples. Code that sees one task sees no task axis.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor
from torch.utils import _pytree as pytree

from maml_dist.core.random import fold

Tree = TypeVar("Tree")


class Batch(NamedTuple):
    """Labelled examples of a task: x [n, …], y [n, …]; stacked: x [task, n, …], y [task, n, …].

    In reinforcement learning x are observations [episode, time, obs], and y is a `PolicyTargets`.
    """

    x: Tensor
    y: Any  # a tensor, or a named tuple of them
    key: Tensor | None = (
        None  # an integer, for all that is drawn on the way (dropout, mini-batches)
    )
    rows: dict[str, Tensor] | None = None  # of tables, the ids of the rows that are there: [u] each


class Episode(NamedTuple):
    """The data of one task, or of many stacked along a leading task axis.

    `support` holds one batch for each inner step (in supervised learning the same one again),
    `query` the batch on which the adapted parameters are evaluated.
    """

    support: tuple[Batch, ...]
    query: Batch
    key: Tensor | None = None  # the task's random key; a task source leaves it to the shard
    scores: dict[str, Tensor] | None = None  # [task, step]: seen while collecting (on-policy only)


def supervised(support: Batch, query: Batch, *, steps: int) -> Episode:
    """An episode in which every inner step sees the whole support set."""
    return Episode(support=(support,) * steps, query=query)


def keyed(batch: Batch, key: Tensor | None, k: int | Tensor, *, query: bool = False) -> Batch:
    """The batch with a random key of its own: that of step `k` of the task with this key."""
    return batch if key is None else batch._replace(key=fold(key, 2 * k + query))


def all_keyed(episode: Episode, counts: Sequence[Tensor]) -> Episode:
    """The episode with the random keys of all its batches: of steps `counts` = 0 … K."""
    support = (
        keyed(batch, episode.key, k) for batch, k in zip(episode.support, counts, strict=False)
    )
    query = keyed(episode.query, episode.key, counts[-1], query=True)
    return Episode(tuple(support), query, episode.key)


def split(episodes: Episode, tasks: int) -> list[Episode]:
    """Stacked episodes as several, of so many tasks each; what is one tensor stays one.

    Without keys of the batches and scores: those of collected examples have none.
    """
    count = -(-len(episodes.query.x) // tasks)
    found: dict[int, Sequence[Any]] = {}
    *support, query, key = (
        _pieces(tree, tasks, count, found)
        for tree in (*episodes.support, episodes.query, episodes.key)
    )
    batches = zip(*support, strict=True) if support else [()] * count
    return [Episode(*row) for row in zip(batches, query, key, strict=True)]


def _pieces(tree: Any, tasks: int, count: int, found: dict[int, Sequence[Any]]) -> Sequence[Any]:
    """A tree in `count` pieces; not a closure, whose cycle would keep them from being freed."""
    if id(tree) not in found:
        if isinstance(tree, Tensor):
            found[id(tree)] = tree.split(tasks)
        elif isinstance(tree, Batch):  # not by pytree, which takes four times as long
            x, y = (_pieces(part, tasks, count, found) for part in (tree.x, tree.y))
            found[id(tree)] = [Batch(*row) for row in zip(x, y, strict=True)]
        else:
            leaves, spec = pytree.tree_flatten(tree)
            parts = [
                _pieces(leaf, tasks, count, found) if isinstance(leaf, Tensor) else (leaf,) * count
                for leaf in leaves
            ]
            rows = zip(*parts, strict=True) if parts else [()] * count
            found[id(tree)] = [pytree.tree_unflatten(row, spec) for row in rows]
    return found[id(tree)]


def chosen(episodes: Episode, tasks: Tensor) -> Episode:
    """Of stacked episodes, those of the chosen tasks [task] bool."""
    return episodes if tasks.all() else map_tensors(lambda tensor: tensor[tasks], episodes)


def thinned(episodes: Episode, share: float, support_share: float) -> Episode:
    """A share of the rollouts of each stacked task, one at least: [task, episode, …] -> fewer.

    `share` of those after adapting, `support_share` of those adapted to.
    """

    def fewer(batch: Batch, share: float) -> Batch:
        count = max(1, round(share * batch.x.shape[1]))
        if count == batch.x.shape[1]:
            return batch
        return map_tensors(lambda tensor: tensor[:, :count].contiguous(), batch)

    support = tuple(fewer(batch, support_share) for batch in episodes.support)
    return episodes._replace(support=support, query=fewer(episodes.query, share))


def ends(episodes: Episode) -> dict[str, Tensor]:
    """On-policy: the scores before adapting and after it, each [task]."""
    found = {}
    for name, value in (episodes.scores or {}).items():
        found[f"{name}/after"] = value[:, -1]
        if value.shape[1] > 1:
            found[f"{name}/before"] = value[:, 0]
    return found


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply `function` to every tensor of a nested tuple, list or dict, to the same one once."""
    results: dict[int, Tensor] = {}

    def once(tensor: Tensor) -> Tensor:
        if id(tensor) not in results:
            results[id(tensor)] = function(tensor)
        return results[id(tensor)]

    return cast(Tree, pytree.tree_map_only(Tensor, once, tree))
