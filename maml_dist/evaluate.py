"""python -m maml_dist.evaluate RUN: score held-out tasks after 0 … M adaptation steps."""

import json
import sys

from maml_dist.cli import Parser, add_trust, guarded


def main(arguments: list[str]) -> int:
    """`python -m maml_dist.evaluate`."""
    parser = Parser(
        prog="python -m maml_dist.evaluate", description="Meta-test a run on held-out tasks."
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--split", default="test", help="train, val or test (default)")
    parser.add_argument("--tasks", type=int, metavar="N", help="tasks (default: the recipe's)")
    parser.add_argument("--steps", type=int, metavar="M", help="steps (default: the recipe's)")
    parser.add_argument("--checkpoint", default="best", help="best (default), last or a file")
    add_trust(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.parse_args(arguments)

    from maml_dist.inference.meta_test import meta_test
    from maml_dist.reporting.table import show
    from maml_dist.runs.run import Run

    run = Run.open(options.run, trust=options.trust)
    evaluation = meta_test(
        run,
        split=options.split,
        tasks=options.tasks,
        steps=options.steps,
        checkpoint=options.checkpoint,
    )
    if options.json:
        print(json.dumps(evaluation))
    else:
        show(evaluation, run.experiment.published)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
