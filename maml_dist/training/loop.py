"""The loop of meta-training, from a run's last checkpoint to its end.

One meta-iteration goes one way: shards (gradients of slices) -> server (the beta update) -> shards.
Only references pass through this process, which submits several iterations ahead. Where an actor is
lost, all that was submitted is, and the loop begins again at the last update that was applied.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from maml_dist.config.experiment import Experiment
from maml_dist.runs.run import Locks, Run
from maml_dist.runs.run_writer import RunWriter
from maml_dist.runtime.allocator import freeze_gc
from maml_dist.runtime.backend import ActorGroup, ActorLost
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.meta_iteration import Ask, meta_iteration
from maml_dist.runtime.remote import Ref
from maml_dist.runtime.shard import TaskShard
from maml_dist.training.callbacks import Callbacks, Row
from maml_dist.training.interruption import interruptible
from maml_dist.training.recorder import IterationRefs, Recorder, due, scoring
from maml_dist.training.relaxed import RelaxedUpdates

BLOCK_SECONDS = 0.2  # that a block takes, about: until it is read, and until Ctrl-C is heard
MOST_ROWS = 300  # of a block, so that they come inside Ray's answer


def loop(
    experiment: Experiment,
    actors: ActorGroup,
    unread: list[IterationRefs],
    *,
    start: int,
    stop: Callable[[], bool],
) -> Iterator[int]:
    """The loop. Adds what is to be read of each iteration to `unread`, which its reader shortens.

    Yields how many of them it is time to read: several at once, and later. Where a task diverges in
    this process, or an actor is found to be lost, that raises here, after what is unread.
    """
    relaxed = experiment.relaxed and actors.parallel
    updates = (RelaxedUpdates if relaxed else Updates)(experiment, actors)
    for it in range(start, experiment.iterations):
        try:
            actors.submitted(it)
            metrics = updates.make(it)
        except (FloatingPointError, ActorLost):
            yield len(unread)
            raise
        saved = validate = None
        last = it + 1 == experiment.iterations or stop()
        if last or (it + 1) % experiment.checkpoint_every == 0:
            saved, validate = due(experiment, actors, it)
        unread.append(IterationRefs(it, it + 1, metrics, saved, validate))
        if last:
            break
        if len(unread) == 2 * experiment.pipeline_depth:
            yield experiment.pipeline_depth
    yield len(unread)


class Updates:
    """Makes the updates, each of all slices."""

    def __init__(self, experiment: Experiment, actors: ActorGroup) -> None:
        self._actors, self._multi_round = actors, experiment.multi_round
        self._meta = actors.server.meta.remote()

    def make(self, it: int) -> Ref[Row]:
        """Update `it`; its metrics."""
        actors = self._actors
        shards = [actors.shard(slice) for slice in range(actors.slices)]
        self._meta, metrics = meta_iteration(
            actors.server,
            asking(shards),
            actors.get,
            self._meta,
            it,
            multi_round=self._multi_round,
        )
        return metrics


def asking(shards: list[TaskShard]) -> Ask:
    """Asks the shards of slices, those that hold their episodes."""

    def ask(
        method: str, meta: Ref[np.ndarray], it: int, *given: Any, **options: Any
    ) -> list[Ref[Contribution]]:
        return [
            getattr(shard, method).remote(meta, it, *given, slice=slice, **options)
            for slice, shard in enumerate(shards)
        ]

    return ask


def in_blocks(
    experiment: Experiment,
    actors: ActorGroup,
    unread: list[IterationRefs],
    *,
    start: int,
    stop: Callable[[], bool],
) -> Iterator[int]:
    """The same where the shards are linked, and do a block of iterations by themselves."""
    it, count, clock = start, 1, time.monotonic()
    while it < experiment.iterations:
        every = experiment.checkpoint_every
        end = min(it + count, it - it % every + every, experiment.iterations)
        last = end == experiment.iterations or stop()
        keep = last or end % every == 0
        try:
            block = actors.block(end - it, keep=keep)
        except (FloatingPointError, ActorLost):
            yield len(unread)
            raise
        validate = scoring(experiment, actors, block.weights, end - 1) if keep else None
        unread.append(IterationRefs(it, end, block.rows, block.saved if keep else None, validate))
        it = end
        if last:
            break
        if len(unread) > 1:
            done = unread[0].end - unread[0].start
            yield 1
            took, clock = time.monotonic() - clock, time.monotonic()
            count = min(2 * count, MOST_ROWS, max(1, int(done * BLOCK_SECONDS / took)))
    yield len(unread)


def train(
    run: Run,
    actors: ActorGroup,
    *,
    locks: Locks | None = None,
    progress: bool = True,
    callbacks: Callbacks | None = None,
) -> None:
    """Train a run from its last checkpoint to its end, or to one where it is asked to stop.

    `locks` are seen to before the run is written to.

    Raises:
        FloatingPointError: a task diverged, and such are not to be skipped.
        ChildProcessError: too many failures, or a task that ends each process.
        OSError: what was left at the end could not be written to the run; says where it is.
        ValueError: another driver has taken the run over.
    """
    saved = run.saved()
    start = saved[0] if saved else 0
    failure: ActorLost | None = None
    callbacks = callbacks or Callbacks()
    with (
        interruptible() as interrupted,
        RunWriter(run, locks, start=start, quiet=not progress, stop=interrupted) as files,
    ):

        def stop() -> bool:
            return callbacks.stop or interrupted()

        recorder = Recorder(run, actors, files, start=start, callbacks=callbacks)
        try:
            while True:
                try:
                    if failure is not None:
                        saved = actors.drain(failure)
                        actors.reform(saved, stop=stop)
                        if stop():
                            recorder.conclude(saved)
                            return
                    elif saved is not None:
                        actors.restore(saved)
                    start = saved[0] if saved else 0
                    # Weights that were never trained, or a checkpoint whose validation failed.
                    recorder.validate_last()
                    recorder.catch_up(saved)
                    way = in_blocks if actors.linked else loop
                    counts = way(run.experiment, actors, recorder.unread, start=start, stop=stop)
                    recorder.record(freeze_gc(counts))
                    return
                except ActorLost as lost:
                    failure = lost
        except ChildProcessError:
            if saved is not None:
                recorder.conclude(saved)
            raise
        except FloatingPointError:  # nothing since the last good update has changed the state
            with suppress(ActorLost):
                recorder.conclude(actors.reached())
            raise
