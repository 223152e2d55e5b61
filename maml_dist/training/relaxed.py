"""Updates that need not wait for everybody: no bits are promised, and time is won.

    max_staleness s   a shard that is free takes a slice of the next iterations, up to s ahead, at
                      weights that are up to s updates old   (stale synchronous parallel, Ho et al.,
                      "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
                      Server", 2013)
    backup k          an update is made when all but k slices have come; the others are dropped
                      (backup workers, Chen et al., arXiv 1604.00981)

No task is drawn twice; who is slow computes fewer slices.
"""

from typing import Any

from maml_dist.config.experiment import Experiment
from maml_dist.runtime.backend import ActorGroup
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.remote import Ref


class RelaxedUpdates:
    """Makes the updates: the slices that are being computed, and those that have come."""

    def __init__(self, experiment: Experiment, actors: ActorGroup) -> None:
        self._actors = actors
        self._ahead, self._backup = experiment.max_staleness, experiment.backup
        self._end = experiment.iterations
        self._next = 0, 0  # the iteration and the slice that is to be computed next
        self._busy: dict[Any, tuple[Any, int, int, int]] = {}  # by reference: by whom, of what
        self._come: dict[int, dict[int, tuple[Ref[Contribution], int]]] = {}  # with their weights'
        self._meta: Ref[Any] = actors.server.meta.remote()  # the newest weights

    def make(self, it: int) -> Ref[dict[str, Any]]:
        """Update `it`, when enough has come for it; its metrics."""
        parts, facts = self._until_enough(it)
        self._meta, metrics = self._actors.server.update.remote(*parts, facts=facts)
        return metrics

    def _until_enough(self, it: int) -> tuple[list[Ref[Contribution]], dict[str, float]]:
        """What has come for update `it`, in the order of slices, and how stale that is."""
        slices = self._actors.slices
        if self._next[0] < it:  # what nobody has begun of the one before is dropped
            self._next = it, 0
        self._hand_out(it, most=slices)
        while True:
            come = self._come.setdefault(it, {})
            if len(come) >= slices - self._backup:
                break
            for done in self._actors.first([*self._busy]):
                _, of, slice, version = self._busy.pop(done)
                if of >= it:  # else it was dropped
                    self._come.setdefault(of, {})[slice] = done, version
            spare = self._backup if slices <= len(self._actors.shards_up()) else 0
            self._hand_out(it, most=slices - spare)
        del self._come[it]
        ages = [it - version for _, version in come.values()]
        facts = {
            "staleness": sum(ages) / len(ages),
            "staleness/most": float(max(ages)),
            "dropped": float(slices - len(come)),
        }
        return [come[slice][0] for slice in sorted(come)], facts

    def _hand_out(self, it: int, *, most: int) -> None:
        """Give those who are free the next slices, at the newest weights.

        `most`: of an iteration that are computed or have come. Where each shard has its slice, what
        one did besides would be dropped, and late for the next iteration.
        """
        busy = [by for by, *_ in self._busy.values()]
        free = [one for one in self._actors.shards_up() if not any(one is by for by in busy)]
        for shard in free:
            of, slice = self._next
            known = len(self._come.get(of, ())) + sum(one[1] == of for one in self._busy.values())
            if known >= most:
                of, slice = of + 1, 0
            if of >= self._end or of > it + self._ahead:
                break
            done = shard.gradient.remote(self._meta, of, slice=slice)
            self._busy[done] = shard, of, slice, it
            self._next = (of, slice + 1) if slice + 1 < self._actors.slices else (of + 1, 0)
