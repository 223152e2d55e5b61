"""python -m maml_dist.report RUN: the pictures of a run, and one page that shows them."""

import sys

from maml_dist.cli import Parser, add_trust, guarded


def main(arguments: list[str]) -> int:
    """`python -m maml_dist.report`."""
    parser = Parser(
        prog="python -m maml_dist.report",
        description="Draw a run: RUN/figures/*.png and one page that shows them, RUN/report.html.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--compare", metavar="RUN", nargs="+", default=[], help="runs to draw beside it"
    )
    add_trust(parser)
    options = parser.parse_args(arguments)

    from maml_dist.reporting.page import report
    from maml_dist.runs.run import Run

    run = Run.open(options.run, trust=options.trust)
    print(report(run, [Run.open(path) for path in options.compare]))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
