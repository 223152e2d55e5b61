"""Worker pool: the rollout workers of a shard, of which any may be gone and come back.

Whole tasks are shared out among those that are up. What one was asked that is gone, another does,
or the shard itself: who acts changes no bit.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from maml_dist.core.data.trajectories import Trajectories, joined
from maml_dist.core.params import Params
from maml_dist.runtime.rollout_worker import RolloutWorker, Weights


class WorkerPool:
    """The rollout workers of one shard, by their names."""

    def __init__(self, names: Sequence[str], *, namespace: str, alone: RolloutWorker) -> None:
        """`alone` acts in this process, where no worker is up."""
        self._names, self._namespace, self._alone = names, namespace, alone
        self._up: dict[str, Any] = {}
        self._coming: dict[str, tuple[Any, Any]] = {}  # the actor, and its first answer

    def roll(self, policies: Params, tasks: Sequence[Any], *, stage: int) -> Trajectories:
        """What the policies do, whole tasks a worker."""
        weights = {name: value.numpy() for name, value in policies.items()}
        parts = self._fan_out("roll", weights, tasks, stage)
        return joined(parts, lambda arrays: torch.from_numpy(np.concatenate(arrays)))

    def returns(self, weights: Weights, tasks: Sequence[Any], *, stage: int) -> np.ndarray:
        """The returns of candidates, whole candidates a worker: only these and weights travel."""
        return np.concatenate(self._fan_out("returns", weights, tasks, stage), 1)

    def _fan_out(
        self, method: str, weights: Weights, tasks: Sequence[Any], stage: int
    ) -> list[Any]:
        """The answers for the tasks in their order, each for the share of a worker."""
        import ray

        workers = self._workers()
        shares = np.array_split(np.arange(len(tasks)), max(1, len(workers)))
        open_ = [share for share in shares if len(share)]
        answers: dict[int, Any] = {}  # by the first task
        while open_:
            workers = [name for name in workers if name in self._up]
            if not workers:
                own = [_part(weights, tasks, share) for share in open_]
                done = [getattr(self._alone, method)(*part, stage=stage) for part in own]
                answers |= {int(s[0]): one for s, one in zip(open_, done, strict=True)}
                break
            asked = [
                (share, name, getattr(self._up[name], method).remote(*part, stage=stage))
                for share, name in zip(open_, workers * len(open_), strict=False)
                for part in [_part(weights, tasks, share)]
            ]
            open_ = []
            for share, name, reference in asked:
                try:
                    answers[int(share[0])] = ray.get(reference)
                except ray.exceptions.RayError as error:
                    of_task = isinstance(error, ray.exceptions.RayTaskError)
                    cause = cast(Any, error).cause if of_task else error
                    lost = isinstance(cause, ray.exceptions.RayError)
                    if not lost or type(cause) is ray.exceptions.RayError:  # a user's error
                        raise cause from error
                    self._up.pop(name, None)
                    open_.append(share)
        return [answers[first] for first in sorted(answers)]

    def _workers(self) -> list[str]:
        """Those that are up; looks for those that are not, without waiting for them."""
        import ray

        for name in self._names:
            if name in self._up:
                continue
            if name not in self._coming:
                try:
                    actor: Any = ray.get_actor(name, namespace=self._namespace)
                except ValueError:  # not made again yet
                    continue
                self._coming[name] = actor, actor.pulse.remote()
            actor, answer = self._coming[name]
            if not ray.wait([answer], timeout=0)[0]:
                continue
            del self._coming[name]
            try:
                ray.get(answer)
                self._up[name] = actor
            except ray.exceptions.RayError:
                continue
        return [name for name in self._names if name in self._up]


def _part(weights: Weights, tasks: Sequence[Any], share: np.ndarray) -> tuple[Weights, list[Any]]:
    """The weights and tasks of a share."""
    own = {name: value[share[0] : share[-1] + 1] for name, value in weights.items()}
    return own, [tasks[i] for i in share]
