"""Ray Tune over a recipe.

Each trial is the real distributed run, its shards and its parameter server in a placement group of
their own; it is ranked by the best of its validations so far.
"""

import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from maml_dist.config.compose import compose, override
from maml_dist.config.experiment import Experiment
from maml_dist.config.plain_yaml import check_path
from maml_dist.config.recipe import Config
from maml_dist.config.trust import own
from maml_dist.preflight.check import check
from maml_dist.runs.run import Run
from maml_dist.runs.run_folder import refuse_used, run_folder
from maml_dist.runtime.backend import Resources
from maml_dist.runtime.ray_backend import RayBackend
from maml_dist.training.trainer import meta_train
from maml_dist.tuning.search_space import Search, ends
from maml_dist.tuning.trials import WORST, Trial, show, watch

# How long a search trains and how often it looks: not what the best recipe is about.
BUDGET = ("iterations", "checkpoint_every", "validation_tasks", "log_every", "keep_checkpoints")


def search(plan: Search, *, run: str | Path | None = None, address: str | None = None) -> int:
    """Run a search. The folder `run` gets trials.csv, best.yaml and, in tune/, each trial's run.

    Returns:
        The command's exit status.

    Raises:
        ValueError: a key, value, file or address is wrong, or the machines do not suffice.
        OSError: the folder cannot be written.
    """

    if run is not None:
        check_path(run, "the search's folder")
    config = compose(plan.recipe, plan.settings)
    folder = run_folder(run, config["name"], kind="tune-")
    refuse_used(folder)
    if (folder / "tune").exists():
        raise ValueError(f"{folder} already holds a search")
    experiment = _try(plan, config)
    if not experiment.iterations or not experiment.cpus_per_shard:
        raise ValueError("iterations=0 or cpus_per_shard=0: a search needs some of both")
    if isinstance(experiment.shards, dict):
        raise ValueError(f"shards={experiment.shards}: those of a trial are a number")
    with RayBackend(address) as backend:
        resources = backend.resources(
            experiment.shards or 1,
            experiment.resource_request,
            most=experiment.slices or experiment.meta_batch,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "search.yaml").write_text(yaml.safe_dump(asdict(plan), sort_keys=False))
        trials = _fit(plan, config, experiment, folder=folder, resources=resources)
    metric, sign = _judge(experiment), -1 if experiment.task.maximize else 1
    trials.sort(key=lambda trial: (not trial.counts, sign * (trial.score or 0)))
    title = f"score: the {'highest' if sign < 0 else 'lowest'} {metric} of a trial"
    show(trials, title, file=folder / "trials.csv")
    best = next((trial for trial in trials if trial.counts), None)
    if best:
        comment = f"# trial {best.name}: {metric} {best.score} within {best.iteration} iterations"
        recipe = yaml.safe_dump(best_recipe(plan, best.values), sort_keys=False)
        (folder / "best.yaml").write_text(f"{comment}\n{recipe}")
        print(f"search: {folder}  the best: python -m maml_dist.train {folder / 'best.yaml'}")
    ended = sum(trial.status != "interrupted" for trial in trials)
    if ended < plan.num_samples:
        print(f"interrupted: {ended} of {plan.num_samples} trials have ended", file=sys.stderr)
        return 130
    if not best:
        raise ChildProcessError(f"no trial has a score; see {folder / 'tune'}")
    return 0


def best_recipe(plan: Search, values: dict[str, Any]) -> Config:
    """The searched recipe with `values`, to be trained as long as the recipe says."""

    kept = {key: value for key, value in plan.settings.items() if key not in BUDGET}
    return override(compose(plan.recipe, kept), values)


def _try(plan: Search, config: Config) -> Experiment:
    """Try the ends of every distribution on a task: what cannot work is said before it starts.

    Returns one of the experiments tried; what trials share is the same in all.
    """

    choices = {key: ends(distribution) for key, distribution in plan.search.items()}
    for i in range(max(len(values) for values in choices.values())):
        drawn = {key: values[i % len(values)] for key, values in choices.items()}
        tried = Run(Path("unwritten"), override(config, drawn))
        check(tried.experiment, tried.initial)
    return tried.experiment


def _judge(experiment: Experiment) -> str:
    """The metric by which trials are ranked: the one by which a run chooses its checkpoint."""
    return f"val/{experiment.task.metric}/path"


def _fit(
    plan: Search,
    config: Config,
    experiment: Experiment,
    *,
    folder: Path,
    resources: Resources,
) -> list[Trial]:
    """Let Tune run the trials."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with it a banner comes even with verbose=0
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths in a recipe stay what they are
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller", "optuna"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what failed is said in the table
    iterations, seed = experiment.iterations, experiment.seed
    metric, maximize = _judge(experiment), experiment.task.maximize
    watched = watch(iterations, num_samples=plan.num_samples)
    asha = AsyncHyperBandScheduler(
        time_attr="iteration",
        max_t=iterations,
        grace_period=min(plan.grace_period, iterations),
        reduction_factor=plan.reduction_factor,
    )
    shard = {"CPU": resources.request.cpus, "GPU": resources.gpus}
    # The first bundle is the driver's: it only passes references on and needs no core of its own.
    each = [shard] + [{"CPU": resources.request.worker_cpus}] * resources.request.workers
    bundles = tune.PlacementGroupFactory([{}] + each * resources.shards, strategy="PACK")
    shared = {"checkpoints": None, "shards": resources.shards, "gpus_per_shard": resources.gpus}
    config, here = override(config, shared), folder / "tune"
    tuner = tune.Tuner(
        tune.with_resources(_trainable(config, here, metric=metric, maximize=maximize), bundles),
        param_space={
            key: getattr(tune, name)(*([arguments] if name == "choice" else arguments))
            for key, distribution in plan.search.items()
            for name, arguments in distribution.items()
        },
        tune_config=tune.TuneConfig(
            metric="best",
            mode="max" if maximize else "min",
            num_samples=plan.num_samples,
            max_concurrent_trials=plan.max_concurrent,
            search_alg=OptunaSearch(seed=seed)
            if plan.algorithm == "optuna"
            else BasicVariantGenerator(random_state=seed),
            scheduler=asha if plan.scheduler == "asha" else FIFOScheduler(),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=here.name, storage_path=str(folder), verbose=0, callbacks=[watched]
        ),
    )
    tuner.fit()
    return list(watched.rows.values())


def _trainable(
    config: Config, folder: Path, *, metric: str, maximize: bool
) -> Callable[[dict[str, Any]], None]:
    """A trial: the whole distributed run in `folder`, with the values that Tune drew."""

    def trial(values: dict[str, Any]) -> None:
        from ray import tune

        for trusted in config["code"]:  # by the process of the search
            own(trusted)
        here = folder / tune.get_context().get_trial_id()
        here.mkdir(parents=True, exist_ok=True)
        recipe = here / "trial.yaml"
        recipe.write_text(yaml.safe_dump(override(config, values), sort_keys=False))
        best = -WORST if maximize else WORST

        def report(row: dict[str, Any]) -> None:
            nonlocal best
            if math.isfinite(row[metric]):
                best = max(best, row[metric]) if maximize else min(best, row[metric])
            tune.report({"iteration": row["iteration"], "best": best})

        meta_train(recipe, run=here / "run", progress=False, on_validation=report)

    return trial
