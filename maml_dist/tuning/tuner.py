"""A search of a recipe's keys with Ray Tune: begun, or gone on with.

Each trial is the real distributed run, its shards and its parameter server in a placement group of
their own; it is judged by the best of its validations so far.

search.yaml    what is searched, and how     trials/N/      the run of trial N
base.yaml      the recipe that is searched   trials.jsonl, trials.csv, best.yaml: trials.py
study.db       Optuna's, for its dashboard
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from maml_dist.config.compose import compose, override
from maml_dist.config.experiment import Experiment
from maml_dist.config.plain_yaml import check_path
from maml_dist.config.recipe import Config
from maml_dist.loggers.lines import is_json, say, show_table
from maml_dist.preflight.check import check
from maml_dist.runs.folder import Folder, refuse_links_in
from maml_dist.runs.folder import replace as write
from maml_dist.runs.lock import locked
from maml_dist.runs.run import Run
from maml_dist.runs.run_folder import refuse_used, run_folder
from maml_dist.runtime.backend import Resources
from maml_dist.runtime.ray_backend import RayBackend
from maml_dist.training.interruption import interruptible, status
from maml_dist.tuning.draws import Draws
from maml_dist.tuning.finishing import FOLDER, Seeds, crown, plan_of, promote, ranked, space_of
from maml_dist.tuning.fitting import fit, stop
from maml_dist.tuning.judge import Judge, judge
from maml_dist.tuning.live import Live
from maml_dist.tuning.mid_run import refuse_fixed
from maml_dist.tuning.opened import BASE, PLAN, folder_of, judge_of, plan_and_base
from maml_dist.tuning.recorded import read_record
from maml_dist.tuning.search_space import Finish, Mode, Search
from maml_dist.tuning.trial_run import TRIALS, UNWRITTEN
from maml_dist.tuning.trials import BEST, TABLE, Trials, draw_again, text
from maml_dist.tuning.tried import tried

# How long a search trains, how often it looks, where: not what the best recipe is about.
BUDGET = (
    *("iterations", "checkpoint_every", "validation_tasks", "log_every"),
    *("checkpoints", "keep_checkpoints"),
)
# What a search that goes on may change: not what has been drawn, nor how it was judged.
RESUMABLE = ("num_samples", "max_concurrent", "max_failures", "time_budget", "study")

STUDY = "study.db"  # in its folder
# The folders in it to which a search writes, and it itself.
WRITTEN = (".", TRIALS, FOLDER, f"{FOLDER}/{TRIALS}", "tune")


def search(plan: Search, *, run: str | Path | None = None, address: str | None = None) -> int:
    """Run a search in a new folder, `run`, or one under `runs/`.

    Returns:
        The command's exit status.

    Raises:
        ValueError: a key, value, file or address is wrong, or the machines do not suffice.
        OSError: the folder cannot be written.
    """
    if run is not None:
        check_path(run, "the search's folder")
    base, budget = parted(plan)
    folder = run_folder(run, base["name"], kind="tune-")
    refuse_used(folder)
    if any((folder / name).exists() for name in (PLAN, "tune", TRIALS)):
        raise ValueError(f"{folder} already holds a search (--resume goes on with it)")
    return _conduct(plan, override(base, budget), base, folder, address=address, new=True)


def resume(run: str | Path, changes: Mapping[str, Any], *, address: str | None = None) -> int:
    """Go on with a search: what has ended stays, what was begun goes on, what was not starts.

    Args:
        run: its folder; nothing in it is executed.
        changes: keys of the search that may change; `num_samples` extends it.
        address: a Ray cluster.

    Returns, raises: as `search` does.
    """
    fixed = sorted(changes.keys() - RESUMABLE)
    if fixed:
        raise ValueError(
            f"a search that goes on keeps its {fixed[0]!r}; {', '.join(RESUMABLE)} can change"
        )
    folder = folder_of(run)
    refuse_links_in(folder / place for place in WRITTEN)
    plan, base = plan_and_base(folder, changes)
    there = plan_and_base(folder)[0].num_trials
    if plan.stops == "pbt" and plan.num_trials != there:
        raise ValueError(
            f"num_samples={plan.num_samples}: a population stays as large as it began, {there}"
        )
    plan = replace(plan, study=changes.get("study"))  # not where a stranger's file says
    budget = {key: value for key, value in plan.overrides.items() if key in BUDGET}
    config = override(base, budget)
    return _conduct(plan, config, base, folder, address=address, new=False)


def parted(plan: Search) -> tuple[Config, dict[str, Any]]:
    """The recipe that is searched, and what of its keys is of the trials alone."""
    kept = {key: value for key, value in plan.overrides.items() if key not in BUDGET}
    return compose(plan.recipe, kept), {
        key: value for key, value in plan.overrides.items() if key in BUDGET
    }


def _conduct(
    plan: Search, config: Config, base: Config, folder: Path, *, address: str | None, new: bool
) -> int:
    if new:
        experiment, names = try_space(plan, config)
        judged = judge(plan, experiment, config, names=names)
        plan = told(plan, judged)
    else:  # it was tried
        experiment = Run(UNWRITTEN, override(config, tried(plan)[0])).experiment
        judged = judge_of(plan)
    with RayBackend(address) as backend:
        resources = resources_of(backend, experiment)
        with locked(Folder(folder)):
            lines = [] if new else read_record(folder, plan)
            storage = plan.study or f"sqlite:///{folder / STUDY}"
            draws = Draws(plan, maximize=judged.maximize, study=str(folder), storage=storage)
            write(folder / BASE, yaml.safe_dump(base, sort_keys=False).encode())
            write(folder / PLAN, yaml.safe_dump(asdict(plan), sort_keys=False).encode(), new=new)
            trials = Trials(folder, judged, base, lines)
            draw_again(draws, trials, lines)
            interrupted = _fit(plan, config, trials, draws, resources=resources)
            if plan.finish and not interrupted and all(each.ended for each in trials.all.values()):
                if plan.stops == "pbt":
                    promote(trials)
                else:
                    interrupted = _finish(plan, plan.finish, base, trials, resources=resources)
    return _conclude(plan, trials, interrupted=interrupted)


def _finish(
    plan: Search, finish: Finish, base: Config, trials: Trials, *, resources: Resources
) -> bool:
    """Train the best anew over seeds, and score the winner; whether it was interrupted."""
    best = [trial for trial in trials.ranked if trial.counts][: finish.top]
    if not best:
        return False
    seeds = [base["seed"] + 1 + number for number in range(finish.seeds or 3)]
    folder = trials.folder / FOLDER
    folder.mkdir(exist_ok=True)
    runs = Trials(folder, trials.judge, base, read_record(folder, space_of(plan, seeds)))
    units = Seeds(best, seeds, runs)
    longer: dict[str, Any] = {} if finish.iterations is None else {"iterations": finish.iterations}
    if place := plan.overrides.get("checkpoints") or base["checkpoints"]:
        longer["checkpoints"] = f"{place}/{FOLDER}"
    config = override(base, longer)
    if _fit(plan_of(plan, units.total), config, runs, units, resources=resources):
        return True
    finished = ranked(best, seeds, runs)
    for each in finished:
        say(f"trial {each.trial.number} over seeds: {each}", out=True, trial=each.trial.number)
    if not all(run.ended for run in runs.all.values()):
        say(f"the time budget is spent: --resume {trials.folder} goes on", level="warning")
    elif finished[0].whole:
        for line in crown(finished[0], runs, base, trials):
            say(line, out=True)
    return False


def resources_of(backend: RayBackend, experiment: Experiment) -> Resources:
    """What a trial takes: one shard, unless the recipe says more."""
    return backend.resources(
        experiment.wanted_shards or 1,
        experiment.resource_request,
        most=experiment.slices or experiment.meta_batch,
    )


def told(plan: Search, judged: Judge) -> Search:
    """The plan, with the metrics by which it is judged."""
    modes: list[Mode] = ["max" if more else "min" for more in judged.maximize]
    return replace(plan, metric=list(judged.metrics), mode=modes)


def _fit(
    plan: Search, config: Config, trials: Trials, draws: Draws | Seeds, *, resources: Resources
) -> bool:
    """Let Tune run what has not ended; whether it was interrupted."""
    shared = {"shards": resources.shards, "gpus_per_shard": resources.gpus}
    live = Live(trials, total=plan.num_trials, iterations=config["iterations"])
    folder = trials.folder.parent if isinstance(draws, Seeds) else trials.folder
    says = f"stops; --resume {folder} goes on"
    with live, interruptible(says=says, then=stop) as interrupted:
        fit(plan, override(config, shared), trials, draws, resources=resources, live=live)
        for trial in trials.all.values():
            if not trial.ended:
                trial.status = "interrupted"
        trials.write()
        return interrupted()


def _conclude(plan: Search, trials: Trials, *, interrupted: bool) -> int:
    _show(trials)
    if len(trials.judge.metrics) > 1:
        front = [each.number for each in trials.front]
        say(f"the Pareto front: trials {', '.join(map(str, front))}", out=True, trials=front)
    best, folder = trials.best, trials.folder
    if best:
        line = f"search: {folder}  the best: {trials.command}"
        say(line, out=True, search=folder, trial=best.number, best=folder / BEST)
    ended = sum(trial.ended for trial in trials.all.values())
    if interrupted:
        said = f"interrupted: {ended} of {plan.num_trials} trials have ended"
        say(f"{said}; --resume {folder} goes on", level="warning")
        return status()
    if ended < len(trials.all):
        say(f"the time budget is spent: --resume {folder} goes on", level="warning")
    elif ended < plan.num_trials:
        say(f"there are no more than {ended} different trials", level="warning")
    if not best:
        raise ChildProcessError(f"no trial has a score; see {folder / TABLE}")
    return 0


def _show(trials: Trials) -> None:
    """Print the table, shorter, the errors below it; or a line of JSON a trial."""
    if is_json():
        for trial in trials.ranked:
            scores = dict(zip(trials.judge.metrics, trial.end.scores or [], strict=False))
            known = {**asdict(trial.end), "scores": scores, "status": trial.status}
            say(f"trial {trial.number}", out=True, trial=trial.number, values=trial.values, **known)
        return
    columns, rows = trials.table()
    table = Table(title=f"score: the {trials.judge.title} of a trial")
    for column in columns[:-1]:
        table.add_column(column.rpartition(".")[2], overflow="fold")
    for row in rows:
        table.add_row(*map(text, row[:-1]))
    show_table(table)
    for trial in trials.ranked:
        if trial.end.error:
            print(f"trial {trial.number}: {trial.end.error}")


def try_space(plan: Search, config: Config) -> tuple[Experiment, list[str]]:
    """Try every end of every distribution on a task: what cannot work is said before it starts.

    Returns one of the experiments tried, since what trials share is the same in all, and the names
    of the scores of its task.
    """
    if plan.stops == "pbt":
        refuse_fixed(plan, config)
    for drawn in tried(plan):
        run = Run(UNWRITTEN, override(config, drawn))
        names = check(run.experiment, run.initial)
        judge(plan, run.experiment, run.config, names=names)  # each has what it is judged by
    experiment = run.experiment
    if not experiment.iterations or not experiment.cpus_per_shard:
        raise ValueError("iterations=0 or cpus_per_shard=0: a search needs some of both")
    if isinstance(experiment.shards, dict):
        raise ValueError(f"shards={experiment.shards}: those of a trial are a number")
    return experiment, names
