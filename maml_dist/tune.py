"""python -m maml_dist.tune FILE.yaml [key=value …]: search a recipe's keys with Ray Tune."""

import sys

from maml_dist.cli import Parser, add_trust, guarded


def main(arguments: list[str]) -> int:
    """`python -m maml_dist.tune`."""
    parser = Parser(
        prog="python -m maml_dist.tune",
        usage="%(prog)s FILE.yaml [key=value ...] [options], or --resume DIR [key=value ...]",
        description="Search a recipe's keys with Ray Tune; ends with a table and best.yaml.",
        epilog="Keys are those of the search (num_samples=4, algorithm=optuna) and those of its "
        "recipe (iterations=300). tune_configs/sinusoid.yaml is an example of a FILE.yaml.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="FILE.yaml key=value", help="what to search, and how; changes"
    )
    parser.add_argument("--run", metavar="DIR", help="the folder (default: new, under runs/)")
    parser.add_argument("--resume", metavar="DIR", help="go on with the search in this folder")
    parser.add_argument("--address", help="a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would do, and about how long"
    )
    add_trust(parser)
    options = parser.parse_intermixed_args(arguments)

    from maml_dist.config.recipe import parse_overrides
    from maml_dist.config.trust import allow
    from maml_dist.tuning.search_space import read
    from maml_dist.tuning.tuner import resume, search

    allow(options.trust)
    if options.resume is not None:
        if options.run is not None:
            raise ValueError("a search that goes on stays in its folder: --run and --resume")
        if options.dry_run:
            raise ValueError("--dry-run is for a search that has not begun: not with --resume")
        changes = parse_overrides(options.words)
        return resume(options.resume, changes, address=options.address)
    file, *words = options.words or [""]
    if not file or "=" in file:
        raise ValueError("no FILE.yaml is given (--help shows what there is)")
    plan = read(file, parse_overrides(words))
    if options.dry_run:
        from maml_dist.tuning.dry_run import dry_run

        return dry_run(plan, address=options.address)
    return search(plan, run=options.run, address=options.address)


if __name__ == "__main__":
    sys.exit(guarded(main))
