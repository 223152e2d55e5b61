"""python -m maml_dist.train [RECIPE | FILE.yaml] [key=value …]

One meta-iteration goes one way: shards (gradients of their tasks) -> server (the beta update) ->
shards. Only references pass through this process, which submits several iterations ahead.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from maml_dist.command import Parser, add_trust, guarded
from maml_dist.runtime.memory import sparing
from maml_dist.validation import Row, due, keep

if TYPE_CHECKING:
    from maml_dist.experiment import Experiment
    from maml_dist.run import Run
    from maml_dist.runtime.launch import Crew


class Report(NamedTuple):
    """What is read of an iteration later: references."""

    iteration: int
    metrics: Any
    saved: Any  # the server's state, where a checkpoint is due
    validate: Callable[[], list[Any]] | None  # then scores that, a result of each shard


def loop(
    experiment: "Experiment", crew: "Crew", *, start: int, stop: Callable[[], bool]
) -> Iterator[list[Report]]:
    """The loop. Yields what there is to read of each iteration, several at once and later.

    In this process a task that diverges raises here, and what is unread is yielded before.
    """
    unread: list[Report] = []
    meta = crew.server.meta.remote()
    for it in range(start, experiment.iterations):
        try:
            parts = [shard.gradient.remote(meta, it) for shard in crew.shards]
            if experiment.asks:
                _converse(crew, parts, meta, it)
        except FloatingPointError:
            yield unread
            raise
        if experiment.asks:
            meta, metrics = crew.server.settle.remote()
        else:
            meta, metrics = crew.server.update.remote(*parts)
        saved = validate = None
        last = it + 1 == experiment.iterations or stop()
        if last or (it + 1) % experiment.checkpoint_every == 0:
            saved, validate = due(experiment, crew, it)
        unread.append(Report(it + 1, metrics, saved, validate))
        if last:
            break
        if len(unread) == 2 * experiment.ahead:
            yield unread[: experiment.ahead]
            del unread[: experiment.ahead]
    yield unread


def _converse(crew: "Crew", parts: list[Any], meta: Any, it: int) -> None:
    """An update that asks back (TRPO's line search, how far Adam went): until all is answered."""
    while True:
        question, at = crew.server.ask.remote(*parts)
        what, options = crew.get(question)
        if not what:
            return
        parts = [getattr(shard, what).remote(meta, it, at, **options) for shard in crew.shards]


def record(
    run: "Run",
    crew: "Crew",
    batches: Iterator[list[Report]],
    *,
    log: Callable[[Row], None],
    on_validation: Callable[[Row], None],
) -> None:
    """Read the loop's reports: rows of metrics, validations, checkpoints."""
    experiment = run.experiment
    window: list[Row] = []  # the metrics since the last row
    counted, clock = 0, time.monotonic()
    told = {""}
    for batch, read in _read(crew, batches):
        for said in {metrics.get("said", "") for metrics in read} - told:
            print(said, file=sys.stderr)
            told.add(said)
        counted += len(batch)
        pace = counted / max(time.monotonic() - clock, 1e-9)
        for report, metrics in zip(batch, read, strict=False):
            window.append(metrics)
            if report.validate is None and report.iteration % experiment.log_every:
                continue
            row: Row = {"iteration": report.iteration}
            row |= _summary(window)
            row |= {"it_per_s": pace, "tasks_per_s": pace * experiment.meta_batch}
            if "steps/after" in row:  # of the environments, by one task
                row["steps_per_s"] = row["steps/after"] * row["tasks_per_s"]
            if report.validate is None:
                log(row)
            else:
                state = report.saved, report.validate
                keep(run, crew, *state, row, log=log, on_validation=on_validation)
            window = []
        if not window:
            counted, clock = 0, time.monotonic()


def _read(
    crew: "Crew", batches: Iterator[list[Report]]
) -> Iterator[tuple[list[Report], list[Row]]]:
    """Reports with their metrics; where a task diverged, those before it, and then its error."""
    for batch in batches:
        read: list[Row] = []
        try:
            read = crew.get([report.metrics for report in batch])
        except FloatingPointError:
            for report in batch:
                try:
                    read.append(crew.get(report.metrics))
                except FloatingPointError:
                    break
            yield batch, read
            raise
        yield batch, read


def _summary(window: list[Row]) -> Row:
    """The means of the metrics since the last row; of tasks that were skipped, count and names."""
    told = {name: value for each in window for name, value in each.items()}  # some not by each
    names = [name for name, value in told.items() if not isinstance(value, str)]
    row: Row = {}
    for name in names:
        numbers = [each[name] for each in window if not math.isnan(each.get(name, math.nan))]
        row[name] = sum(numbers) / len(numbers) if numbers else math.nan
    skipped = " ".join(filter(None, (each.get("skipped/tasks", "") for each in window)))
    return row | ({"skipped": len(skipped.split()), "skipped/tasks": skipped} if skipped else {})


def train(
    run: "Run",
    crew: "Crew",
    *,
    progress: bool = True,
    on_validation: Callable[[Row], None] = lambda row: None,
) -> None:
    """Train a run from its last checkpoint to its end, or to a checkpoint when interrupted."""
    from maml_dist.runtime.metrics import Metrics

    saved = run.saved()
    start = saved[0] if saved else 0
    if saved:
        crew.get(crew.server.restore.remote(saved))
    metrics = Metrics(run.path, start=start, total=run.experiment.iterations, quiet=not progress)
    last = run.checkpoints.last
    try:
        with _interruptible() as stop:
            # Weights that were never trained, or a checkpoint whose validation failed.
            if run.experiment.iterations == 0 or (last and not last.validated):
                state = due(run.experiment, crew, max(0, start - 1))
                row: Row = {"iteration": start}
                keep(run, crew, *state, row, log=metrics.log, on_validation=on_validation)
            batches = sparing(loop(run.experiment, crew, start=start, stop=stop))
            record(run, crew, batches, log=metrics.log, on_validation=on_validation)
    except FloatingPointError:  # nothing since the last good update has changed the server
        state = crew.get(crew.server.state.remote())
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


def main(arguments: list[str]) -> int:
    """`python -m maml_dist.train`."""
    parser = Parser(
        prog="python -m maml_dist.train",
        usage="%(prog)s [RECIPE | FILE.yaml] [key=value ...] [options]",
        description="Meta-train a recipe on Ray, evaluate it and draw its pictures.",
        epilog="Keys are those of --print-config: iterations=1000, learner.alpha=0.1, or alpha=0.1 "
        "where the name occurs once; classes too: learner=Reptile, learner.inner=Adam. Keys of "
        "every recipe: iterations, shards, seed, init=RUN.",
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE key=value", help="default: sinusoid")
    parser.add_argument("--run", metavar="DIR", help="the run's folder (default: new, under runs/)")
    parser.add_argument("--resume", metavar="DIR", help="go on with a run; iterations=N extends it")
    parser.add_argument("--address", help="a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    parser.add_argument("--local", action="store_true", help="all in this process, without Ray")
    add_trust(parser)
    parser.add_argument("--list", action="store_true", help="list the recipes and leave")
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration, leave"
    )
    options = parser.parse_intermixed_args(arguments)

    from maml_dist.recipe import parse_overrides, recipes

    if options.list:
        for name, description in recipes().items():
            print(f"{name:36} {description}")
        return 0
    from maml_dist.session import execute, prepare

    words = options.words
    named = bool(words) and "=" not in words[0]
    recipe = words.pop(0) if named else "sinusoid"
    overrides = parse_overrides(words)
    if options.local and options.address is not None:
        raise ValueError("--local uses no cluster, --address names one: give one of them")
    if options.resume is not None and (named or options.run is not None):
        raise ValueError("--resume goes on with a run as it is: no RECIPE and no --run beside it")
    before = prepare(recipe, overrides, run=options.run, resume=options.resume, trust=options.trust)
    if options.print_config:
        import yaml

        print(yaml.safe_dump(before.config, sort_keys=False), end="")
        return 0
    if before.finished and options.resume and (before.path / "evaluation.json").exists():
        print(f"{before.path} is finished; iterations=N beyond {_reached(before)} extends it")
        return 0
    return _conclude(execute(before, address=options.address, local=options.local))


def _conclude(run: "Run") -> int:
    """Evaluate a run and draw it; an interrupted one says how to go on."""
    from maml_dist.evaluate import show
    from maml_dist.report import report
    from maml_dist.trust import flags

    if not run.finished:
        trusted = flags(run.config["code"])
        print(f"stopped at iteration {_reached(run)}; go on with --resume {run.path}{trusted}")
        return 130
    try:
        show(run.evaluate(), run.experiment.published)
        report(run)
    except ValueError as error:
        raise ValueError(f"{run.path} is trained and kept, but {error}") from error
    print(f"run: {run.path}  pictures: {run.path / 'report.html'}")
    return 0


def _reached(run: "Run") -> int:
    last = run.checkpoints.last
    return last.iteration if last else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
