"""python -m maml_dist.report RUN: the pictures of a run or of a search, and a page of them."""

import sys

from maml_dist.cli import Parser, add_trust, guarded
from maml_dist.loggers.lines import say


def main(arguments: list[str]) -> int:
    """`python -m maml_dist.report`."""
    parser = Parser(
        prog="python -m maml_dist.report",
        description="Draw a run, or a search: RUN/figures/*.png and one page, RUN/report.html.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, or of a search")
    parser.add_argument(
        "--compare", metavar="RUN", nargs="+", default=[], help="runs to draw beside it"
    )
    add_trust(parser)
    options = parser.parse_args(arguments)

    from maml_dist.reporting.page import report
    from maml_dist.reporting.search import is_search, report_search
    from maml_dist.runs.run import Run

    if is_search(options.run):
        if options.compare:
            raise ValueError("a search is drawn alone: --compare is of runs")
        say(str(report_search(options.run)), out=True)
        return 0
    run = Run.open(options.run, trust=options.trust)
    say(str(report(run, [Run.open(path) for path in options.compare])), out=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
