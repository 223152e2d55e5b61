"""python -m maml_dist.train [RECIPE | FILE.yaml] [key=value …]: meta-train on Ray, and report."""

import sys
from typing import TYPE_CHECKING

from maml_dist.cli import Parser, add_trust, guarded
from maml_dist.loggers.lines import say

if TYPE_CHECKING:
    from maml_dist.runs.run import Run


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
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run, or from the folder or URI of its "
        "checkpoints; iterations=N extends it",
    )
    parser.add_argument(
        "--status", metavar="RUN", help="say where a run stands, by its folder or checkpoints' URI"
    )
    parser.add_argument("--json", action="store_true", help="with --status: as a JSON object")
    parser.add_argument("--address", help="a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    parser.add_argument("--local", action="store_true", help="all in this process, without Ray")
    add_trust(parser)
    parser.add_argument("--list", action="store_true", help="list the recipes and leave")
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration, leave"
    )
    options = parser.parse_intermixed_args(arguments)

    if options.status is not None or options.json:
        alone = {"status", "json", "traceback", "log_format"}
        beside = [name for name, value in vars(options).items() if value and name not in alone]
        return _show_status(options.status, beside=bool(beside), as_json=options.json)
    from maml_dist.config.recipe import parse_overrides, recipes

    if options.list:
        for name, description in recipes().items():
            print(f"{name:36} {description}")
        return 0
    from maml_dist.training.trainer import execute, prepare

    words = options.words
    named = bool(words) and "=" not in words[0]
    recipe = words.pop(0) if named else "sinusoid"
    overrides = parse_overrides(words)
    if options.local and options.address is not None:
        raise ValueError("--local uses no cluster, --address names one: give one of them")
    if options.resume is not None and named:
        raise ValueError("--resume goes on with a run as it is: no RECIPE beside it")
    before = prepare(recipe, overrides, run=options.run, resume=options.resume, trust=options.trust)
    if options.print_config:
        import yaml

        print(yaml.safe_dump(before.config, sort_keys=False), end="")
        return 0
    if before.finished and options.resume and (before.path / "evaluation.json").exists():
        reached = _reached(before)
        line = f"{before.path} is finished; iterations=N beyond {reached} extends it"
        say(line, out=True, run=before.path, iteration=reached)
        return 0
    return _conclude(execute(before, address=options.address, local=options.local))


def _conclude(run: "Run") -> int:
    """Evaluate a run and draw it; an interrupted one says how to go on."""
    from maml_dist.config.trust import flags
    from maml_dist.inference.meta_test import meta_test
    from maml_dist.reporting.page import report
    from maml_dist.reporting.table import show
    from maml_dist.runs.conclusion import conclude
    from maml_dist.training.interruption import status

    if not run.finished:
        trusted, reached = flags(run.config["code"]), _reached(run)
        line = f"stopped at iteration {reached}; go on with --resume {run.path}{trusted}"
        say(line, out=True, run=run.path, iteration=reached)
        return status()
    try:
        evaluation = meta_test(run)
        show(evaluation, run.experiment.published)
        report(run)
        conclude(run, evaluation)
    except ValueError as error:
        raise ValueError(f"{run.path} is trained and kept, but {error}") from error
    page = run.path / "report.html"
    say(f"run: {run.path}  pictures: {page}", out=True, run=run.path, pictures=page)
    return 0


def _show_status(where: str | None, *, beside: bool, as_json: bool) -> int:
    """Say where a run stands."""
    import json
    from dataclasses import asdict

    from maml_dist.runs.status import lines, status

    if where is None:
        raise ValueError("--json is for --status RUN")
    if beside:
        raise ValueError("--status RUN says where a run stands, and does nothing: give it alone")
    found = status(where)
    print(json.dumps(asdict(found)) if as_json else "\n".join(lines(found)))
    return 0


def _reached(run: "Run") -> int:
    last = run.checkpoints.last
    return last.iteration if last else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
