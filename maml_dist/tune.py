"""python -m maml_dist.tune FILE.yaml [key=value …]

Ray Tune over a recipe. Each trial is the real distributed run, its shards and its parameter server
in a placement group of their own; it is judged by the best of its validations so far.
"""

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maml_dist.command import fail, guarded
from maml_dist.recipe import Config, nearest, parse_overrides, read_yaml

if TYPE_CHECKING:
    from maml_dist.experiment import Experiment
    from maml_dist.runtime.launch import Resources

# Ray Tune's names and arguments; `high` of the integers is not drawn, as in Python's range.
DISTRIBUTIONS = {
    "uniform": "[low, high]",
    "loguniform": "[low, high]",
    "randint": "[low, high]",
    "lograndint": "[low, high]",
    "choice": "[value, …]",
}
SHARED = ("iterations", "shards", "cpus_per_shard", "gpus_per_shard", "checkpoints")  # by trials
# How long a search trains and how often it looks: not what the best recipe is about.
BUDGET = ("iterations", "checkpoint_every", "validation_tasks", "log_every", "keep")
WORST = sys.float_info.max  # stands for a score that is not finite; ASHA interpolates scores


@dataclass(frozen=True)
class Search:
    """What is searched, and how. Its fields are the keys of a file."""

    recipe: str  # a recipe's name, or a YAML file
    search: dict[str, dict[str, list[Any]]]  # key of the recipe -> distribution -> its arguments
    overrides: dict[str, Any] = field(default_factory=dict)  # other keys of the recipe -> values
    num_samples: int = 16  # trials
    algorithm: Literal["random", "optuna"] = "random"  # how values are drawn
    scheduler: Literal["asha", "fifo"] = "asha"  # asha stops trials early, fifo none
    grace_period: int = 1000  # asha: meta-iterations that every trial gets
    reduction_factor: int = 3  # asha: one trial in so many goes on, for so many times as long
    max_concurrent: int | None = None  # trials at a time; null: as many as there is room for
    seed: int | None = None  # of the draws, and of every trial; null: the recipe's

    def __post_init__(self) -> None:
        least = {"num_samples": 1, "grace_period": 1, "reduction_factor": 2, "max_concurrent": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name}={value}: must be {bound} or more")
        if not self.search:
            raise ValueError("search: there is no key to search")
        for key, distribution in self.search.items():
            _check_distribution(key, distribution)
            if key in SHARED:
                raise ValueError(f"search.{key}: all trials share it, so it cannot be searched")
            for other in (*self.overrides, *(other for other in self.search if other != key)):
                if key == other or key.endswith(f".{other}") or other.endswith(f".{key}"):
                    raise ValueError(f"search.{key}: the value of {other} is set already")

    @property
    def settings(self) -> dict[str, Any]:
        """The overrides that all trials share."""
        return self.overrides if self.seed is None else {**self.overrides, "seed": self.seed}


@dataclass
class Trial:
    """A row of the table; it changes while the trial runs."""

    name: str  # of its folder
    values: dict[str, Any]  # the searched keys
    iteration: int = 0  # reached at its last validation
    score: float | None = None  # the best so far; None before the first
    status: str = "interrupted"  # unless Tune says how it ended

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.status.startswith("failed")


