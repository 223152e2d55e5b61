"""Dry run: what a search would do, on these machines, and about how long it would take."""

import math
from typing import Any

from rich.table import Table

from maml_dist.config.compose import override
from maml_dist.loggers.lines import duration, is_json, say, show_table
from maml_dist.runs.run import Run
from maml_dist.runtime.backend import Resources
from maml_dist.runtime.ray_backend import RayBackend
from maml_dist.training.sharing import iteration_seconds
from maml_dist.tuning.distributions import tried
from maml_dist.tuning.judge import judge
from maml_dist.tuning.population import interval
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trial_run import UNWRITTEN
from maml_dist.tuning.trials import text
from maml_dist.tuning.tried import tried as draws_tried
from maml_dist.tuning.tuner import parted, resources_of, try_space


def dry_run(plan: Search, *, address: str | None = None) -> int:
    """Print it; nothing is written. Raises as `search` does; returns the exit status."""
    base, budget = parted(plan)
    config = override(base, budget)
    experiment, names = try_space(plan, config)
    judged = judge(plan, experiment, config, names=names)
    table = Table(title=f"{plan.recipe}: {plan.num_trials} trials, {plan.algorithm} draws")
    columns = "key", "distribution", "when", "tried"
    for column in columns:
        table.add_column(column, overflow="fold")
    for key in plan.order:
        (kind,) = (name for name in plan.search[key] if name != "when")
        when = " and ".join(
            f"{parent}: {' or '.join(map(text, values))}"
            for parent, values in plan.conditions(key).items()
        )
        drawn = ", ".join(map(text, tried(plan.search[key])))
        cells: tuple[Any, ...] = key, f"{kind} {plan.search[key][kind]}", when, drawn
        table.add_row(*cells)
        if is_json():
            say(f"{key} is searched", out=True, **dict(zip(columns, cells, strict=True)))
    if not is_json():
        show_table(table)
    with RayBackend(address) as backend:
        resources = resources_of(backend, experiment)
        at_once = _at_once(resources)
    at_once = min(at_once, plan.max_concurrent or at_once, plan.num_trials)
    does = "stops no trial" if plan.stops == "fifo" else "stops trials"
    if plan.stops == "pbt":
        does = f"has the worst take over the best each {interval(plan, config)} iterations"
    say(f"judged by the {judged.title}; {plan.stops} {does}", out=True)
    gpus = f", {resources.gpus * resources.shards:g} GPUs" if resources.gpus else ""
    say(
        f"a trial: up to {experiment.iterations} iterations, shards: {resources.shards}, "
        f"{resources.all_cpus:g} CPUs{gpus}; {at_once} at once",
        out=True,
    )
    one = Run(UNWRITTEN, override(config, {**draws_tried(plan)[0], "slices": 1}))
    seconds = iteration_seconds(one, resources.request)
    if math.isfinite(seconds):
        rounds = math.ceil(plan.num_trials / at_once)
        about = float(f"{1e3 * seconds:.2g}")
        whole = rounds * experiment.iterations * seconds / resources.shards
        say(
            f"an iteration: about {about:,g} ms on one core; all trials to their ends: about "
            f"{duration(whole)} beside starts and validations",
            out=True,
        )
    return 0


def _at_once(resources: Resources) -> int:
    """How many trials there is room for on the machines that there are."""
    import ray

    there = ray.cluster_resources()
    room = [there.get("CPU", 0) / resources.all_cpus if resources.all_cpus else math.inf]
    if resources.gpus:
        room.append(there.get("GPU", 0) / (resources.gpus * resources.shards))
    return max(1, int(min(room)))
