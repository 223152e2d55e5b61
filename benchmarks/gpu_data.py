"""Omniglot where the recipes look under MAML_DIST_DATA: the real images, or generated ones.

    python benchmarks/gpu_data.py [--omniglot FOLDER] [--dry-run]

FOLDER holds images_background and images_evaluation, each as a folder or a zip file. Without it,
drawings of random strokes in the official layout: what is measured by them is speed, and accuracies
say nothing.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started

from benchmarks.gpu_rows import Rows, parser  # noqa: E402 - after the path
from maml_dist.tasks.images import class_file, omniglot  # noqa: E402
from tests.generated import omniglot_folder  # noqa: E402

CHARACTERS, FEW = 300, 90  # generated; of fewer, a split has too few classes for 20 ways


def main() -> None:
    """Convert the images; one row says which."""
    made = parser(__doc__)
    made.add_argument("--omniglot", type=Path, metavar="FOLDER", help="of the official images")
    options = made.parse_args()
    out = class_file.data_home() / "omniglot.arrow"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = options.omniglot or omniglot_folder(
            Path(folder), characters=FEW if options.dry_run else CHARACTERS
        )
        omniglot.convert(source, out)
    characters = len(class_file.read(out, dataset="omniglot"))
    Rows(options.rows).add(
        {"images": "real" if options.omniglot else "generated", "characters": characters}
    )


if __name__ == "__main__":
    main()
