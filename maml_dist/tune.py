"""python -m maml_dist.tune FILE.yaml [key=value …]: search a recipe's keys with Ray Tune."""

import sys

from maml_dist.cli import Parser, add_trust, guarded


def main(arguments: list[str]) -> int:
    """`python -m maml_dist.tune`."""
    parser = Parser(
        prog="python -m maml_dist.tune",
        usage="%(prog)s FILE.yaml [key=value ...] [options]",
        description="Search a recipe's keys with Ray Tune; ends with a table and best.yaml.",
        epilog="Keys are those of the search (num_samples=4, algorithm=optuna) and those of its "
        "recipe (iterations=300). tune_configs/sinusoid.yaml is an example of a FILE.yaml.",
    )
    parser.add_argument("file", metavar="FILE.yaml", help="what to search, and how")
    parser.add_argument("words", nargs="*", metavar="key=value", help="changes to it")
    parser.add_argument("--run", metavar="DIR", help="the folder (default: new, under runs/)")
    parser.add_argument("--address", help="a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    add_trust(parser)
    options = parser.parse_intermixed_args(arguments)

    from maml_dist.config.recipe import parse_overrides
    from maml_dist.config.trust import allow
    from maml_dist.tuning.search_space import read
    from maml_dist.tuning.tuner import search

    allow(options.trust)
    plan = read(options.file, parse_overrides(options.words))
    return search(plan, run=options.run, address=options.address)


if __name__ == "__main__":
    sys.exit(guarded(main))
