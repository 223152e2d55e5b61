"""python -m maml_dist.train [RECIPE | FILE.yaml] [key=value …]

One meta-iteration goes one way: shards (gradients of their tasks) -> server (the beta update) ->
shards. Only references pass through this process, which submits several iterations ahead.
"""

import argparse
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maml_dist.command import guarded

if TYPE_CHECKING:
    from maml_dist.experiment import Experiment
    from maml_dist.run import Run
    from maml_dist.runtime.launch import Crew

Row = dict[str, Any]
RESUMABLE = ("iterations", "checkpoint_every", "keep", "log_every", "test_tasks")  # changes no bits


class Report(NamedTuple):
    """What is read of an iteration later: references."""

    iteration: int
    metrics: Any
    scores: list[Any] | None  # validation, of each shard; with it comes a checkpoint
    saved: Any


def loop(
    experiment: "Experiment", crew: "Crew", *, start: int, stop: Callable[[], bool]
) -> Iterator[Report]:
    """The loop. Yields what there is to read of each iteration, several iterations late."""
    unread: deque[Report] = deque()
    meta = crew.server.meta.remote()
    if experiment.iterations == 0:  # nothing to do but to keep the untrained weights
        yield Report(0, {}, _validate(experiment, crew, meta, 0), crew.server.state.remote())
    for it in range(start, experiment.iterations):
        parts = [shard.gradient.remote(meta, it) for shard in crew.shards]
        meta, metrics = crew.server.update.remote(*parts)
        scores = saved = None
        last = it + 1 == experiment.iterations or stop()
        if last or (it + 1) % experiment.checkpoint_every == 0:
            scores = _validate(experiment, crew, meta, it)
            saved = crew.server.state.remote()
        unread.append(Report(it + 1, metrics, scores, saved))
        if last:
            break
        while len(unread) > experiment.ahead:
            yield unread.popleft()
    yield from unread


def _validate(experiment: "Experiment", crew: "Crew", meta: Any, it: int) -> list[Any]:
    tasks, steps = experiment.validation_tasks, experiment.test_steps
    return [
        shard.scores.remote(meta, it, split="val", tasks=tasks, steps=steps)
        for shard in crew.shards
    ]


def record(
    run: "Run",
    crew: "Crew",
    reports: Iterator[Report],
    *,
    log: Callable[[Row], None],
    on_validation: Callable[[Row], None],
) -> None:
    """Read the loop's reports: rows of metrics, validations, checkpoints."""
    import numpy as np

    experiment = run.experiment
    window: list[Row] = []
    clock = time.monotonic()
    for report in reports:
        window.append(crew.get(report.metrics))
        done = report.scores is not None
        if not done and report.iteration % experiment.log_every:
            continue
        rate = len(window) / max(time.monotonic() - clock, 1e-9)
        row = {name: sum(row[name] for row in window) / len(window) for name in window[0]}
        row |= {"it_per_s": rate, "tasks_per_s": rate * experiment.meta_batch}
        if done:
            parts = [part for part in crew.get(report.scores) if part]
            scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            row |= {f"val/{name}": float(value[:, -1].mean()) for name, value in scores.items()}
            before = scores[experiment.task.metric][:, 0]
            row[f"val/{experiment.task.metric}/before"] = float(before.mean())
            run.save(crew.get(report.saved), row[f"val/{experiment.task.metric}"])
        row = {"iteration": report.iteration, **row}
        log(row)
        if done:
            on_validation(row)
        window, clock = [], time.monotonic()


def train(
    run: "Run",
    crew: "Crew",
    *,
    progress: bool = True,
    on_validation: Callable[[Row], None] = lambda row: None,
) -> None:
    """Train a run from its last checkpoint to its end; every way out leaves a checkpoint."""
    from maml_dist.runtime.metrics import Metrics

    saved = run.saved()
    start = saved[0] if saved else 0
    if saved:
        crew.get(crew.server.restore.remote(saved))
    metrics = Metrics(run.path, start=start, total=run.experiment.iterations, quiet=not progress)
    try:
        with _interruptible() as stop:
            reports = loop(run.experiment, crew, start=start, stop=stop)
            record(run, crew, reports, log=metrics.log, on_validation=on_validation)
    finally:
        metrics.close()


