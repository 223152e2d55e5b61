"""One meta-iteration: gradients of all slices, then the beta update, which may ask back.

The driver's loop goes through it with references to what actors return, and a group of linked
shards with values, each shard holding the server's state itself.
"""

from typing import Any, Protocol

import numpy as np

from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.remote import Get, Ref
from maml_dist.runtime.server import ParameterServer


class Ask(Protocol):
    """Has a method of a shard called for every slice; what they return, in the slices' order."""

    def __call__(
        self, method: str, meta: Ref[np.ndarray], it: int, *given: Any, **options: Any
    ) -> list[Ref[Contribution]]: ...


def meta_iteration(
    server: ParameterServer,
    ask: Ask,
    get: Get,
    meta: Ref[np.ndarray],
    it: int,
    *,
    multi_round: bool,
) -> tuple[Ref[np.ndarray], Ref[dict[str, Any]]]:
    """Iteration `it` from `meta` on; returns as the server's `update` does.

    `multi_round`: the update asks back (TRPO's line search, how far Adam went), until all is
    answered.
    """
    parts = ask("gradient", meta, it)
    if not multi_round:
        return server.update.remote(*parts)
    while True:
        question, at = server.next_request.remote(*parts)
        what, options = get(question)
        if not what:
            return server.finish_update.remote()
        parts = ask(what, meta, it, at, **options)