def read(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Search:
    """A search from its file; `overrides` may name keys of the search and of the recipe.

    Raises:
        ValueError: in one line, the key, the value, what is allowed and the nearest valid name.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    names = [item.name for item in fields(Search)]
    ours = {key: value for key, value in (overrides or {}).items() if key in names}
    content = {key: value for key, value in {**read_yaml(file), **ours}.items() if value is not None}
    for key in content.keys() - names:
        guess = nearest(str(key), names)
        raise ValueError(f"{file}: unknown key {key!r}{guess} (there are {', '.join(names)})")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Search, fail_untyped=False)
    try:
        plan = Search(**vars(parser.instantiate(parser.parse_object(content))))
    except ArgumentError as error:
        raise ValueError(f"{file}: {' '.join(error.message.split())}") from None
    others = {key: value for key, value in (overrides or {}).items() if key not in names}
    return replace(plan, overrides={**plan.overrides, **others})


def _check_distribution(key: str, distribution: Mapping[str, list[Any]]) -> None:
    if len(distribution) != 1:
        raise ValueError(f"search.{key}: takes one distribution, not {len(distribution)}")
    ((name, arguments),) = distribution.items()
    if name not in DISTRIBUTIONS:
        allowed = ", ".join(DISTRIBUTIONS)
        guess = nearest(name, list(DISTRIBUTIONS))
        raise ValueError(f"search.{key}: no distribution {name!r}{guess} (there are {allowed})")
    said = f"search.{key}: {name} takes {DISTRIBUTIONS[name]}, not {arguments}"
    if name == "choice":
        if not arguments:
            raise ValueError(said)
        return
    kinds = (int,) if "int" in name else (int, float)
    if len(arguments) != 2 or not all(type(bound) in kinds for bound in arguments):
        raise ValueError(f"{said} ({'whole numbers' if kinds == (int,) else 'numbers'})")
    low, high = arguments
    if not -math.inf < low < high < math.inf or ("log" in name and low <= 0):
        raise ValueError(f"{said} ({'0 < ' if 'log' in name else ''}low < high)")


def _extremes(distribution: Mapping[str, list[Any]]) -> list[Any]:
    """Values that a distribution can give: its bounds, or all of its choices."""
    ((name, arguments),) = distribution.items()
    return [arguments[0], arguments[1] - 1] if "int" in name else arguments


def search(plan: Search, *, run: str | Path | None = None, address: str | None = None) -> int:
    """Run a search; the folder `run` gets trials.csv, best.yaml and, in tune/, the trials' runs.

    Returns:
        The command's exit status.

    Raises:
        ValueError: a key, value, file or address is wrong, or the machines do not suffice.
        OSError: the folder cannot be written.
    """
    import yaml

    from maml_dist.experiment import compose, override
    from maml_dist.run import refuse_used
    from maml_dist.runtime.launch import OnRay

    config = compose(plan.recipe, plan.settings)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(run or Path("runs") / f"tune-{config['name']}-{stamp}").absolute()
    refuse_used(folder)
    if (folder / "tune").exists():
        raise ValueError(f"{folder} already holds a search")
    experiment = _try(plan, config)
    metric = f"val/{experiment.task.metric}"
    with OnRay(address) as place:
        resources = place.resources(
            experiment.shards or 1,
            cpus=experiment.cpus_per_shard,
            gpus=experiment.gpus_per_shard,
            most=experiment.meta_batch,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "search.yaml").write_text(yaml.safe_dump(asdict(plan), sort_keys=False))
        trials = _fit(plan, config, folder, experiment=experiment, resources=resources)
    sign = -1 if experiment.task.maximize else 1
    trials.sort(key=lambda trial: (trial.failed, trial.score is None, sign * (trial.score or 0)))
    _write_table(folder / "trials.csv", trials, metric)
    _show(trials, metric)
    best = trials[0] if trials else None
    if best is None or best.failed or best.score is None or abs(best.score) == WORST:
        return fail(f"no trial has a score; their folders are in {folder / 'tune'}")
    kept = {key: value for key, value in plan.settings.items() if key not in BUDGET}
    recipe = override(compose(plan.recipe, kept), best.values)
    comment = f"# {metric} {best.score:.6g} after {best.iteration} iterations, trial {best.name}\n"
    (folder / "best.yaml").write_text(comment + yaml.safe_dump(recipe, sort_keys=False))
    print(f"search: {folder}  best: python -m maml_dist.train {folder / 'best.yaml'}")
    ended = sum(trial.status != "interrupted" for trial in trials)
    if ended < plan.num_samples:
        print(f"interrupted: {ended} of {plan.num_samples} trials ended", file=sys.stderr)
        return 130
    return 0


def _try(plan: Search, config: Config) -> "Experiment":
    """Check every key at the ends of its distribution, on a task: all that can be said early.

    Returns:
        The experiment with its settings, as far as trials share them.
    """
    from maml_dist.check import check
    from maml_dist.experiment import override
    from maml_dist.run import Run

    extremes = {key: _extremes(distribution) for key, distribution in plan.search.items()}
    for i in range(max(len(values) for values in extremes.values())):
        drawn = {key: values[i % len(values)] for key, values in extremes.items()}
        tried = Run(Path(), override(config, drawn))
        check(tried.experiment, tried.initial)
    return tried.experiment


def _fit(
    plan: Search,
    config: Config,
    folder: Path,
    *,
    experiment: "Experiment",
    resources: "Resources",
) -> list[Trial]:
    """Ray Tune's part."""
    import logging
    import os

    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    metric, maximize = f"val/{experiment.task.metric}", experiment.task.maximize
    mode, seed, iterations = "max" if maximize else "min", experiment.seed, experiment.iterations
    decided = {"checkpoints": None, "shards": resources.shards, "gpus_per_shard": resources.gpus}

    def run_trial(values: Config) -> None:
        import yaml

        from maml_dist.experiment import override
        from maml_dist.train import meta_train

        here = folder / "tune" / tune.get_context().get_trial_id()
        here.mkdir(parents=True, exist_ok=True)
        recipe = here / "trial.yaml"
        recipe.write_text(yaml.safe_dump(override(config, {**values, **decided})))
        scores: list[float] = []

        def report(row: dict[str, Any]) -> None:
            worst = -WORST if maximize else WORST
            scores.append(row[metric] if math.isfinite(row[metric]) else worst)
            best = max(scores) if maximize else min(scores)
            tune.report({"iteration": row["iteration"], "best": best})

        meta_train(recipe, run=here / "run", progress=False, on_validation=report)

    # The driver of a trial only passes references on: it reserves nothing.
    shard = {"CPU": resources.cpus, "GPU": resources.gpus}
    bundles = tune.PlacementGroupFactory([{}] + [shard] * resources.shards, strategy="PACK")
    space = {
        key: getattr(tune, name)(*([arguments] if name == "choice" else arguments))
        for key, distribution in plan.search.items()
        for name, arguments in distribution.items()
    }
    trials: dict[str, Trial] = {}
    if plan.scheduler == "asha":
        scheduler = AsyncHyperBandScheduler(
            time_attr="iteration",
            max_t=iterations,
            grace_period=min(plan.grace_period, iterations),
            reduction_factor=plan.reduction_factor,
        )
    else:
        scheduler = FIFOScheduler()
    tuner = tune.Tuner(
        tune.with_resources(run_trial, bundles),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="best",
            mode=mode,
            num_samples=plan.num_samples,
            max_concurrent_trials=plan.max_concurrent,
            search_alg=OptunaSearch(seed=seed)
            if plan.algorithm == "optuna"
            else BasicVariantGenerator(random_state=seed),
            scheduler=scheduler,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            callbacks=[_watch(trials, plan, metric, iterations)],
        ),
    )
    tuner.fit()
    return list(trials.values())


