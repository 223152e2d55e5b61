"""Omniglot 5-way 1-shot, trained in this process for the time there is: the accuracy reached.

    python benchmarks/gpu_omniglot.py [--limit 300] [--dry-run] [key=value …]

The recipe with `engine.running=compiled`, interrupted when a tenth of the limit is left, in which
the last checkpoint is scored on the test tasks. MAML_DIST_DATA names the folder of the data.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started

import torch  # noqa: E402 - after the path

from benchmarks.gpu_rows import DEVICE, MIB, Row, Rows, one_line, parser  # noqa: E402
from benchmarks.gpu_training import SMALL, paces, trained, validations  # noqa: E402
from maml_dist.config.recipe import parse_overrides  # noqa: E402
from maml_dist.inference.meta_test import meta_test  # noqa: E402

LEFT = 0.1  # of the limit, for the test
TEST_TASKS = 600


def main() -> None:
    """Train and test; a row of each."""
    made = parser(__doc__)
    made.add_argument("words", nargs="*", metavar="key=value", help="of the recipe")
    options = made.parse_intermixed_args()
    rows, begun = Rows(options.rows), time.monotonic()
    chosen = SMALL if options.dry_run else {"engine.running": "compiled"}
    with tempfile.TemporaryDirectory() as folder:
        row: Row = {"what": "training"}
        try:
            overrides = chosen | parse_overrides(options.words)
            time_left = (1 - LEFT) * options.limit
            run = trained(time_left, run=Path(folder) / "run", local=True, **overrides)
            row |= paces(run) | {"validation": validations(run)}
        except (RuntimeError, ValueError, OSError) as error:
            rows.add(row | {"failed": one_line(error)})
            return
        row["seconds"] = round(time.monotonic() - begun, 1)
        if DEVICE == "cuda":
            row["peak_mib"] = round(torch.cuda.max_memory_allocated() / MIB)
        rows.add(row)
        tasks = SMALL["test_tasks"] if options.dry_run else TEST_TASKS
        steps = meta_test(run, tasks=tasks, checkpoint="last")["results"][0]["steps"]
        last = {"what": "test", "tasks": tasks, "steps": steps[-1]["step"]}
        rows.add(last | {name: steps[-1][name] for name in ("mean", "ci95")})


if __name__ == "__main__":
    main()
