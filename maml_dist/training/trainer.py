"""A session of meta-training: prepare a run, take the machines that it needs, train it."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from maml_dist.config.aliases import key_now
from maml_dist.config.compose import compose, override
from maml_dist.config.given import KINDS, again, holds, modules_by_value
from maml_dist.config.plain_yaml import check_path
from maml_dist.config.trust import Trust, allow
from maml_dist.config.user_code import Sources
from maml_dist.loggers.lines import say
from maml_dist.preflight.check import check, check_engine, resolve_engine
from maml_dist.preflight.settings import refuse_unused_settings
from maml_dist.runs.recovered import is_place, recovered
from maml_dist.runs.run import Run
from maml_dist.runs.run_folder import refuse_used, run_folder
from maml_dist.runs.sessions import session
from maml_dist.runs.spaces import note
from maml_dist.runs.trackers import classes
from maml_dist.runtime.backend import Resources
from maml_dist.runtime.local_backend import LocalBackend
from maml_dist.runtime.messages import Start
from maml_dist.runtime.pickling import by_value
from maml_dist.runtime.ray_backend import RayBackend
from maml_dist.training.callbacks import Callback, Callbacks
from maml_dist.training.interruption import forget, raise_received
from maml_dist.training.loop import train
from maml_dist.training.rehearsal import refuse_unpicklable, rehearse
from maml_dist.training.sharing import worth_sharing

# What a resumed run may change: no bits, but for the last line, which changes rounding, and for
# updates that do not wait.
RESUMABLE = (
    *(
        "iterations",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "test_tasks",
        "on_divergence",
        "loggers",
    ),
    *("rollout_workers", "cpus_per_worker", "max_parallel_envs"),
    *(
        "server",
        "servers",
        "max_staleness",
        "backup",
        "placement",
        "heartbeat_timeout",
        "max_failures",
    ),
    *("shards", "cpus_per_shard", "gpus_per_shard"),
)


def meta_train(
    recipe: str | Path | None = None,
    *,
    run: str | Path | None = None,
    resume: str | Path | None = None,
    address: str | None = None,
    local: bool = False,
    progress: bool = True,
    on_iteration: Callback | None = None,
    on_validation: Callback | None = None,
    on_interrupt: Literal["raise", "return"] = "raise",
    trust: Trust = (),
    **overrides: Any,
) -> Run:
    """Meta-train a recipe, or objects, on Ray or in this process.

    Objects of Python stand for class paths: `task`, `model`, `learner` and `outer` may be objects,
    classes, or functions that make them. What can be written as configuration is (dataclasses of
    plain values, classes, `functools.partial`s of classes). All else travels by value: the recipe
    says what it was, and another process gives it again, as in `load(run, model=…)`. A model that
    is an object starts with its own weights; a class or function makes those of the seed.

    Args:
        recipe: a recipe's name, or a YAML file of your own; None where `task`, `model`, `learner`
            and `outer` are all given (and "sinusoid" where no `task` is).
        run: the run's folder; a new one under `runs/` if None.
        resume: a run to go on with instead, or, where its folder is lost, the folder or URI of its
            checkpoints; `iterations` extends it. Objects that its process had are given again.
        address: a Ray cluster; `RAY_ADDRESS` if None, else a Ray started on this machine.
        local: the same classes in this process, without Ray.
        progress: show a progress line.
        on_iteration: called with the numbers of each meta-iteration, in order, as they are read.
        on_validation: called with each row of metrics that holds a validation. Where one of both
            returns True, the run stops at a checkpoint, after the few iterations under way.
        on_interrupt: after Ctrl-C or SIGTERM, once the checkpoint is written, "raise"
            KeyboardInterrupt (SystemExit), or "return" the run as far as it has got.
        trust: folders whose modules may be loaded, or files in them; beside those of `recipe`,
            where it is a file, and of class paths among the overrides.
        overrides: keys of the recipe, as `alpha=0.1` or `**{"learner.alpha": 0.1}`.

    Returns:
        The run, trained; one that was stopped ends at a checkpoint.

    Raises:
        ValueError: a key, value, file or address is wrong, what a run names is not trusted, or the
            machines do not suffice.
        OSError: the run's folder cannot be written.
        FloatingPointError: a meta-gradient is not finite; names the tasks.
        KeyboardInterrupt: Ctrl-C; the run is at a checkpoint.
    """
    for name, value in (("local", local), ("progress", progress)):
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: must be True or False")
    if on_interrupt not in ("raise", "return"):
        raise ValueError(f"on_interrupt={on_interrupt!r}: must be 'raise' or 'return'")
    callbacks = Callbacks(on_iteration, on_validation)
    prepared = prepare(recipe, overrides, run=run, resume=resume, trust=trust)
    forget()
    done = execute(prepared, address=address, local=local, progress=progress, callbacks=callbacks)
    if on_interrupt == "raise":
        raise_received(f"stopped at a checkpoint; meta_train(resume={str(done.path)!r}) goes on")
    return done


def prepare(
    recipe: str | Path | None,
    overrides: Mapping[str, Any],
    *,
    run: str | Path | None = None,
    resume: str | Path | None = None,
    trust: Trust = (),
) -> Run:
    """The run to do, or to go on with; nothing is written yet. Raises as `meta_train` does."""
    if run is not None:
        check_path(run, "the run's folder")
    allow(trust)
    if resume is not None:
        check_path(resume, "the run's folder")
        if is_place(resume):
            before = recovered(resume, folder=run)
        elif run is not None:
            raise ValueError(
                "a run that is resumed stays in its folder: run and resume exclude each other"
            )
        else:
            before = Run.open(resume)
        before.refuse_lost()
        objects = {key: overrides[key] for key in KINDS if key in overrides}
        if objects and holds(before.config):
            before = Run(before.path, again(before.config, objects))
            overrides = {key: value for key, value in overrides.items() if key not in objects}
        fixed = sorted(overrides.keys() - RESUMABLE)
        if fixed:
            meant = key_now(fixed[0], RESUMABLE)
            if meant:
                raise ValueError(f"unknown key {fixed[0]!r}; did you mean {meant!r}?")
            raise ValueError(
                f"a resumed run keeps its {fixed[0]!r}; {', '.join(RESUMABLE)} can change"
            )
        return Run(before.path, override(before.config, overrides))
    if recipe is None and "task" not in overrides:
        recipe = "sinusoid"
    config = compose(recipe, overrides)
    for key in ("init", "checkpoints"):
        if config[key] is not None:
            check_path(config[key], key)
        if config[key] is not None and "://" not in config[key]:
            config[key] = str(Path(config[key]).absolute())
    folder = run_folder(run, config["name"])
    refuse_used(folder)
    new = Run(folder, config)
    refuse_occupied(new)
    return new


def refuse_occupied(new: Run) -> None:
    """Raise ValueError where a run that is to begin finds checkpoints in its place."""
    if new.checkpoints.last is not None:
        raise ValueError(
            f"checkpoints={new.checkpoints.folder.path}: holds the checkpoints of another run"
        )


def execute(
    run: Run,
    *,
    address: str | None = None,
    local: bool = False,
    progress: bool = True,
    callbacks: Callbacks | None = None,
) -> Run:
    """Train a prepared run; returns it with what was decided on these machines."""
    if address is not None and not (isinstance(address, str) and address.strip()):
        raise ValueError(f"address={address!r}: must name a Ray cluster, or be left out")
    resumed = run.begun
    with ExitStack() as held:
        if resumed:
            locks = held.enter_context(run.locked())
            run = Run(run.path, run.config)  # as the driver before has left it
        experiment = run.experiment
        classes(run.config)  # of loggers
        if not resumed:
            refuse_unused_settings(experiment)
        check(experiment, run.initial)
        if not resumed:
            rehearse(run)
        new = not resumed or not (run.path / "recipe.yaml").exists()  # or recovered
        if run.finished:
            if new:
                run.write_recipe(new=True)
            return run
        in_process = local or experiment.iterations == 0
        if not in_process:
            held.enter_context(by_value(modules_by_value() if holds(run.config) else ()))
            refuse_unpicklable(run)
        backend: LocalBackend | RayBackend = LocalBackend() if in_process else RayBackend(address)
        held.enter_context(backend)
        resources = backend.resources(
            experiment.wanted_shards,
            experiment.resource_request,
            most=experiment.slices or experiment.meta_batch,
        )
        if resources.device == "cpu" and experiment.engine.precision == "tf32":
            raise ValueError(
                "engine.precision=tf32: is a GPU's, and this run has none; use float32"
            )
        if resources.device != "cpu":  # where the engine may run otherwise
            check_engine(experiment, run.initial, resources.device)
        engine = resolve_engine(experiment, run.initial, resources.device)
        decided: dict[str, Any] = {
            "gpus_per_shard": resources.gpus,
            **{f"engine.{name}": value for name, value in asdict(engine).items()},
        }
        if experiment.shards is None:
            resources = _worth(run, resources, decided, quiet=not progress)
            decided["shards"] = resources.key
        decided["slices"] = experiment.slices or resources.shards
        run = Run(run.path, override(run.config, decided))
        given = Start(
            *(run.shard_spec, run.initial_vector, run.experiment.outer),
            *(Sources(), run.config["name"]),
            multi_round=run.experiment.multi_round,
            tables=run.initial_tables,
        )
        actors = backend.start(given, resources)
        held.callback(actors.close)
        if not resumed:  # a start that fails before this leaves nothing behind
            locks = held.enter_context(Run(run.path, run.config).locked())
            refuse_occupied(Run(run.path, run.config))  # by one that has come and gone since
        run.write_recipe(new=new)
        note(run.path, experiment.task)
        with session(run.path, locks.folder):
            train(run, actors, locks=locks, progress=progress, callbacks=callbacks)
    return run


def _worth(run: Run, resources: Resources, decided: dict[str, Any], *, quiet: bool) -> Resources:
    """What a run takes for whose shards no number is given: not more than is of use."""
    if resources.shards == 1 or resources.device != "cpu" or run.experiment.relaxed:
        return resources
    alone = Run(run.path, override(run.config, decided | {"slices": run.experiment.slices or 1}))
    worth, seconds = worth_sharing(alone, resources.request)
    if worth:
        return resources
    if not quiet:
        say(f"one shard: an iteration takes {1e3 * seconds:.2g} ms, too little to be shared out")
    return replace(resources, shards=1, least=1)