def _watch(trials: dict[str, Trial], plan: Search, metric: str, iterations: int) -> Any:
    """A callback of Tune's that keeps `trials` and prints a line for each that ends."""
    from ray import tune

    class Watch(tune.Callback):
        def on_trial_start(self, iteration: int, trials_: Any, trial: Any, **info: Any) -> None:
            trials[trial.trial_id] = Trial(trial.trial_id, dict(trial.config))

        def on_trial_result(
            self, iteration: int, trials_: Any, trial: Any, result: Config, **info: Any
        ) -> None:
            row = trials[trial.trial_id]
            row.iteration, row.score = result["iteration"], result["best"]

        def on_trial_complete(self, iteration: int, trials_: Any, trial: Any, **info: Any) -> None:
            row = trials[trial.trial_id]
            self._end(row, "finished" if row.iteration >= iterations else "stopped")

        def on_trial_error(self, iteration: int, trials_: Any, trial: Any, **info: Any) -> None:
            said = Path(trial.error_file).read_text().strip().splitlines()[-1]
            self._end(trials[trial.trial_id], f"failed: {said}")

        def _end(self, row, status):
            row.status = status
            print(row, file=sys.stderr)

    return Watch()

def _write_table(path, trials, metric):
    keys = list(trials[0].values) if trials else []
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", *keys, "iterations", metric, "status"])
        for trial in trials:
            table.writerow([trial.name, *trial.values.values(), trial.iteration, trial.score, trial.status])

def _show(trials, metric):
    from rich.console import Console
    from rich.table import Table
    table = Table(title="trials")
    keys = list(trials[0].values) if trials else []
    for c in ["trial", *keys, "iterations", metric, "status"]:
        table.add_column(c)
    for t in trials:
        table.add_row(t.name, *map(str, t.values.values()), str(t.iteration), str(t.score), t.status)
    Console().print(table)

def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m maml_dist.tune")
    parser.add_argument("file")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--run", metavar="DIR")
    parser.add_argument("--address")
    options = parser.parse_intermixed_args(arguments)
    return search(read(options.file, parse_overrides(options.words)), run=options.run, address=options.address)

if __name__ == "__main__":
    sys.exit(guarded(main))
