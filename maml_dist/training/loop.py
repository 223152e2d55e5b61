"""The loop of meta-training, from a run's last checkpoint to its end.

One meta-iteration goes one way: shards (gradients of their tasks) -> server (the beta update) ->
shards. Only references pass through this process, which submits several iterations ahead.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from maml_dist.config.experiment import Experiment
from maml_dist.runs.metrics import Metrics
from maml_dist.runs.run import Run
from maml_dist.runtime.allocator import freeze_gc
from maml_dist.runtime.backend import ActorGroup
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.remote import Ref
from maml_dist.training.recorder import IterationRefs, Row, due, keep, record


def loop(
    experiment: Experiment, actors: ActorGroup, *, start: int, stop: Callable[[], bool]
) -> Iterator[list[IterationRefs]]:
    """The loop. Yields what there is to read of each iteration, several at once and later.

    In this process a task that diverges raises here, and what is unread is yielded before.
    """
    unread: list[IterationRefs] = []
    meta = actors.server.meta.remote()
    for it in range(start, experiment.iterations):
        try:
            parts = [shard.gradient.remote(meta, it) for shard in actors.shards]
            if experiment.multi_round:
                run_rounds(actors, parts, meta, it)
        except FloatingPointError:
            yield unread
            raise
        if experiment.multi_round:
            meta, metrics = actors.server.finish_update.remote()
        else:
            meta, metrics = actors.server.update.remote(*parts)
        saved = validate = None
        last = it + 1 == experiment.iterations or stop()
        if last or (it + 1) % experiment.checkpoint_every == 0:
            saved, validate = due(experiment, actors, it)
        unread.append(IterationRefs(it + 1, metrics, saved, validate))
        if last:
            break
        if len(unread) == 2 * experiment.pipeline_depth:
            yield unread[: experiment.pipeline_depth]
            del unread[: experiment.pipeline_depth]
    yield unread


def run_rounds(
    actors: ActorGroup, parts: list[Ref[Contribution]], meta: Ref[np.ndarray], it: int
) -> None:
    """An update that asks back (TRPO's line search, how far Adam went): until all is answered."""
    while True:
        question, at = actors.server.next_request.remote(*parts)
        what, options = actors.get(question)
        if not what:
            return
        parts = [getattr(shard, what).remote(meta, it, at, **options) for shard in actors.shards]


def train(
    run: Run,
    actors: ActorGroup,
    *,
    progress: bool = True,
    on_validation: Callable[[Row], None] = lambda row: None,
) -> None:
    """Train a run from its last checkpoint to its end, or to a checkpoint when interrupted."""
    saved = run.saved()
    start = saved[0] if saved else 0
    if saved:
        actors.get(actors.server.restore.remote(saved))
    metrics = Metrics(run.path, start=start, total=run.experiment.iterations, quiet=not progress)
    last = run.checkpoints.last
    try:
        with _interruptible() as stop:
            # Weights that were never trained, or a checkpoint whose validation failed.
            if run.experiment.iterations == 0 or (last and not last.validated):
                refs = due(run.experiment, actors, max(0, start - 1))
                row: Row = {"iteration": start}
                keep(run, actors, *refs, row, log=metrics.log, on_validation=on_validation)
            batches = freeze_gc(loop(run.experiment, actors, start=start, stop=stop))
            record(run, actors, batches, log=metrics.log, on_validation=on_validation)
    except FloatingPointError:  # nothing since the last good update has changed the server
        state = actors.get(actors.server.state.remote())
        if state[0] > (run.checkpoints.last.iteration if run.checkpoints.last else -1):
            run.save(state)
        raise
    finally:
        metrics.close()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C or a termination asks the loop to end at a checkpoint; a second insists."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
