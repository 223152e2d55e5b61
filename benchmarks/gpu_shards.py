"""1, 2 and 4 shards that share one GPU over Ray: Omniglot 5-way 1-shot, meta-iterations a second.

    python benchmarks/gpu_shards.py [--shards 1,2,4] [--limit 90] [--dry-run]

Each run is the recipe's, by the package's own training on one Ray, stopped when its share of the
limit is over: `it_per_s` is the median of the rows of metrics but the first. MAML_DIST_DATA names
the folder of the data. Without a GPU, shards are a core each.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started

from benchmarks.gpu_rows import DEVICE, Row, Rows, device_peak, one_line, parser  # noqa: E402
from benchmarks.gpu_training import SMALL, paces, trained  # noqa: E402
from maml_dist.runtime.private_ray import own_ray  # noqa: E402

CORES = 8  # that are declared: shards of a GPU hardly use theirs


def main() -> None:
    """Train with each number of shards; a row is written as it is there."""
    made = parser(__doc__)
    made.add_argument("--shards", default="1,2,4", help="numbers of shards (1,2,4)")
    options = made.parse_args()
    rows, end = Rows(options.rows), time.monotonic() + options.limit
    counts = [int(count) for count in options.shards.split(",")]
    if options.dry_run:
        counts = counts[:2]
    with tempfile.TemporaryDirectory() as folder, own_ray(CORES):
        for number, count in enumerate(counts):
            row: Row = {"shards": count, "gpus_per_shard": 1 / count if DEVICE == "cuda" else 0}
            share = (end - time.monotonic()) / (len(counts) - number)
            try:
                with device_peak(row):
                    run = trained(
                        share,
                        run=Path(folder) / str(count),
                        shards=count,
                        gpus_per_shard=row["gpus_per_shard"],
                        **(SMALL if options.dry_run else {}),
                    )
                row |= paces(run)
            except (RuntimeError, ValueError, OSError) as error:  # loses no other's row
                row["failed"] = one_line(error)
            rows.add(row)


if __name__ == "__main__":
    main()