def meta_train(
    recipe: str | Path = "sinusoid",
    *,
    run: str | Path | None = None,
    resume: str | Path | None = None,
    address: str | None = None,
    local: bool = False,
    progress: bool = True,
    on_validation: Callable[[Row], None] = lambda row: None,
    **overrides: Any,
) -> "Run":
    """Meta-train a recipe, on Ray or in this process.

    Args:
        recipe: a recipe's name, or a YAML file of your own.
        run: the run's folder; a new one under `runs/` if None.
        resume: a run to go on with instead; `iterations` extends it.
        address: a Ray cluster; `RAY_ADDRESS` if None, else a Ray started on this machine.
        local: the same classes in this process, without Ray.
        progress: show a progress line.
        on_validation: called with each row of metrics that holds a validation.
        overrides: keys of the recipe, as `alpha=0.1` or `**{"learner.alpha": 0.1}`.

    Returns:
        The run, trained; interrupted runs end at a checkpoint.

    Raises:
        ValueError: a key, value, file or address is wrong, or the machines do not suffice.
        OSError: the run's folder cannot be written.
    """
    from maml_dist.check import check
    from maml_dist.core.params import flatten
    from maml_dist.experiment import override, user_modules
    from maml_dist.run import Run
    from maml_dist.runtime.launch import InProcess, OnRay

    before = _prepare(recipe, run, resume, overrides)
    experiment = before.experiment
    check(experiment, before.initial)
    if before.finished:
        return before
    with InProcess() if local or experiment.iterations == 0 else OnRay(address) as place:
        resources = place.resources(
            experiment.shards,
            cpus=experiment.cpus_per_shard,
            gpus=experiment.gpus_per_shard,
            most=experiment.meta_batch,
        )
        decided = {
            "shards": resources.shards,
            "gpus_per_shard": resources.gpus,
            "engine.batching": experiment.engine.resolve(
                experiment.model, resources.device
            ).batching,
        }
        current = Run(before.path, override(before.config, decided))
        current.write_recipe()
        crew = place.crew(
            current.work,
            flatten(current.initial).numpy(),
            outer=experiment.outer,
            resources=resources,
            modules=user_modules(current.config),
        )
        try:
            train(current, crew, progress=progress, on_validation=on_validation)
        finally:
            crew.close()
    return current


def _prepare(
    recipe: str | Path, path: str | Path | None, resume: str | Path | None, overrides: Row
) -> "Run":
    """The run to do, nothing of it written yet."""
    from maml_dist.experiment import compose, override
    from maml_dist.run import Run, refuse_used

    if resume is not None:
        run = Run.open(resume)
        fixed = sorted(overrides.keys() - RESUMABLE)
        if fixed:
            raise ValueError(
                f"a resumed run keeps its {fixed[0]!r}; {', '.join(RESUMABLE)} can change"
            )
        return Run(run.path, override(run.config, overrides))
    config = compose(recipe, overrides)
    if config["init"] is not None:
        config["init"] = str(Path(config["init"]).absolute())
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(path or Path("runs") / f"{config['name']}-{stamp}").absolute()
    refuse_used(folder)
    return Run(folder, config)


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
    parser = argparse.ArgumentParser(
        prog="python -m maml_dist.train",
        usage="%(prog)s [RECIPE | FILE.yaml] [key=value ...] [options]",
        description="Meta-train a recipe on Ray, evaluate it and draw its pictures.",
        epilog="Keys are those of --print-config: iterations=1000, learner.alpha=0.1, or alpha=0.1 "
        "where the name occurs once. Keys of every recipe: iterations, shards, seed, init=RUN.",
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE key=value", help="default: sinusoid")
    parser.add_argument("--run", metavar="DIR", help="the run's folder (default: new, under runs/)")
    parser.add_argument("--resume", metavar="DIR", help="go on with a run; iterations=N extends it")
    parser.add_argument("--address", help="a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    parser.add_argument("--local", action="store_true", help="all in this process, without Ray")
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
    words = options.words
    recipe = words.pop(0) if words and "=" not in words[0] else None
    overrides = parse_overrides(words)
    if options.resume and (recipe or options.run):
        raise ValueError("--resume goes on with a run as it is: no RECIPE and no --run beside it")
    if options.print_config:
        import yaml

        before = _prepare(recipe or "sinusoid", options.run, options.resume, overrides)
        print(yaml.safe_dump(before.config, sort_keys=False), end="")
        return 0
    run = meta_train(
        recipe or "sinusoid",
        run=options.run,
        resume=options.resume,
        address=options.address,
        local=options.local,
        **overrides,
    )
    return _conclude(run)


def _conclude(run: "Run") -> int:
    """Evaluate a run and draw it; an interrupted one says how to go on."""
    from maml_dist.evaluate import show
    from maml_dist.report import report

    if not run.finished:
        last = run.checkpoints.last
        print(
            f"stopped at iteration {last.iteration if last else 0}; go on with --resume {run.path}"
        )
        return 130
    show(run.evaluate(), run.experiment.paper)
    report(run)
    print(f"run: {run.path}  pictures: {run.path / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
